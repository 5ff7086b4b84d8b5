"""AffinityNet's training: what is drawn for a step, what is set aside, the same bits after a stop."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from seedbed import loop
from seedbed.artefacts import LABELS, WEIGHTS, Stage
from seedbed.artefacts.records import label_record, weights_record
from seedbed.data import StoreInfo, StoreWriter
from seedbed.data.jitter import STEPS, ColorJitter, changed
from seedbed.data.transforms import generator, normalise
from seedbed.models import build_network
from seedbed.optim import PolySGD
from seedbed.refine.affinitynet import features, load_affinitynet
from seedbed.refine.affinitynet_loss import label_scores, pair_affinity, pair_labels, reduced_labels
from seedbed.refine.affinitynet_task import AffinityConfig, AffinityTask, augmented
from seedbed.types import IGNORE, Sample, UserError

STILL = ColorJitter(0, 0, 0, 0)
SMALL = AffinityConfig(backbone="small", weights="none", epochs=2, batch=4, crop=40)
Make = Callable[..., AffinityTask]


def scene(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright block, and a label of it with an ignored rim; odd sizes."""
    rng = np.random.default_rng(number)
    height, width = 30 + number % 5, 46 - number % 4
    pixels = rng.integers(60, 120, (height, width, 3), dtype=np.uint8)
    labels = np.zeros((height, width), np.uint8)
    pixels[8:22, 9:30, number % 3] = 230
    labels[6:24, 7:32] = IGNORE
    labels[8:22, 9:30] = number % 3 + 1
    return pixels, labels


def encoded(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format="PNG")
    return sink.getvalue()


@pytest.fixture
def make_task(tmp_path: Path) -> Make:
    def make(
        config: AffinityConfig = SMALL, count: int = 13, *, broken: int = -1, wrong: int = -1, missing: int = -1, **more: Any
    ) -> AffinityTask:
        stage = Stage(tmp_path / "out", "confidence", "k", LABELS)
        ids = tuple(f"p{i:03d}" for i in range(count))
        with StoreWriter(tmp_path / "store", StoreInfo("made", ("red", "green", "blue"))) as writer, stage.writer() as records:
            for i, ident in enumerate(ids):
                pixels, labels = scene(i)
                content = encoded(pixels)[: 60 if i == broken else None]
                writer.add(Sample(ident, content, *labels.shape, np.eye(3, dtype=np.uint8)[i % 3], "main"), splits=("train",))
                if i != missing:
                    records.add(label_record(ident, labels[:-1] if i == wrong else labels, 0.0))
        return AffinityTask(str(tmp_path / "store"), None, ids, stage.folder, config, 5, **more)

    return make


def test_colors_are_torchvisions() -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    picture = Image.fromarray(scene(0)[0])
    for what in STEPS[:3]:
        for amount in (-0.3, 0.17):
            theirs = getattr(functional, f"adjust_{what}")(picture, 1 + amount)
            np.testing.assert_array_equal(np.asarray(changed(picture, what, amount)), np.asarray(theirs))
    for amount in (-0.1, 0.07):
        np.testing.assert_array_equal(np.asarray(changed(picture, "hue", amount)), np.asarray(functional.adjust_hue(picture, amount)))
    pixels = scene(1)[0]
    np.testing.assert_array_equal(STILL(pixels, generator(0, "x", "a")), pixels)
    one, other = (ColorJitter()(pixels, generator(0, "x", ident)) for ident in "ab")
    assert one.shape == pixels.shape and one.dtype == np.uint8 and (one != other).any()


def test_a_crop_as_the_recipe_makes_it() -> None:
    """Black around the picture, not the mean color; its labels ignored; mirrored together."""
    pixels, labels = scene(3)
    seen = set()
    for visit in range(12):
        image, target = augmented(pixels, labels, generator(0, "a", "a", visit), SMALL.replace(jitter=STILL, crop=64))
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
    image, target = augmented(pixels, labels, generator(0, "a", "a"), SMALL.replace(crop=24, jitter=STILL), 4)
    assert image.shape == (3, 24, 24) and target.shape == (6, 6)


def test_a_step_depends_on_its_number_alone(make_task: Make) -> None:
    task = make_task()
    task.open()
    assert task.steps == 6
    whole = task.batch(4, 0, 1)
    again = pickle.loads(pickle.dumps(task))
    again.open()
    parts = [again.batch(4, rank, 2) for rank in (1, 0)][::-1]
    torch.testing.assert_close(torch.cat([p.images_nchw for p in parts]), whole.images_nchw, rtol=0, atol=0)
    torch.testing.assert_close(torch.cat([p.labels_nhw for p in parts]), whole.labels_nhw, rtol=0, atol=0)
    assert whole.labels_nhw.shape == (4, 10, 10)  # stride 4 of the small network
    assert task.identity() == again.identity()


def test_groups_and_rates(make_task: Make) -> None:
    task = make_task(SMALL.replace(lr=0.2, weight_decay=1e-3, momentum=0.5))
    task.open()
    optimizer = task.optimizer(task.build(), task.steps)
    assert isinstance(optimizer, PolySGD)
    assert [(g["lr"], g["weight_decay"], g["momentum"]) for g in optimizer.param_groups] == [(0.2, 1e-3, 0.5), (2.0, 1e-3, 0.5)]
    assert len(optimizer.param_groups[1]["params"]) == 4


def test_trains_stops_and_goes_on_with_the_same_bits(make_task: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SMALL.replace(epochs=12, lr=0.1)
    loop.train(make_task(config), tmp_path / "whole")
    weights = torch.load(tmp_path / "whole" / "weights.pt", weights_only=True)
    lines = [entry["terms"] for entry in loop.read_log(tmp_path / "whole") if "terms" in entry]
    assert set(lines[0]) == {"bg", "fg", "neg"} and sum(lines[-1].values()) < sum(lines[0].values())

    class Stopped(Exception):
        pass

    plain = AffinityTask.batch

    def until(self: AffinityTask, step: int, rank: int, world: int) -> Any:
        if step == 13:
            raise Stopped
        return plain(self, step, rank, world)

    monkeypatch.setattr(AffinityTask, "batch", until)
    with pytest.raises(Stopped):
        loop.train(make_task(config.replace(checkpoint_every=5)), tmp_path / "stopped")
    assert (tmp_path / "stopped" / "checkpoint.pt").exists()
    monkeypatch.undo()
    loop.train(make_task(config.replace(checkpoint_every=5)), tmp_path / "stopped")
    resumed = torch.load(tmp_path / "stopped" / "weights.pt", weights_only=True)
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)

    stage = Stage(tmp_path / "out", "affinity", "w", WEIGHTS)
    with stage.writer() as writer:
        for name, value in weights.items():
            writer.add(weights_record(name, value.numpy(), value.numpy().dtype.str))
    net = load_affinitynet(stage.folder, config, "cpu")
    pixels, labels = scene(0)
    affinity = pair_affinity(torch.nn.functional.elu(features(net, pixels))[None], 5)
    scores, values = label_scores(np.pad(labels, [(0, -side % 4) for side in labels.shape], constant_values=IGNORE))
    pairs = pair_labels(torch.from_numpy(reduced_labels(scores, 4, values))[None], 5)
    alike, differ = (affinity[chosen].mean() for chosen in (pairs.foreground, pairs.different))
    assert alike > 3 * differ  # the block is told from what lies around it


def test_the_classifiers_backbone(make_task: Make, tmp_path: Path) -> None:
    stage = Stage(tmp_path / "out", "classifier", "c", WEIGHTS)
    classifier = build_network("small", 3)
    with stage.writer() as writer:
        for name, value in classifier.state_dict().items():
            writer.add(weights_record(name, value.numpy(), value.numpy().dtype.str))
    task = make_task(SMALL.replace(weights="classifier"), classifier=stage.folder)
    task.open()
    model = task.build()
    taken = model.backbone.state_dict()  # type: ignore[union-attr, operator]
    assert all(torch.equal(value, classifier.state_dict()[name]) for name, value in taken.items())
    assert task.facts()["initial_weights"] == "classifier"
    other = AffinityTask(task.store, None, task.ids, task.labels, SMALL.replace(backbone="resnet18", weights="classifier"), 5, stage.folder)
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
