"""The segmenter's training as a task of the loop. Sees pictures and pseudo-labels, never a mask."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.artefacts import Fragments
from seedbed.artefacts.records import decode_png
from seedbed.config import digest
from seedbed.data.store import Store, open_store
from seedbed.data.transforms import generator
from seedbed.loop import share
from seedbed.models.segmenter import Segmenter
from seedbed.optim import Optimizer
from seedbed.refine.pseudo_labels import fill
from seedbed.segment.accumulate import accumulated
from seedbed.segment.augment import augmentation
from seedbed.segment.losses import pixel_counts, segmentation_loss
from seedbed.segment.networks import build_segmenter, initialise, segmenter_optimizer
from seedbed.segment.resample import pillow_nearest
from seedbed.segment.settings import SegmenterConfig
from seedbed.types import IGNORE, StepOutput, UserError


@dataclass(frozen=True)
class SegmentBatch:
    """images_nchw float32, as the network sees them; labels_nhw uint8, 255 where ignored."""

    images_nchw: Tensor
    labels_nhw: Tensor
    ids: tuple[str, ...] = ()
    counts: Tensor | None = None
    """With several workers: (b, 3 s) int64, `pixel_counts` of every picture of the whole batch at each of the s sizes of the scores."""
    first: int = 0
    """Place of these pictures in the whole batch."""


@dataclass
class SegmenterTask:
    """A segmenter's training: what a worker is sent. It opens store and labels itself; `loop.train` does the rest.

    Pictures without a label, with one of another size or with values that are no class, and pictures that can't be decoded are set aside;
    the next one takes their place, so that a step depends on nothing but its number.
    """

    store: str
    cache: str | None
    ids: tuple[str, ...]
    """Pictures that are trained on, in the order of their list."""
    labels: Path
    """Folder of the artefact with the labels."""
    config: SegmenterConfig
    seed: int
    num_classes: int
    """With background."""
    column: str = "labels"
    """Its column with the label map, a PNG."""
    stage: str = "segmenter"
    """Name of the training in the draws: the second one of a study draws others."""
    fill: Path | None = None
    """Folder of the predictions that stand in for ignored pixels; None: they stay ignored."""
    set_aside: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config = self.config.resolved()
        self.batch_size, self.pace = self.config.batch, self.config.pace()
        self._store: Store | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")} | {"_store": None}

    # --- data ---------------------------------------------------------------------------------------

    def open(self) -> None:
        if self._store is not None:
            return
        store = open_store(self.store, cache=self.cache)
        self._labels = Fragments(Path(self.labels))
        known = [ident for ident in self.ids if ident in self._labels]
        self.set_aside.update({ident: "no pseudo-label" for ident in self.ids if ident not in self._labels})
        self._ids = known
        self._filling = Fragments(self.fill) if self.fill is not None else None
        self._epoch_steps = len(known) // self.batch_size
        if self._epoch_steps == 0:
            message = f"{len(known)} pictures have a pseudo-label, fewer than a batch of {self.batch_size}"
            remedy = f"say --segmenter.batch {max(len(known), 1)} or less, or make labels of more pictures with --data.map-split"
            raise UserError(message, file=self.labels, field="--segmenter.batch", remedy=remedy)
        self._augment = augmentation(self.config, "bgr" if self.config.model == "deeplab_v2" else "rgb")
        self._decoded: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._room = self.config.decoded_mb << 20
        self._lock = threading.Lock()
        self._sizes: list[tuple[int, int]] | None = None
        self._store = store

    @property
    def data(self) -> Store:
        assert self._store is not None, "open() comes first"
        return self._store

    @property
    def steps(self) -> int:
        return self.config.steps

    def identity(self) -> str:
        labels = digest([self._labels.hashes[ident] for ident in self._ids])
        parts = (self.config.training_dict(), self.seed, self.stage, self.num_classes, self.column)
        filling = None if self._filling is None else sorted(self._filling.hashes.items())
        return digest([*parts, self.data.inputs_checksum(self._ids), labels, filling])

    def order(self, epoch: int) -> list[str]:
        """The pictures as an epoch takes them; those of its last incomplete batch are left out."""
        shuffled = generator(self.seed, self.stage, "", epoch).permutation(len(self._ids))
        return [self._ids[i] for i in shuffled]

    def batch(self, step: int, rank: int, world: int) -> SegmentBatch:
        epoch, at = divmod(step, self._epoch_steps)
        order = self.order(epoch)
        rows = range(at * self.batch_size, (at + 1) * self.batch_size)[share(self.batch_size, rank, world)]
        found = [self._usable(order, row) for row in rows]
        crops = [self._augment(pixels, labels, generator(self.seed, self.stage, i, epoch)) for i, pixels, labels in found]
        images, labels = (torch.stack(parts) for parts in zip(*crops, strict=True))
        return SegmentBatch(images, labels, tuple(ident for ident, *_ in found))

    def _usable(self, order: Sequence[str], row: int) -> tuple[str, np.ndarray, np.ndarray]:
        """The picture of a row with its label, or the next one that can be used."""
        for ident in (*order[row:], *order[:row]):
            pair = self._pair(ident)
            if pair is not None:
                return ident, *pair
        message, remedy = "no picture can be used with its pseudo-label", "look at the reasons in the report; make the labels again"
        raise UserError(message, file=self.labels, field=self.column, remedy=remedy)

    def _pair(self, ident: str) -> tuple[np.ndarray, np.ndarray] | None:
        pair = self._decoded.get(ident)
        if pair is None and ident not in self.set_aside:
            try:
                pair = self._read(ident)
            except Exception as error:  # one bad picture never ends a run
                reason = error.message if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                self.set_aside[ident] = reason.splitlines()[0][:300]
                return None
            size = pair[0].nbytes + pair[1].nbytes
            with self._lock:
                if size <= self._room and ident not in self._decoded:
                    self._room -= size
                    self._decoded[ident] = pair
        return pair

    def _read(self, ident: str) -> tuple[np.ndarray, np.ndarray]:
        pixels = self.data[ident].pixels()
        with self._lock:
            batch, row = self._labels.batch_of(ident)
        if self.column not in batch.schema.names:
            raise ValueError(f"the artefact has no column {self.column!r}")
        labels = decode_png(batch.column(self.column)[row].as_py())
        remedy = "make the pseudo-labels again from this store"
        if labels.shape != pixels.shape[:2]:
            sizes = f"{labels.shape[1]} x {labels.shape[0]}, the picture {pixels.shape[1]} x {pixels.shape[0]}"
            raise UserError(f"the pseudo-label of {ident} is {sizes}", field=self.column, remedy=remedy)
        counts = np.bincount(labels.ravel(), minlength=IGNORE + 1)
        foreign = np.flatnonzero(counts[self.num_classes : IGNORE])
        if len(foreign):
            value = self.num_classes + int(foreign[0])
            raise UserError(f"the pseudo-label of {ident} holds {value}, which is no class", field=self.column, remedy=remedy)
        if self._filling is not None:
            if ident not in self._filling:
                raise UserError(f"there is no prediction of {ident} to fill its label with", field="fill", remedy="make it again")
            with self._lock:
                batch, row = self._filling.batch_of(ident)
            labels = fill(labels, decode_png(batch.column("label_map")[row].as_py()))
        return pixels, labels

    # --- model --------------------------------------------------------------------------------------

    def build(self) -> nn.Module:
        model = build_segmenter(self.config, self.num_classes)
        self._initial = initialise(model, self.config)
        self._parameters = sum(p.numel() for p in model.parameters())
        if self.config.compile:
            model.compiled().compile()
        return model

    def optimizer(self, model: nn.Module, steps: int) -> Optimizer:
        assert isinstance(model, Segmenter)
        return segmenter_optimizer(model, self.config)

    def loss(self, model: nn.Module, batch: SegmentBatch, step: int) -> StepOutput:
        assert isinstance(model, Segmenter)
        parts = self._parts(batch)

        def part_loss(number: int) -> Tensor:
            rows, whole = parts[number]
            return sum_over_outputs(model, batch.images_nchw[rows], batch.labels_nhw[rows], self.config.loss, whole)

        if len(parts) == 1:
            loss = part_loss(0)
        else:
            loss = accumulated(part_loss, len(parts), [p for p in model.parameters() if p.requires_grad])
        if batch.counts is not None and len(parts) != self.config.accumulate:
            loss = loss * (len(parts) / self.config.accumulate)  # the mean over the whole batch's parts, of which these are some
        return StepOutput({"loss": loss})

    def _parts(self, batch: SegmentBatch) -> list[tuple[slice, Tensor | None]]:
        """The rows of each of the whole batch's parts that are in this share of it, and the counts of the part, (s, 3)."""
        size, count = self.batch_size // self.config.accumulate, len(batch.images_nchw)
        if batch.counts is None:
            return [(slice(at, at + size), None) for at in range(0, count, size)]
        found: list[tuple[slice, Tensor | None]] = []
        for start in range(0, self.batch_size, size):
            rows = slice(max(start - batch.first, 0), min(start + size - batch.first, count))
            if rows.start < rows.stop:
                found.append((rows, batch.counts[start : start + size].sum(0).reshape(-1, 3)))
        return found

    def counts(self, batch: SegmentBatch) -> Tensor:
        with self._lock:
            if self._sizes is None:
                self._sizes = score_sizes(self.config, self.num_classes)
        return torch.cat([pixel_counts(reduced_labels(batch.labels_nhw, size)) for size in self._sizes], 1)

    def facts(self) -> Mapping[str, Any]:
        return {
            "initial_weights": self._initial.report.source,
            "initial_weights_trained_on": self._initial.trained_on,
            "loaded": self._initial.report.text(),
            "parameters": self._parameters,
            "pictures": len(self._ids),
            "epochs": round(self.steps / self._epoch_steps, 3),
            "settings": self.config.to_dict(),
        }

    # --- validation: none, it could only choose by masks ----------------------------------------------

    def validates(self, done: int) -> bool:
        return False

    def validate(self, model: nn.Module, device: str, rank: int, world: int) -> None:
        return None

    def judge(self, parts: Sequence[Any]) -> Mapping[str, float]:
        return {}


def score_sizes(config: SegmenterConfig, num_classes: int) -> list[tuple[int, int]]:
    """Where a crop's labels are compared with its scores: the crop's own size, or that of every score map; nothing is computed for it."""
    with torch.device("meta"):
        model = build_segmenter(config, num_classes)
        crop = torch.empty(2, 3, config.crop, config.crop)
        compared = [crop] * len(model.outputs(crop)) if model.loss_at_input else model.outputs(crop)
    return [(scores.shape[-2], scores.shape[-1]) for scores in compared]


def sum_over_outputs(model: Segmenter, images_nchw: Tensor, labels_nhw: Tensor, form: Any, whole: Tensor | None = None) -> Tensor:
    """The losses of all score maps added, each with the labels at its own size (or the scores enlarged to the labels).

    whole (s, 3): of each map, the counts of the batch that these pictures are a part of.
    """
    total = images_nchw.new_zeros(())
    outputs = model.outputs(images_nchw)
    for scores, of_all in zip(outputs, [None] * len(outputs) if whole is None else whole, strict=True):
        size = scores.shape[-2:]
        if model.loss_at_input:
            enlarged = F.interpolate(scores.float(), labels_nhw.shape[-2:], mode="bilinear", align_corners=model.align_corners)
            total = total + segmentation_loss(enlarged, labels_nhw, form, of_all)
        else:
            total = total + segmentation_loss(scores, reduced_labels(labels_nhw, size), form, of_all)
    return total


def reduced_labels(labels_nhw: Tensor, size: Sequence[int]) -> Tensor:
    """(n, h, w) at another size, as Pillow's nearest resizing has it."""
    rows, columns = (
        torch.from_numpy(pillow_nearest(before, after)).to(labels_nhw.device)
        for before, after in zip(labels_nhw.shape[-2:], size, strict=True)
    )
    return labels_nhw.index_select(1, rows).index_select(2, columns)
