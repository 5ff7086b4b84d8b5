"""Made pictures with label maps, and what the trainings of both refinements' networks are put through alike."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from seedbed import loop
from seedbed.artefacts import LABELS, SCORED_LABELS, WEIGHTS, Stage
from seedbed.artefacts.records import label_record, scored_label_record, weights_record
from seedbed.data import StoreInfo, StoreWriter
from seedbed.models import build_network
from seedbed.types import IGNORE, Sample


def scene(number: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright block, and a label of it with an ignored rim; odd sizes."""
    rng = np.random.default_rng(number)
    height, width = 30 + number % 5, width - number % 4
    pixels = rng.integers(60, 120, (height, width, 3), dtype=np.uint8)
    labels = np.zeros((height, width), np.uint8)
    pixels[8:22, 9:30, number % 3] = 230
    labels[6:24, 7:32] = IGNORE
    labels[8:22, 9:30] = number % 3 + 1
    return pixels, labels


def one_hot(labels: np.ndarray) -> np.ndarray:
    """Scores (2, n + 1, h, w) that say a label map: what is ignored is background where there is much of it, and the last class, which
    the map does not have, where there is little."""
    other = max([0, *(int(v) for v in np.unique(labels) if v != IGNORE)]) + 1
    both = np.stack([np.where(labels == IGNORE, 0, labels), np.where(labels == IGNORE, other, labels)])
    return (both[:, None] == np.arange(other + 1)[:, None, None]).astype(np.float32)


def encoded(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format="PNG")
    return sink.getvalue()


def write_labelled(
    folder: Path,
    count: int,
    *,
    width: int,
    scored: bool = False,
    broken: int = -1,
    wrong: int = -1,
    missing: int = -1,
    change: Callable[[np.ndarray], np.ndarray] = lambda labels: labels,
) -> tuple[str, tuple[str, ...], Path]:
    """Store, ids and the labels' folder. One picture can't be decoded, one label has a row too few, one there is none of."""
    stage = Stage(folder / "out", "confidence", "k", SCORED_LABELS if scored else LABELS)
    ids = tuple(f"p{i:03d}" for i in range(count))
    with StoreWriter(folder / "store", StoreInfo("made", ("red", "green", "blue"))) as writer, stage.writer() as records:
        for i, ident in enumerate(ids):
            pixels, labels = scene(i, width)
            content = encoded(pixels)[: 60 if i == broken else None]
            writer.add(Sample(ident, content, *labels.shape, np.eye(3, dtype=np.uint8)[i % 3], "main"), splits=("train",))
            labels = labels[:-1] if i == wrong else change(labels)
            if i != missing:
                records.add(scored_label_record(ident, labels, one_hot(labels), 0.0) if scored else label_record(ident, labels, 0.0))
    return str(folder / "store"), ids, stage.folder


def write_weights(folder: Path, name: str, weights: Mapping[str, torch.Tensor]) -> Path:
    """A training's artefact."""
    stage = Stage(folder / "out", name, "w", WEIGHTS)
    with stage.writer() as writer:
        for tensor, value in weights.items():
            writer.add(weights_record(tensor, value.numpy(), value.numpy().dtype.str))
    return stage.folder


def small_classifier(folder: Path) -> tuple[dict[str, torch.Tensor], Path]:
    """The weights of a small classifier, and its artefact."""
    weights = build_network("small", 3).state_dict()
    return weights, write_weights(folder, "classifier", weights)


def trained_and_resumed(
    make: Callable[[Any], Any], config: Any, folder: Path, patch: pytest.MonkeyPatch
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Weights and log of a training, after it was found that a stop at step 13 changes no bit of it."""

    class Stopped(Exception):
        pass

    loop.train(make(config), folder / "whole")
    weights = torch.load(folder / "whole" / "weights.pt", weights_only=True)
    task = make(config.replace(checkpoint_every=5))
    kind, plain = type(task), type(task).batch

    def until(self: Any, step: int, rank: int, world: int) -> Any:
        if step == 13:
            raise Stopped
        return plain(self, step, rank, world)

    with patch.context() as patched:
        patched.setattr(kind, "batch", until)
        with pytest.raises(Stopped):
            loop.train(task, folder / "stopped")
    assert (folder / "stopped" / "checkpoint.pt").exists()
    loop.train(make(config.replace(checkpoint_every=5)), folder / "stopped")
    resumed = torch.load(folder / "stopped" / "weights.pt", weights_only=True)
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)
    return weights, loop.read_log(folder / "whole")


def same_in_two_parts(task: Any, again: Any, step: int) -> Any:
    """The step's batch; two workers of another process get its halves."""
    whole = task.batch(step, 0, 1)
    again.open()
    parts = [again.batch(step, rank, 2) for rank in (1, 0)][::-1]
    for name in ("images_nchw", "labels_nhw"):
        torch.testing.assert_close(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name), rtol=0, atol=0)
    assert task.identity() == again.identity()
    return whole
