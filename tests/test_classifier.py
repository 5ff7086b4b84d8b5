"""The classifier's training: official values, what is drawn for a step, what is set aside, what validation says."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from seedbed import loop
from seedbed.classifier import ClassifierConfig, ClassifierTask
from seedbed.classifier.task import top_left
from seedbed.data import Store, StoreInfo, StoreWriter, open_store
from seedbed.data.transforms import TrainTransform, generator, normalise
from seedbed.metrics.classification import average_precision
from seedbed.optim import Adam, PolySGD
from seedbed.types import Sample, UserError

COLORS = ((220, 30, 30), (30, 200, 40), (40, 60, 230))
Make = Callable[..., Store]
Task = Callable[..., ClassifierTask]


def picture(labels: Sequence[int], number: int) -> bytes:
    """Noise of the pictures' own, with a patch in the color of each class; odd sizes."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(90, 160, (24 + number % 5, 30 - number % 4, 3), dtype=np.uint8)
    for c in np.flatnonzero(labels):
        pixels[4 + 6 * c : 10 + 6 * c, 5:20] = COLORS[c]
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format="PNG")
    return sink.getvalue()


@pytest.fixture
def make_store(tmp_path: Path) -> Make:
    def make(
        name: str = "store", train: int = 22, val: int = 7, unlabelled: Sequence[int] = (), broken: Sequence[int] = (), mask: bytes = b"m"
    ) -> Store:
        with StoreWriter(tmp_path / name, StoreInfo("made", ("red", "green", "blue"))) as writer:
            for i in range(train + val):
                labels = np.array([i % 2, i % 3 == 0, i % 5 in (1, 2)], np.uint8)
                content = picture(labels, i) if i not in broken else picture(labels, i)[:60]
                known = None if i in unlabelled else labels
                sample = Sample(f"p{i:03d}", content, 24, 30, known, None if known is None else "generator", {"class": mask})
                writer.add(sample, splits=("train" if i < train else "val",))
        return open_store(tmp_path / name)

    return make


SMALL = ClassifierConfig(
    backbone="small",
    weights="none",
    epochs=2,
    batch=4,
    optimizer="adam",
    lr=4e-3,
    schedule="cosine",
    transform=TrainTransform(resize_low=0, resize_high=0, crop=28),
)


@pytest.fixture
def make_task() -> Task:
    def make(store: Store, config: ClassifierConfig = SMALL, **changes: Any) -> ClassifierTask:
        named: dict[str, Any] = {"train_split": "train", "validation_split": "val", "seed": 3, **changes}
        task = ClassifierTask(store=str(store.path), cache=None, config=config, **named)
        task.open()
        return task

    return make


# --- settings -----------------------------------------------------------------------------------------


def test_defaults_are_the_official_values() -> None:
    """RECIPES, section 1: batch, epochs, rates, decay, cut after stage 2, fixed statistics, real momentum, augmentation."""
    c = ClassifierConfig().resolved()
    assert (c.backbone, c.weights, c.batch, c.epochs) == ("resnet50", "imagenet", 16, 5)
    assert (c.lr, c.lr * c.lr_classifier_factor, c.weight_decay, c.power, c.schedule) == (0.1, 1.0, 1e-4, 0.9, "poly")
    assert (c.trained, c.batch_norm, c.momentum, c.optimizer, c.precision) == ("stage3", "fixed", None, "sgd", "fp32")
    assert (c.transform.resize_low, c.transform.resize_high, c.transform.crop, c.transform.flip) == (320, 640, 512, True)
    assert c.warm_up == 0 and c.batch_scales == () and c.transform.scales == () and c.transform.brightness == 0
    c.check("classifier.")
    assert 10582 // c.batch * c.epochs == 3305


def test_without_weights_three_defaults_change_and_no_more() -> None:
    default, scratch = ClassifierConfig().resolved().to_dict(), ClassifierConfig(weights="none").resolved().to_dict()
    changed = {name: scratch[name] for name in default if scratch[name] != default[name]}
    assert changed == {"weights": "none", "trained": "all", "batch_norm": "trained", "momentum": 0.9}
    explicit = ClassifierConfig(weights="none", trained="stage3", batch_norm="fixed", momentum=1e-4).resolved()
    assert (explicit.trained, explicit.batch_norm, explicit.momentum) == ("stage3", "fixed", 1e-4)
    assert explicit.resolved() == explicit


def test_key_leaves_out_what_changes_nothing(tmp_path: Path) -> None:
    base = ClassifierConfig()
    for same in ({"log_every": 3}, {"prefetch": 4}, {"validate": "never"}, {"checkpoint_every": 7}, {"validation_split": "train"}):
        assert base.replace(**same).key() == base.key(), same
    for other in ({"lr": 0.2}, {"precision": "bf16"}, {"channels_last": False}, {"transform.crop": 321}, {"weights": "none"}):
        assert base.replace(**other).key() != base.key(), other
    one, two = tmp_path / "a.pth", tmp_path / "b.pth"
    one.write_bytes(b"weights")
    two.write_bytes(b"weights")
    assert base.replace(weights=str(one)).key() == base.replace(weights=str(two)).key()
    two.write_bytes(b"other weights")
    assert base.replace(weights=str(one)).key() != base.replace(weights=str(two)).key()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"optimizer": "adam", "momentum": 0.9}, "--classifier.momentum"),
        ({"backbone": "small", "trained": "stage3"}, "--classifier.trained"),
        ({"lr": 0.0}, "--classifier.lr"),
        ({"lr": float("nan")}, "--classifier.lr"),
        ({"batch": 0}, "--classifier.batch"),
        ({"momentum": 1.0}, "--classifier.momentum"),
        ({"transform.crop": 1}, "--classifier.transform.crop"),
        ({"backbone": "resnet51"}, "--classifier.backbone"),
    ],
    ids=str,
)
def test_settings_out_of_range(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as error:
        ClassifierConfig().replace(**changes).check("classifier.")
    assert error.value.field == field


def test_rates() -> None:
    rates = ClassifierConfig(schedule="cosine", warm_up=0.25).rates(8)
    assert [rates(i) for i in range(3)] == [0.5, 1.0, 1.0] and 0 < rates(7) < 0.1
    assert ClassifierConfig().rates(10)(5) == pytest.approx(0.5**0.9)
    assert ClassifierConfig(schedule="constant").rates(10)(9) == 1


# --- batches ------------------------------------------------------------------------------------------


def test_a_step_is_a_function_of_its_number(make_store: Make, make_task: Task) -> None:
    store = make_store()
    task, other = make_task(store), make_task(store)
    other.batch(9, 0, 1)
    for step in (7, 0, 3):
        batch, again = task.batch(step, 0, 1), other.batch(step, 0, 1)
        assert batch.ids == again.ids and torch.equal(batch.images_nchw, again.images_nchw)
        parts = [task.batch(step, rank, 3) for rank in range(3)]
        assert torch.equal(torch.cat([p.images_nchw for p in parts]), batch.images_nchw)
        assert sum((p.ids for p in parts), ()) == batch.ids
    assert not torch.equal(make_task(store, seed=4).batch(0, 0, 1).images_nchw, task.batch(0, 0, 1).images_nchw)


def test_epochs_and_augmentation(make_store: Make, make_task: Task) -> None:
    """Every picture once an epoch but those of the last incomplete batch, each with the augmentation of (seed, id, epoch)."""
    store = make_store()
    task = make_task(store)
    assert task.steps == 10  # 22 pictures in batches of 4, twice
    epochs = [[i for step in range(5 * e, 5 * e + 5) for i in task.batch(step, 0, 1).ids] for e in (0, 1)]
    for e, ids in enumerate(epochs):
        assert len(set(ids)) == 20 and ids == task.order(e)[:20] and sorted(task.order(e)) == store.ids("train")
    assert epochs[0] != epochs[1]
    batch = task.batch(6, 0, 1)
    for ident, image, labels in zip(batch.ids, batch.images_nchw, batch.labels_nc, strict=True):
        expected = task.config.transform(store[ident].pixels(), generator(3, "classifier", ident, 1))
        assert torch.equal(image, expected) and labels.tolist() == list(store.labels([ident])[0])


def test_one_scale_for_a_whole_batch(make_store: Make, make_task: Task) -> None:
    store = make_store()
    task = make_task(store, SMALL.replace(batch_scales=(0.75, 1.0, 1.34)))
    sides = [task.batch(step, 0, 1).images_nchw.shape[-2:] for step in range(10)]
    assert {tuple(s) for s in sides} == {(21, 21), (28, 28), (38, 38)} and sides == [
        task.batch(s, 1, 2).images_nchw.shape[-2:] for s in range(10)
    ]
    step = sides.index(torch.Size((21, 21)))
    plain = make_task(store).batch(step, 0, 1).images_nchw
    assert torch.equal(task.batch(step, 0, 1).images_nchw, F.interpolate(plain, (21, 21), mode="bilinear", align_corners=False))


def test_masks_are_never_seen(make_store: Make, make_task: Task, tmp_path: Path) -> None:
    one, other = make_store("one"), make_store("other", mask=b"quite another mask")
    assert one.truth_checksum("train") != other.truth_checksum("train")
    for store, name in ((one, "a"), (other, "b")):
        loop.train(make_task(store), tmp_path / name)
    a, b = (torch.load(tmp_path / name / "weights.pt", weights_only=True) for name in "ab")
    assert make_task(one).identity() == make_task(other).identity() and all(torch.equal(a[k], b[k]) for k in a)


def test_it_travels(make_store: Make, make_task: Task) -> None:
    task = make_task(make_store())
    batch = task.batch(2, 0, 1)
    content = pickle.dumps(task)
    assert len(content) < 5000, "pictures travel with the task"
    sent = pickle.loads(content)
    sent.open()
    assert torch.equal(sent.batch(2, 0, 1).images_nchw, batch.images_nchw) and sent.identity() == task.identity()


def test_decoded_pictures_are_kept_within_bounds(make_store: Make, make_task: Task) -> None:
    task = make_task(make_store(), SMALL.replace(decoded_mb=0))
    expected = make_task(make_store("again"))
    assert torch.equal(task.batch(0, 0, 1).images_nchw, expected.batch(0, 0, 1).images_nchw)
    assert not task._decoded and len(expected._decoded) == 4


# --- pictures that can't be used -----------------------------------------------------------------------


def test_pictures_without_label_are_set_aside(make_store: Make, make_task: Task) -> None:
    task = make_task(make_store(unlabelled=(2, 5)))
    assert task.set_aside == {"p002": "no class label", "p005": "no class label"}
    assert sorted(task.order(0)) == [f"p{i:03d}" for i in range(22) if i not in (2, 5)]


def test_a_picture_that_cannot_be_decoded_is_replaced(make_store: Make, make_task: Task, tmp_path: Path) -> None:
    task = make_task(make_store(broken=(2, 25)))
    order = task.order(0)
    at = order.index("p002")
    step = at // 4
    assert step < task.steps, "the seed leaves it out"
    ids = task.batch(step, 0, 1).ids
    assert ids[at % 4] == order[(at + 1) % 22] and "p002" not in ids
    assert list(task.set_aside) == ["p002"] and "p002 can't be read" in task.set_aside["p002"]
    loop.train(task, tmp_path)
    aside = {line["set_aside"]["id"] for line in loop.read_log(tmp_path) if "set_aside" in line}
    assert aside == {"p002", "p025"}  # the second one of the validation


@pytest.mark.parametrize(
    ("store", "changes", "words"),
    [
        ({"unlabelled": range(22)}, {}, ("no picture of split 'train' has a class label", "--data.train-split")),
        ({"train": 3}, {}, ("3 labelled pictures, fewer than a batch of 4", "--classifier.batch 3")),
        ({}, {"train_split": "nowhere"}, ("nowhere", "train (22)")),
        ({}, {"validation_split": "test"}, ("no split 'test' to validate on", "--classifier.validate never")),
        ({"unlabelled": range(22, 29)}, {}, ("no picture of split 'val' has a class label", "--classifier.validation-split")),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_a_user_can_mend(make_store: Make, make_task: Task, store: dict[str, Any], changes: dict[str, Any], words: tuple) -> None:
    with pytest.raises(UserError) as error:
        make_task(make_store(**store), **changes)
    for word in words:
        assert word in error.value.text()


def test_nothing_can_be_decoded(make_store: Make, make_task: Task) -> None:
    task = make_task(make_store(broken=range(22)))
    with pytest.raises(UserError, match="can be decoded"):
        task.batch(0, 0, 1)


def test_limit(make_store: Make, make_task: Task) -> None:
    task = make_task(make_store(), limit=11)
    assert sorted(task.order(0)) == [f"p{i:03d}" for i in range(0, 22, 2)]


# --- model ----------------------------------------------------------------------------------------------


def test_two_groups_with_the_official_values(make_store: Make, make_task: Task) -> None:
    task = make_task(
        make_store(), ClassifierConfig(backbone="resnet18", weights="none", trained="stage3", batch_norm="fixed", momentum=1e-4)
    )
    model: Any = task.build()
    optimizer = task.optimizer(model, 100)
    assert isinstance(optimizer, PolySGD)
    assert [(g["lr"], g["weight_decay"], g["momentum"]) for g in optimizer.param_groups] == [(0.1, 1e-4, 1e-4), (1.0, 1e-4, 1e-4)]
    backbone, head = optimizer.param_groups
    assert head["params"] == list(model.classifier.parameters())
    assert {id(p) for p in backbone["params"]} == {id(p) for p in model.suffix_parameters()}
    quirk = ClassifierTask.optimizer(make_task(make_store("b"), ClassifierConfig(batch=4, weight_decay=5e-4)), model, 100)
    assert {g["momentum"] for g in quirk.param_groups} == {5e-4}, "the official code's momentum is its weight decay"


@pytest.mark.parametrize("batch_norm", ["fixed", "trained"])
def test_what_moves(make_store: Make, make_task: Task, tmp_path: Path, batch_norm: Any) -> None:
    config = ClassifierConfig(
        backbone="resnet18",
        weights="none",
        trained="stage3",
        batch_norm=batch_norm,
        epochs=1,
        batch=11,
        lr=0.01,
        validate="never",
        transform=TrainTransform(resize_low=0, resize_high=0, crop=32),
    )
    task = make_task(make_store(), config)
    started: list[dict[str, torch.Tensor]] = []
    task.optimizer = lambda model, steps, make=task.optimizer: (  # type: ignore[method-assign,misc]
        started.append({k: v.clone() for k, v in model.state_dict().items()}) or make(model, steps)
    )
    loop.train(task, tmp_path)
    end = torch.load(tmp_path / "weights.pt", weights_only=True)
    moved = {name for name, tensor in end.items() if not torch.equal(tensor, started[0][name])}
    statistics = {name for name in moved if "running_" in name or name.endswith("num_batches_tracked")}
    weights = moved - statistics
    assert {name.split(".")[0] for name in weights} == {"layer3", "layer4", "classifier"}
    assert all(name in weights for name in end if name.startswith(("layer3", "layer4")) and name.endswith(("weight", "bias")))
    assert bool(statistics) == (batch_norm == "trained")


def test_adam_for_small_networks(make_store: Make, make_task: Task) -> None:
    task = make_task(make_store())
    optimizer = task.optimizer(task.build(), task.steps)
    assert isinstance(optimizer, Adam)
    assert [g["lr"] for g in optimizer.param_groups] == [pytest.approx(4e-3), pytest.approx(4e-2)]
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(task.build().parameters()))


def test_it_learns(make_store: Make, make_task: Task, tmp_path: Path) -> None:
    """Colors of patches, from few pictures."""
    task = make_task(make_store(train=40, val=12), SMALL.replace(epochs=8, lr=8e-3))
    loop.train(task, tmp_path)
    log = loop.read_log(tmp_path)
    maps, losses = ([line[name] for line in log if name in line] for name in ("val/mAP", "val/loss"))
    assert len(maps) == 8 and maps[-1] > 95 and losses[-1] < 0.6 * losses[0]
    facts = log[0]["facts"]
    assert facts["initial_weights"] == "none" and facts["pictures"] == 40 and facts["validation_pictures"] == 12
    assert facts["settings"]["trained"] == "all" and facts["settings"]["epochs"] == 8


# --- validation -----------------------------------------------------------------------------------------


def test_validation_by_hand(make_store: Make, make_task: Task) -> None:
    """The official transform and loss (whole batches only), average precision over every picture; the same by two workers."""
    store = make_store()
    task = make_task(store)
    torch.manual_seed(0)
    model = task.build().eval()
    with torch.no_grad():
        found = task.judge([task.validate(model, "cpu", 0, 1)])
        shared = task.judge([task.validate(model, "cpu", rank, 2) for rank in (0, 1)])
        ids = store.ids("val")
        scores = torch.cat([model(top_left(store[i].pixels(), 28)[None]).mean((2, 3)) for i in ids])
    labels = store.labels(ids)
    first = F.multilabel_soft_margin_loss(scores[:4], torch.from_numpy(labels[:4]).float())
    assert found["val/loss"] == pytest.approx(float(first), rel=1e-5) and len(ids) == 7
    assert found["val/mAP"] == pytest.approx(100 * average_precision(scores.numpy(), labels)[1])
    assert shared == found
    everything = make_task(store, SMALL.replace(validation_drop_last=False))
    with torch.no_grad():
        kept = everything.judge([everything.validate(model, "cpu", 0, 1)])
    whole = F.multilabel_soft_margin_loss(scores, torch.from_numpy(labels).float())
    assert kept["val/loss"] == pytest.approx(float(whole), rel=1e-5)


@pytest.mark.parametrize(("when", "steps"), [("epoch", [5, 10]), ("end", [10]), ("never", [])])
def test_when_it_is_validated(make_store: Make, make_task: Task, when: Any, steps: list[int]) -> None:
    task = make_task(make_store(), SMALL.replace(validate=when))
    assert [done for done in range(1, task.steps + 1) if task.validates(done)] == steps


def test_validation_changes_no_bit(make_store: Make, make_task: Task, tmp_path: Path) -> None:
    store = make_store()
    for when in ("epoch", "never"):
        loop.train(make_task(store, SMALL.replace(validate=when)), tmp_path / when)
    a, b = (torch.load(tmp_path / when / "weights.pt", weights_only=True) for when in ("epoch", "never"))
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
def test_two_workers(make_store: Make, make_task: Task, tmp_path: Path) -> None:
    """Uneven shares, a picture that one of them can't decode, validation put together from both."""
    task = make_task(make_store(train=40, val=12, broken=(3, 43)), SMALL.replace(batch=5, epochs=6, precision="bf16"))
    loop.train_locally(task, tmp_path, workers=2)
    log = loop.read_log(tmp_path)
    assert [line["val/mAP"] for line in log if "val/mAP" in line][-1] > 80
    assert {line["set_aside"]["id"] for line in log if "set_aside" in line} == {"p003", "p043"}


@pytest.mark.parametrize(("height", "width"), [(20, 40), (40, 20), (28, 28)])
def test_top_left(height: int, width: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = top_left(pixels, 28)
    h, w = min(height, 28), min(width, 28)
    assert out.shape == (3, 28, 28) and torch.equal(out[:, :h, :w], normalise(pixels)[:, :h, :w])
    assert not out[:, h:].any() and not out[:, :, w:].any()
