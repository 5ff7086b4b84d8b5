"""The training of IRN's network: what is drawn for a step, what is set aside, the same bits after a stop, the mean displacement."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_labels import same_in_two_parts, scene, small_classifier, trained_and_resumed, write_labelled, write_weights
from PIL import Image
from shares import assert_alike

from seedbed import loop
from seedbed.data.transforms import generator, normalise
from seedbed.optim import PolySGD
from seedbed.refine.irn import irn_edge, load_irn
from seedbed.refine.irn_task import SHIFT, IrnConfig, IrnTask, IrnWalk, augmented
from seedbed.types import IGNORE, UserError

SMALL = IrnConfig(backbone="small", weights="none", epochs=2, batch=4, crop=32, radius=3, scale_low=0.8, scale_high=1.2)
Make = Callable[..., IrnTask]


@pytest.fixture
def make_task(tmp_path: Path) -> Make:
    def make(config: IrnConfig = SMALL, count: int = 13, *, classifier: Path | None = None, **changes: Any) -> IrnTask:
        store, ids, labels = write_labelled(tmp_path, count, width=40, **changes)
        return IrnTask(store, None, ids, labels, config, 5, classifier)

    return make


def test_a_crop_as_the_recipe_makes_it() -> None:
    """Scale, mirror and place applied by Pillow to the whole; the reduced label is Pillow's nearest."""
    pixels, labels = scene(3, 40)
    config = SMALL.replace(crop=64, scale_low=0.5, scale_high=1.5)
    seen = set()
    for visit in range(12):
        image, target = augmented(pixels, labels, generator(0, "irn", "a", visit), config)
        rng = generator(0, "irn", "a", visit)
        size = tuple(max(1, int(np.round(side * s))) for s in [rng.uniform(0.5, 1.5)] for side in labels.shape)
        mirrored = rng.random() < 0.5
        big = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC))[:, :: -1 if mirrored else 1]
        flat = np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))[:, :: -1 if mirrored else 1]
        top, left = int(rng.integers(64 - size[0], endpoint=True)), int(rng.integers(64 - size[1], endpoint=True))
        expected, whole = torch.zeros(3, 64, 64), np.full((64, 64), IGNORE, np.uint8)
        expected[:, top : top + size[0], left : left + size[1]] = normalise(big)
        whole[top : top + size[0], left : left + size[1]] = flat
        torch.testing.assert_close(image, expected, rtol=0, atol=0)
        np.testing.assert_array_equal(target, np.asarray(Image.fromarray(whole).resize((16, 16), Image.Resampling.NEAREST)))
        seen.add(mirrored)
    assert seen == {True, False}


def test_a_picture_larger_than_the_crop() -> None:
    pixels, labels = np.zeros((90, 40, 3), np.uint8), np.tile(np.arange(90, dtype=np.uint8)[:, None], (1, 40))
    image, target = augmented(pixels, labels, np.random.default_rng(0), SMALL.replace(scale_low=1.0, scale_high=1.0))
    assert image.shape == (3, 32, 32) and target.shape == (8, 8)
    assert (np.diff(target[:, 0].int()) == 4).all() and not (target == IGNORE).any()


def test_a_step_depends_on_its_number_alone(make_task: Make) -> None:
    task = make_task()
    task.open()
    assert task.steps == 6
    whole = same_in_two_parts(task, pickle.loads(pickle.dumps(task)), 4)
    assert whole.labels_nhw.shape == (4, 8, 8) and whole.labels_nhw.dtype == torch.uint8
    assert sorted(task.pictures.order(0)) == sorted(task.pictures.order(1)) and task.pictures.order(0) != task.pictures.order(1)


def test_groups_and_rates(make_task: Make) -> None:
    task = make_task(SMALL.replace(lr=0.2, weight_decay=1e-3))
    task.open()
    optimizer = task.optimizer(task.build(), task.steps)
    assert isinstance(optimizer, PolySGD)
    assert [(g["lr"], g["weight_decay"], g["momentum"]) for g in optimizer.param_groups] == [(0.2, 1e-3, 1e-3), (2.0, 1e-3, 1e-3)]


def test_trains_stops_and_goes_on_with_the_same_bits(make_task: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the loop; the network then finds the block's outline, and the log has the mean displacement."""
    config = SMALL.replace(epochs=8, lr=0.5)
    weights, log = trained_and_resumed(make_task, config, tmp_path, monkeypatch)
    lines = [entry["terms"] for entry in log if "terms" in entry]
    assert set(lines[0]) == {"pos", "neg", "dp_fg", "dp_bg"} and sum(lines[-1].values()) < sum(lines[0].values())

    done = IrnTask.finished(weights, log)
    means = [entry for entry in log if SHIFT[0] in entry]
    assert len(means) == 1 and not weights["mean_shift.running_mean"].any()
    np.testing.assert_allclose(done["mean_shift.running_mean"], [means[0][name] for name in SHIFT], rtol=1e-6)
    net = load_irn(write_weights(tmp_path, "irn", done), config, "cpu")
    assert torch.equal(net.mean_shift.running_mean, done["mean_shift.running_mean"]) and not net.training
    edge = irn_edge(net, scene(20, 40)[0], IrnWalk(pad=0))  # a picture not trained on: boundaries around the block, none in it
    assert edge[2:5, 3:7].mean() < 0.5 * torch.cat([edge[1, 3:7], edge[6, 3:7], edge[2:5, 1], edge[2:5, 8]]).mean()
    again = make_task(config)
    again.open()
    with torch.no_grad():
        images = torch.cat([images for number in range(3) if (images := again._corners(again.ids, number)) is not None])
        centred = net(images)[1].mean((0, 2, 3))
    np.testing.assert_allclose(centred, 0, atol=1e-4 * max(1, float(done["mean_shift.running_mean"].abs().max())))


def test_two_workers_share_the_pictures_of_the_mean(make_task: Make) -> None:
    task = make_task(count=14)
    task.open()
    model = task.build().eval()
    with torch.no_grad():
        whole = task.judge([task.validate(model, "cpu", 0, 1)])
        parts = [task.validate(model, "cpu", rank, 2) for rank in (0, 1)]
    assert task.judge(parts) == whole and [len(p) for p in parts] == [2, 1]
    assert task.validates(task.steps) and not task.validates(task.steps - 1)


def test_the_classifiers_backbone(make_task: Make, tmp_path: Path) -> None:
    classifier, folder = small_classifier(tmp_path)
    task = make_task(SMALL.replace(weights="classifier"), classifier=folder)
    task.open()
    taken = task.build().backbone.state_dict()
    assert all(torch.equal(value, classifier[name]) for name, value in taken.items())
    assert task.facts()["initial_weights"] == "classifier"
    other = IrnTask(task.store, None, task.ids, task.labels, SMALL.replace(backbone="resnet18", weights="classifier"), 5, folder)
    other.open()
    with pytest.raises(UserError, match="no resnet18"):
        other.build()


# --- what can't be used --------------------------------------------------------------------------------


def test_bad_pictures_are_set_aside_by_name(make_task: Make) -> None:
    """Not decodable, a label of another size, no label: named, counted, replaced by the next one."""
    task = make_task(count=16, broken=2, wrong=5, missing=9)
    task.open()
    used = {ident for step in range(task.steps) for ident in task.batch(step, 0, 1).ids}
    assert set(task.set_aside) == {"p002", "p005", "p009"} and not used & set(task.set_aside)
    assert task.set_aside["p009"] == "no confidence label"
    assert task.set_aside["p005"] == "its label has 29 x 39 pixels, the picture 30 x 39"
    assert "p002" in task.set_aside["p002"] or "decode" in task.set_aside["p002"] or "read" in task.set_aside["p002"]


def test_fewer_pictures_than_a_batch(make_task: Make) -> None:
    with pytest.raises(UserError, match="3 pictures have confidence labels, fewer than a batch of 4") as error:
        make_task(count=3).open()
    assert error.value.field == "--refine.irn.batch"


def test_no_picture_is_left(make_task: Make) -> None:
    task = make_task(count=4, broken=0)
    task.open()
    task.set_aside.update({f"p00{i}": "gone" for i in range(1, 4)})
    with pytest.raises(UserError, match="no picture with a confidence label"):
        task.batch(0, 0, 1)


def test_labels_that_ignore_everything(make_task: Make, tmp_path: Path) -> None:
    """Nothing to learn: every loss is 0, and the weights only decay."""
    loop.train(make_task(SMALL.replace(epochs=1, mean_shift=False), change=lambda labels: np.full_like(labels, IGNORE)), tmp_path / "run")
    entries = [entry for entry in loop.read_log(tmp_path / "run") if "terms" in entry]
    assert set(entries[-1]["terms"].values()) == {0.0}


@pytest.mark.parametrize("world", [2, 3])
def test_workers_shares_add_up(make_task: Make, world: int) -> None:
    """Losses and gradients are those of one worker, though the shares' pairs differ in number: one picture in three is all background."""
    drawn: list[int] = []

    def change(labels: np.ndarray) -> np.ndarray:
        drawn.append(len(drawn))
        return np.where(labels == IGNORE, labels, 0).astype(np.uint8) if len(drawn) % 3 == 0 else labels

    task = make_task(SMALL.replace(batch=5), change=change)
    task.open()
    assert_alike(task, 1, world)


@pytest.mark.slow
def test_two_workers_train_alike_every_time(make_task: Make, tmp_path: Path) -> None:
    """Gradients of both branches meet, and the mean displacement of both workers' batches is in one line of the log."""
    config = SMALL.replace(epochs=1)
    for name in ("one", "two"):
        loop.train_locally(make_task(config), tmp_path / name, workers=2)
    one, two = (torch.load(tmp_path / name / "weights.pt", weights_only=True) for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert len([entry for entry in loop.read_log(tmp_path / "one") if SHIFT[0] in entry]) == 1
