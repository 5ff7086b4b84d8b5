"""AffinityNet's training: what is drawn for a step, what is set aside, the same bits after a stop."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_labels import one_hot, same_in_two_parts, scene, small_classifier, trained_and_resumed, write_labelled, write_weights
from PIL import Image
from shares import assert_alike

from seedbed.artefacts.records import SCORE_STEPS, scored_label_record, scores_from
from seedbed.data.jitter import STEPS, ColorJitter, changed
from seedbed.data.transforms import generator, normalise
from seedbed.optim import PolySGD
from seedbed.refine.affinitynet import features, load_affinitynet
from seedbed.refine.affinitynet_loss import pair_affinity, pair_labels, reduced_labels
from seedbed.refine.affinitynet_task import AffinityConfig, AffinityTask, augmented
from seedbed.refine.confidence import affinity_labels
from seedbed.types import IGNORE, UserError

STILL = ColorJitter(0, 0, 0, 0)
SMALL = AffinityConfig(backbone="small", weights="none", epochs=2, batch=4, crop=40)
Make = Callable[..., AffinityTask]


@pytest.fixture
def make_task(tmp_path: Path) -> Make:
    def make(config: AffinityConfig = SMALL, count: int = 13, *, classifier: Path | None = None, **changes: Any) -> AffinityTask:
        store, ids, labels = write_labelled(tmp_path, count, width=46, scored=True, **changes)
        return AffinityTask(store, None, ids, labels, config, 5, classifier)

    return make


def test_colors_are_torchvisions() -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    picture = Image.fromarray(scene(0, 46)[0])
    for what in STEPS[:3]:
        for amount in (-0.3, 0.17):
            theirs = getattr(functional, f"adjust_{what}")(picture, 1 + amount)
            np.testing.assert_array_equal(np.asarray(changed(picture, what, amount)), np.asarray(theirs))
    for amount in (-0.1, 0.07):
        np.testing.assert_array_equal(np.asarray(changed(picture, "hue", amount)), np.asarray(functional.adjust_hue(picture, amount)))
    pixels = scene(1, 46)[0]
    np.testing.assert_array_equal(STILL(pixels, generator(0, "x", "a")), pixels)
    one, other = (ColorJitter()(pixels, generator(0, "x", ident)) for ident in "ab")
    assert one.shape == pixels.shape and one.dtype == np.uint8 and (one != other).any()


def test_a_crop_as_the_recipe_makes_it() -> None:
    """Black around the picture, not the mean color; its labels ignored; mirrored together."""
    pixels, labels = scene(3, 46)
    scores = (one_hot(labels) * SCORE_STEPS).astype(np.uint16)
    seen = set()
    for visit in range(12):
        image, target = augmented(pixels, scores, generator(0, "a", "a", visit), SMALL.replace(jitter=STILL, crop=64))
        rng = generator(0, "a", "a", visit)
        STILL(pixels, rng)
        top, left = (int(rng.integers(64 - side, endpoint=True)) for side in labels.shape)
        mirrored = rng.random() < 0.5
        whole, flat = np.zeros((64, 64, 3), np.uint8), np.full((64, 64), IGNORE, np.uint8)
        whole[top : top + labels.shape[0], left : left + labels.shape[1]] = pixels
        flat[top : top + labels.shape[0], left : left + labels.shape[1]] = labels
        way = -1 if mirrored else 1
        torch.testing.assert_close(image, normalise(np.ascontiguousarray(whole[:, ::way])), rtol=0, atol=0)
        assert target.shape == (8, 8) and target.dtype == torch.uint8
        for y in range(8):
            for x in range(8):
                block = flat[:, ::way][8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
                if len(np.unique(block)) == 1:
                    assert target[y, x] == block[0, 0]
        seen.add(mirrored)
    assert seen == {True, False}
    image, target = augmented(pixels, scores, generator(0, "a", "a"), SMALL.replace(crop=24, jitter=STILL), 4)
    assert image.shape == (3, 24, 24) and target.shape == (6, 6)


def test_scores_are_averaged_before_they_are_decided_on() -> None:
    """PSA's order (golden affinitynet, `lab_label`): three pixels that are hardly of a class do not outweigh one that surely is not."""
    scores = np.zeros((2, 2, 8, 8), np.float32)
    scores[:, 1] = 0.51
    scores[:, 1, ::2, ::2] = 0.0
    scores[:, 0] = 1 - scores[:, 1]
    alone = affinity_labels(scores, np.array([6]))
    assert (alone == 7).mean() == 0.75
    stored = scored_label_record("a", alone, scores, 0.0)
    assert np.abs(scores_from(stored) / SCORE_STEPS - scores).max() <= 0.5 / SCORE_STEPS
    _, target = augmented(np.zeros((8, 8, 3), np.uint8), scores_from(stored), np.random.default_rng(0), SMALL.replace(crop=8), 8)
    assert target.tolist() == [[0]], "the mean says background, though most pixels do not"


def test_a_step_depends_on_its_number_alone(make_task: Make) -> None:
    task = make_task()
    task.open()
    assert task.steps == 6
    whole = same_in_two_parts(task, pickle.loads(pickle.dumps(task)), 4)
    assert whole.labels_nhw.shape == (4, 10, 10)  # stride 4 of the small network


@pytest.mark.parametrize("world", [2, 3])
def test_workers_shares_add_up(make_task: Make, world: int) -> None:
    """Losses and gradients are those of one worker, though the shares' pairs differ in number."""
    task = make_task(SMALL.replace(batch=5, batch_norm="fixed"))
    task.open()
    assert_alike(task, 1, world)


def test_groups_and_rates(make_task: Make) -> None:
    task = make_task(SMALL.replace(lr=0.2, weight_decay=1e-3, momentum=0.5))
    task.open()
    optimizer = task.optimizer(task.build(), task.steps)
    assert isinstance(optimizer, PolySGD)
    assert [(g["lr"], g["weight_decay"], g["momentum"]) for g in optimizer.param_groups] == [(0.2, 1e-3, 0.5), (2.0, 1e-3, 0.5)]
    assert len(optimizer.param_groups[1]["params"]) == 4


def test_trains_stops_and_goes_on_with_the_same_bits(make_task: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SMALL.replace(epochs=12, lr=0.1)
    weights, log = trained_and_resumed(make_task, config, tmp_path, monkeypatch)
    lines = [entry["terms"] for entry in log if "terms" in entry]
    assert set(lines[0]) == {"bg", "fg", "neg"} and sum(lines[-1].values()) < sum(lines[0].values())

    net = load_affinitynet(write_weights(tmp_path, "affinity", weights), config, "cpu")
    pixels, labels = scene(0, 46)
    affinity = pair_affinity(torch.nn.functional.elu(features(net, pixels))[None], 5)
    scores = one_hot(np.pad(labels, [(0, -side % 4) for side in labels.shape], constant_values=IGNORE))
    pairs = pair_labels(torch.from_numpy(reduced_labels(scores, 4))[None], 5)
    alike, differ = (affinity[chosen].mean() for chosen in (pairs.foreground, pairs.different))
    assert alike > 3 * differ  # the block is told from what lies around it


def test_the_classifiers_backbone(make_task: Make, tmp_path: Path) -> None:
    classifier, folder = small_classifier(tmp_path)
    task = make_task(SMALL.replace(weights="classifier"), classifier=folder)
    task.open()
    model = task.build()
    taken = model.backbone.state_dict()  # type: ignore[union-attr, operator]
    assert all(torch.equal(value, classifier[name]) for name, value in taken.items())
    assert task.facts()["initial_weights"] == "classifier"
    other = AffinityTask(task.store, None, task.ids, task.labels, SMALL.replace(backbone="resnet18", weights="classifier"), 5, folder)
    other.open()
    with pytest.raises(UserError, match="no resnet18"):
        other.build()


def test_bad_pictures_are_set_aside(make_task: Make) -> None:
    task = make_task(broken=2, wrong=3, missing=4)
    task.open()
    assert task.steps == 6
    ids = {ident for step in range(task.steps) for ident in task.batch(step, 0, 1).ids}
    assert not ids & {"p002", "p003", "p004"}
    assert task.set_aside["p004"] == "no label to train on"
    assert "pixels, the picture" in task.set_aside["p003"] and "p002" in task.set_aside


def test_fewer_pictures_than_a_batch(make_task: Make) -> None:
    task = make_task(SMALL.replace(batch=20))
    with pytest.raises(UserError, match="13 pictures have labels") as error:
        task.open()
    assert error.value.field == "--refine.affinitynet.batch"
