"""The segmenter's training and inference: what is drawn, what is set aside, resumption, accumulation, initial weights, predictions."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from shares import assert_alike

from seedbed import loop
from seedbed.artefacts import WEIGHTS, Stage
from seedbed.artefacts.fragments import column, stage_schema
from seedbed.artefacts.records import decode_png, png, weights_record
from seedbed.data import Store, StoreInfo, StoreWriter, open_store
from seedbed.metrics.region import Confusion
from seedbed.segment import PredictWork, SegmenterConfig, SegmenterTask, load_segmenter, predict
from seedbed.segment.augment import DeepLabCrop, YudeWangCrop
from seedbed.segment.losses import pixel_counts, segmentation_loss
from seedbed.segment.task import SegmentBatch, reduced_labels
from seedbed.types import Sample, UserError

Spoil = Callable[[int, np.ndarray], np.ndarray | None]
COLORS = ((220, 30, 30), (30, 200, 40), (40, 60, 230))
SCHEMA = stage_schema(column("labels", pa.binary()))
SMALL = SegmenterConfig.named("small", weights="none", steps=8, batch=4, crop=32, scales=(0.75, 1.0, 1.25))


def drawn(number: int, classes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a patch in the color of each class, and its label map; odd sizes."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(90, 160, (30 + number % 5, 36 - number % 4, 3), dtype=np.uint8)
    labels = np.zeros(pixels.shape[:2], np.uint8)
    for c in classes:
        top, left = 2 + 9 * c, int(rng.integers(2, 14))
        pixels[top : top + 8, left : left + 14] = COLORS[c]
        labels[top : top + 8, left : left + 14] = c + 1
    return pixels, labels


class Made:
    """A store of pictures, and an artefact with their labels."""

    def __init__(
        self, folder: Path, count: int = 22, mask: int = 0, spoil: Callable[[int, np.ndarray], np.ndarray | None] | None = None
    ) -> None:
        stage = Stage(folder, "masks", "key", SCHEMA)
        with StoreWriter(folder / "store", StoreInfo("made", ("red", "green", "blue"))) as writer, stage.writer() as records:
            for i in range(count):
                classes = [c for c in range(3) if (i % 2, i % 3 == 0, i % 5 in (1, 2))[c]]
                pixels, labels = drawn(i, classes)
                sink = io.BytesIO()
                Image.fromarray(pixels).save(sink, format="PNG")
                present = np.isin(np.arange(3), classes).astype(np.uint8)
                true = {"class": png(np.full_like(labels, mask))}
                writer.add(Sample(f"p{i:03d}", sink.getvalue(), *pixels.shape[:2], present, "generator", true), splits=("train",))
                given = labels if spoil is None else spoil(i, labels)
                if given is not None:
                    records.add({"id": f"p{i:03d}", "labels": png(given)})
        stage.finish(computed=count, seconds=0)
        self.folder, self.labels = folder, stage.folder
        self.store: Store = open_store(folder / "store")
        self.ids = tuple(self.store.ids("train"))

    def task(self, config: SegmenterConfig = SMALL, **changes: Any) -> SegmenterTask:
        named: dict[str, Any] = {"seed": 3, "num_classes": 4, "ids": self.ids, **changes}
        task = SegmenterTask(store=str(self.store.path), cache=None, labels=self.labels, config=config, **named)
        task.open()
        return task


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "made")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights.pt", weights_only=True)


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return all(torch.equal(a[name], b[name]) for name in a)


# --- settings -----------------------------------------------------------------------------------------


def test_defaults_are_the_appendix_of_rib() -> None:
    c = SegmenterConfig().resolved()
    assert (c.model, c.backbone, c.weights, c.batch_norm) == ("deeplab_v2", "resnet101", "imagenet", "fixed")
    assert (c.steps, c.batch, c.accumulate, c.lr, c.crop, c.loss) == (30_000, 10, 1, 2e-4, 321, "balanced_half")
    assert (c.momentum, c.weight_decay, c.power, c.lr_hold) == (0.9, 5e-4, 0.9, 10)
    coco = SegmenterConfig.named("coco")
    assert (coco.steps, coco.lr, coco.crop) == (100_000, 2.5e-4, 481)
    hfpl = SegmenterConfig.named("hfpl").resolved()
    assert (hfpl.backbone, hfpl.batch_norm, hfpl.augmentation, hfpl.crop, hfpl.lr) == ("resnet38", "batch", "yudewang", 448, 1e-3)
    official = SegmenterConfig.named("deeplab")
    assert (official.batch, official.accumulate, official.lr, official.steps, official.loss) == (10, 2, 2.5e-4, 20_000, "plain")
    for name in SegmenterConfig.PRESETS:
        SegmenterConfig.named(name).check("segmenter.")
        assert set(SegmenterConfig.PRESETS[name]) == set(SegmenterConfig.PRESETS["voc"])
    assert SegmenterConfig(weights="none").resolved().batch_norm == "trained"


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"lr": -1.0}, "--segmenter.lr"),
        ({"lr": 0.0}, "--segmenter.lr"),
        ({"crop": 0}, "--segmenter.crop"),
        ({"steps": 0}, "--segmenter.steps"),
        ({"batch": 10, "accumulate": 3}, "--segmenter.accumulate"),
        ({"model": "deeplab_v1", "backbone": "resnet101"}, "--segmenter.backbone"),
        ({"optimizer": "adam", "momentum": 0.9}, "--segmenter.momentum"),
        ({"scales": ()}, "--segmenter.scales"),
        ({"model": "small", "compile": True}, "--segmenter.compile"),
        ({"test_scales": ()}, "--segmenter.test-scales"),
        ({"loss": "balanced"}, "--segmenter.loss"),
        ({"model": "small", "stride": "3x3"}, "--segmenter.stride"),
        ({"model": "deeplab_v1", "stride": "1x1"}, "--segmenter.stride"),
        ({"schedule": "cosine", "lr_hold": 50}, "--segmenter.lr-hold"),
        ({"schedule": "constant", "power": 2.0}, "--segmenter.power"),
        ({"weights": "imagenet", "weights_from": "masks"}, "--segmenter.weights-from"),
        ({"weights": "coco", "weights_from": "imagenet"}, "--segmenter.weights-from"),
        ({"weights": "none", "weights_from": "imagenet"}, "--segmenter.weights-from"),
    ],
    ids=str,
)
def test_settings_out_of_range(changes: dict[str, Any], flag: str) -> None:
    with pytest.raises(UserError) as error:
        SegmenterConfig().replace(**changes).check("segmenter.")
    assert error.value.field == flag


def test_what_nobody_asked_for_is_not_refused() -> None:
    """Defaults and values of presets that another choice leaves without effect; words that say what is so anyhow."""
    for preset in SegmenterConfig.PRESETS:
        for schedule in ("poly", "poly1", "cosine", "constant"):
            SegmenterConfig.named(preset, schedule=schedule).check()
    for model in ("deeplab_v1", "small"):
        SegmenterConfig(model=model, weights="none", schedule="cosine", optimizer="adam").check()
    for weights, said in (("imagenet", "imagenet"), ("coco", "masks"), ("deeplab.pth", "masks"), ("deeplab.pth", "imagenet")):
        SegmenterConfig(weights=weights, weights_from=said).check()  # type: ignore[arg-type]


def test_inference_settings_do_not_train_again() -> None:
    base, other = SegmenterConfig(), SegmenterConfig(test_flip=True, crf="none", test_scales=(1.0, 0.5))
    assert base.training_dict() == other.training_dict() and base.key() != other.key()
    assert set(base.training_dict()) | set(base.inference_dict()) | {"retrain", "weights_from"} == set(base.to_dict(only_key=True))
    assert SegmenterConfig(weights_from="masks").training_dict() == base.training_dict(), "a word for the record trains nothing"
    assert SegmenterConfig(stride="3x3").training_dict() == base.training_dict(), "what auto means already"
    assert SegmenterConfig(log_every=3, prefetch=2, checkpoint_every=7).key() == base.key()


# --- losses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["plain", "balanced_half", "balanced_dsrg"])
def test_all_ignored_is_zero(form: Any) -> None:
    logits = torch.randn(2, 4, 5, 6, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((2, 5, 6), 255, dtype=torch.uint8), form)
    loss.backward()
    assert float(loss.detach()) == 0 and logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("value", [0, 2])
def test_one_group_alone_is_finite(value: int) -> None:
    logits, labels = torch.randn(2, 4, 5, 6), torch.full((2, 5, 6), value)
    plain = segmentation_loss(logits, labels, "plain")
    torch.testing.assert_close(segmentation_loss(logits, labels, "balanced_half"), plain / 2)
    assert torch.isfinite(segmentation_loss(logits, labels, "balanced_dsrg"))


@pytest.mark.parametrize("form", ["plain", "balanced_half", "balanced_dsrg"])
@pytest.mark.parametrize("cut", [1, 2])
def test_parts_add_up_to_the_batch(form: Any, cut: int) -> None:
    """One picture has a single labelled pixel, one none: what a part divides by is the whole batch's."""
    logits = torch.randn(3, 4, 6, 5, requires_grad=True, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 4, (3, 6, 5), generator=torch.Generator().manual_seed(1))
    labels[1:] = 255
    labels[1, 0, 0] = 1
    whole = pixel_counts(labels).sum(0)
    assert int(whole[0]) == 3 and int(whole[1] + whole[2]) == 31
    one = segmentation_loss(logits, labels, form)
    parts = [segmentation_loss(logits[rows], labels[rows], form, whole) for rows in (slice(cut), slice(cut, None))]
    torch.testing.assert_close(sum(parts), one)
    (gradient,), (summed,) = torch.autograd.grad(one, logits), torch.autograd.grad(parts[0] + parts[1], logits)
    torch.testing.assert_close(summed, gradient)
    assert torch.equal(segmentation_loss(logits, labels, form, whole), one)


# --- batches ------------------------------------------------------------------------------------------


def test_a_step_is_a_function_of_its_number(made: Made) -> None:
    task, other = made.task(), made.task(SMALL.replace(decoded_mb=0))
    other.batch(9, 0, 1)
    for step in (7, 0, 3):
        batch, again = task.batch(step, 0, 1), other.batch(step, 0, 1)
        assert batch.ids == again.ids and torch.equal(batch.images_nchw, again.images_nchw)
        assert torch.equal(batch.labels_nhw, again.labels_nhw) and batch.labels_nhw.shape == (4, 32, 32)
        parts = [task.batch(step, rank, 3) for rank in range(3)]
        assert torch.equal(torch.cat([p.labels_nhw for p in parts]), batch.labels_nhw)
    assert not other._decoded
    assert not torch.equal(made.task(stage="retrained").batch(0, 0, 1).images_nchw, task.batch(0, 0, 1).images_nchw)


def test_picture_and_label_go_together(made: Made) -> None:
    """A pixel of a class's color carries its label, whatever the augmentation."""
    for recipe in (DeepLabCrop(40, (0.75, 1.5), True), YudeWangCrop(40, (0.5, 1.5), True)):
        for number in range(8):
            pixels, labels = drawn(number, [0, 1, 2])
            image, target = recipe(pixels, labels, np.random.default_rng(number))
            assert image.shape == (3, 40, 40) and image.dtype == torch.float32 and target.dtype == torch.uint8
            if recipe.kind == "bgr":
                image = image.flip(0)
            strongest = image.argmax(0).numpy()
            inside = (target > 0) & (target < 255)
            agree = strongest[inside] == target[inside].numpy() - 1
            assert agree.size and agree.mean() > 0.85


def test_it_travels(made: Made) -> None:
    task = made.task()
    batch = task.batch(2, 0, 1)
    content = pickle.dumps(task)
    assert len(content) < 5000
    sent = pickle.loads(content)
    sent.open()
    assert torch.equal(sent.batch(2, 0, 1).images_nchw, batch.images_nchw) and sent.identity() == task.identity()


def test_identity_knows_labels_and_settings(made: Made, tmp_path: Path) -> None:
    base = made.task().identity()
    assert made.task(SMALL.replace(crf="deeplab")).identity() == base
    for other in (made.task(SMALL.replace(lr=1e-3)), made.task(seed=4), made.task(stage="retrained"), made.task(ids=made.ids[:-1])):
        assert other.identity() != base
    other_labels = Made(tmp_path / "other", spoil=lambda i, labels: np.where(labels == 1, 0, labels).astype(np.uint8))
    assert other_labels.task().identity() != base


def test_masks_are_never_seen(made: Made, tmp_path: Path) -> None:
    other = Made(tmp_path / "other", mask=2)
    assert other.task().identity() == made.task().identity()
    assert torch.equal(other.task().batch(1, 0, 1).labels_nhw, made.task().batch(1, 0, 1).labels_nhw)


def spoiled(number: int, labels: np.ndarray) -> np.ndarray | None:
    if number == 2:
        return labels[:-1]
    if number == 5:
        return np.full_like(labels, 77)
    return None if number == 7 else labels


def test_labels_that_do_not_fit_are_set_aside(tmp_path: Path) -> None:
    made = Made(tmp_path, spoil=spoiled)
    task = made.task()
    for step in range(10):
        assert not set(task.batch(step, 0, 1).ids) & {"p002", "p005", "p007"}
    assert set(task.set_aside) == {"p002", "p005", "p007"}
    assert "is 34 x 31, the picture 34 x 32" in task.set_aside["p002"]
    assert "77, which is no class" in task.set_aside["p005"] and task.set_aside["p007"] == "no pseudo-label"


def test_too_few_pictures(made: Made) -> None:
    with pytest.raises(UserError, match="3 pictures have a pseudo-label") as error:
        made.task(ids=made.ids[:3])
    assert "--segmenter.batch 3" in error.value.remedy


# --- training -----------------------------------------------------------------------------------------


def test_all_ignored_and_absent_classes_train(tmp_path: Path) -> None:
    """Nothing labelled at all: every loss is 0, the weights stay finite. A class in no label does no harm."""
    nothing = Made(tmp_path / "nothing", spoil=lambda i, labels: np.full_like(labels, 255))
    loop.train(nothing.task(SMALL.replace(log_every=1)), tmp_path / "a")
    assert {line["terms"]["loss"] for line in loop.read_log(tmp_path / "a") if "terms" in line} == {0.0}
    absent = Made(tmp_path / "absent", spoil=lambda i, labels: np.where(labels == 2, 255, labels).astype(np.uint8))
    loop.train(absent.task(), tmp_path / "b")


class Stopped(Exception):
    pass


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16", "accumulate": 2, "loss": "balanced_half"}], ids=str)
def test_resumes_in_mid_epoch_with_the_same_bits(made: Made, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = SMALL.replace(checkpoint_every=3, **changes)
    loop.train(made.task(config), tmp_path / "whole")
    task = made.task(config)
    plain = task.batch

    def torn(step: int, rank: int, world: int) -> SegmentBatch:
        if step == 6:
            raise Stopped
        return plain(step, rank, world)

    task.batch = torn  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        loop.train(task, tmp_path / "torn")
    assert (tmp_path / "torn" / "checkpoint.pt").exists()
    loop.train(made.task(config), tmp_path / "torn")
    assert same(tmp_path / "whole", tmp_path / "torn")


def test_accumulation_is_the_mean_of_the_parts(made: Made) -> None:
    """By hand: each part's loss on its own, gradients averaged; and no graph is left of the first part when the second runs."""
    config = SMALL.replace(accumulate=2, batch_norm="fixed")
    task, batch = made.task(config), made.task(config).batch(0, 0, 1)
    torch.manual_seed(0)
    model: Any = task.build()
    model.train()
    loss = task.loss(model, batch, 0).losses["loss"]
    (loss * 3).backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    plain = made.task(SMALL.replace(batch_norm="fixed"))
    halves = [SegmentBatch(batch.images_nchw[rows], batch.labels_nhw[rows]) for rows in (slice(0, 2), slice(2, 4))]
    total = sum(plain.loss(model, half, 0).losses["loss"] for half in halves) / 2
    assert isinstance(total, torch.Tensor)
    (total * 3).backward()
    torch.testing.assert_close(loss.detach(), total.detach())
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-6)


def few_labels(number: int, labels: np.ndarray) -> np.ndarray:
    """Half of the pictures have all their labels, the others a few pixels, so that no two parts of a batch divide by like counts."""
    few = np.full_like(labels, 255)
    few[12:15, 12:15] = number % 4
    return few if number % 2 else labels


FIXED = SMALL.replace(batch_norm="fixed", optimizer="sgd", lr=0.02)  # no statistics: those are each worker's own
DEEPLAB = {"model": "deeplab_v2", "backbone": "resnet50", "crop": 33}  # labels reduced to scores of several sizes


@pytest.mark.parametrize(
    ("changes", "world"),
    [
        ({"batch": 5, "loss": "plain"}, 2),
        ({"batch": 5, "loss": "balanced_half"}, 3),
        ({"batch": 5, "loss": "balanced_dsrg"}, 2),
        ({"batch": 10, "accumulate": 2}, 2),
        ({"batch": 10, "accumulate": 2, "loss": "balanced_half"}, 3),
        ({"batch": 6, "accumulate": 3, "loss": "balanced_dsrg"}, 4),
        ({"batch": 3, **DEEPLAB}, 2),
    ],
    ids=str,
)
def test_workers_shares_add_up(tmp_path: Path, changes: dict[str, Any], world: int) -> None:
    """The loss and its gradients are those of one worker, in parts that lie across the shares too."""
    assert_alike(Made(tmp_path, spoil=few_labels).task(FIXED.replace(**changes)), 1, world)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"batch": 5}, {"batch": 10, "accumulate": 2, "loss": "balanced_half"}], ids=str)
def test_two_workers(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Twice the same bits; and the same weights and log as one worker but for the last bits."""
    made, config = Made(tmp_path / "made", spoil=few_labels), FIXED.replace(log_every=1, **changes)
    for name, workers in {"one": 1, "a": 2, "b": 2}.items():
        loop.train_locally(made.task(config), tmp_path / name, workers=workers)
    assert same(tmp_path / "a", tmp_path / "b")
    start, one, two = made.task(config).build().state_dict(), weights(tmp_path / "one"), weights(tmp_path / "a")
    moved = max(float((one[name] - start[name]).abs().max()) for name in one)
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-3 * moved
    logs = [[line["terms"]["loss"] for line in loop.read_log(tmp_path / name) if "terms" in line] for name in ("one", "a")]
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)


def artefact(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    stage = Stage(folder, "segmenter", "key", WEIGHTS)
    with stage.writer() as writer:
        for name, tensor in state.items():
            writer.add(weights_record(name, tensor.numpy(), str(tensor.numpy().dtype)))
    stage.finish(computed=len(state), seconds=0)
    return stage.folder


def test_it_learns_and_predicts(tmp_path: Path) -> None:
    """Patches of colors from their labels; predictions through the work that a run fans out."""
    made = Made(tmp_path / "made", count=32)
    config = SMALL.replace(steps=60, batch=8)
    loop.train(made.task(config), tmp_path / "run")
    log = loop.read_log(tmp_path / "run")
    facts = log[0]["facts"]
    assert (facts["initial_weights"], facts["initial_weights_trained_on"], facts["pictures"]) == ("none", "none", 32)
    folder = artefact(tmp_path, weights(tmp_path / "run"))
    work = PredictWork(str(made.store.path), None, folder, config, 4, "cpu", 1)
    confusion = Confusion(3)
    predicted = pickle.loads(pickle.dumps(work)).open()
    for i, ident in enumerate(made.ids):
        record = predicted(ident)
        labels = decode_png(record["label_map"])
        assert labels.shape == (record["height"], record["width"]) == made.store.size(ident)
        confusion.add(drawn(i, [c for c in range(3) if made.store.labels([ident])[0][c]])[1], labels, ident)
    assert confusion.iou()[1] > 0.7


def test_predictions_do_not_depend_on_what_came_before(made: Made) -> None:
    task = made.task()
    torch.manual_seed(1)
    model: Any = task.build()
    pixels = [made.store[i].pixels() for i in made.ids[:3]]
    for config in (SMALL, SMALL.replace(test_scales=(0.5, 1.0, 1.5)), SMALL.replace(test_flip=False)):
        first = [predict(model.eval(), p, config) for p in pixels]
        again = [predict(model.eval(), p, config) for p in reversed(pixels)][::-1]
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    mirrored = predict(model, pixels[0][:, ::-1].copy(), SMALL)
    assert (mirrored[:, ::-1] == predict(model, pixels[0], SMALL)).mean() > 0.99


def test_a_picture_of_one_pixel(made: Made) -> None:
    model: Any = made.task().build()
    one = np.zeros((1, 1, 3), np.uint8)
    assert predict(model.eval(), one, SMALL.replace(test_scales=(0.5, 1.0))).shape == (1, 1)


def test_labels_are_reduced_to_any_size() -> None:
    labels = torch.arange(35, dtype=torch.uint8).reshape(1, 5, 7)
    expected = np.asarray(Image.fromarray(labels[0].numpy()).resize((3, 2), Image.Resampling.NEAREST))
    assert np.array_equal(reduced_labels(labels, (2, 3))[0], expected)


def test_load_segmenter_refuses_nothing_silently(made: Made, tmp_path: Path) -> None:
    model: Any = made.task().build()
    folder = artefact(tmp_path, {n: t for n, t in model.state_dict().items() if "aspp" not in n})
    with pytest.raises(RuntimeError, match="aspp"):
        load_segmenter(folder, SMALL, 4)
