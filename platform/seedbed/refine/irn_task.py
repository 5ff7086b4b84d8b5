"""The training of IRN's network as a task of the loop. Sees pictures and the confidence labels made of their maps, never a mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from seedbed.artefacts import Fragments
from seedbed.artefacts.records import seeds_from, weights_from
from seedbed.classifier.task import top_left
from seedbed.config import digest
from seedbed.data.store import Store, open_store
from seedbed.data.transforms import generator, normalise, rescale
from seedbed.loop import share
from seedbed.loop.ahead import ahead
from seedbed.models.irn import STRIDE, IrnNet
from seedbed.models.weights import load_weights
from seedbed.optim import Optimizer, PolySGD
from seedbed.refine.irn_losses import irn_losses
from seedbed.refine.irn_settings import IrnConfig, IrnWalk
from seedbed.types import IGNORE, StepOutput, UserError

__all__ = ["IrnBatch", "IrnConfig", "IrnTask", "IrnWalk", "augmented"]

SHIFT = ("mean_shift/dy", "mean_shift/dx")
"""Names of the mean displacement in the training log."""


@dataclass(frozen=True)
class IrnBatch:
    """images_nchw float32 normalised; labels_nhw uint8 at stride 4: 0 background, class index + 1, from classes + 1 on ignored."""

    images_nchw: Tensor
    labels_nhw: Tensor
    ids: tuple[str, ...] = ()


@dataclass
class IrnTask:
    """What a worker is sent. A picture without a label, with one of another size, or that can't be decoded is set aside by name, and the
    next one takes its place, so that a step depends on nothing but its number.

    The loop has no step after the last one: the mean displacement is found by the validation after it, in which all workers take part, and
    stands in the log; `finished` puts it into the weights.
    """

    store: str
    cache: str | None
    ids: tuple[str, ...]
    labels: Path
    """Folder of the confidence labels' artefact."""
    config: IrnConfig
    seed: int
    classifier: Path | None = None
    """Folder of the classifier's artefact, whose backbone is taken with the weights `classifier`."""
    mean_shift_ids: tuple[str, ...] = ()
    """Pictures that the mean displacement is taken over (the official codes' infer list); empty: the training pictures."""
    set_aside: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.batch_size, self.pace = self.config.batch, self.config.pace()
        self._store: Store | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")} | {"_store": None}

    # --- data ---------------------------------------------------------------------------------------

    def open(self) -> None:
        if self._store is not None:
            return
        store, self._labels = open_store(self.store, cache=self.cache), Fragments(self.labels)
        self.set_aside.update({ident: "no confidence label" for ident in self.ids if ident not in self._labels})
        self._ids = [ident for ident in self.ids if ident in self._labels]
        self._epoch_steps = len(self._ids) // self.batch_size
        if self._epoch_steps == 0:
            message = f"{len(self._ids)} pictures have confidence labels, fewer than a batch of {self.batch_size}"
            remedy = f"say --refine.irn.batch {max(len(self._ids), 1)} or less, or name a larger split with --data.map-split"
            raise UserError(message, file=self.labels, field="--refine.irn.batch", remedy=remedy)
        self._num_labels = len(store.info.classes) + 1
        self._decoded: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._room = self.config.decoded_mb << 20
        self._store = store

    @property
    def data(self) -> Store:
        assert self._store is not None, "open() comes first"
        return self._store

    @property
    def steps(self) -> int:
        return self._epoch_steps * self.config.epochs

    def identity(self) -> str:
        labels = [self._labels.hashes[ident] for ident in self._ids]
        backbone = sorted(Fragments(self.classifier).hashes.items()) if self.classifier is not None else None
        pictures = self.data.inputs_checksum(self._ids), self.data.inputs_checksum(list(self.mean_shift_ids))
        return digest([self.config.training_key(), self.seed, *pictures, labels, backbone])

    def order(self, epoch: int) -> list[str]:
        """The training pictures as an epoch takes them."""
        return [self._ids[i] for i in generator(self.seed, "irn", "", epoch).permutation(len(self._ids))]

    def batch(self, step: int, rank: int, world: int) -> IrnBatch:
        epoch, at = divmod(step, self._epoch_steps)
        order = self.order(epoch)
        rows = range(at * self.batch_size, (at + 1) * self.batch_size)[share(self.batch_size, rank, world)]
        found = [self._readable(order, row) for row in rows]
        made = [augmented(pixels, labels, generator(self.seed, "irn", i, epoch), self.config) for i, pixels, labels in found]
        images, labels = (torch.stack(part) for part in zip(*made, strict=True))
        return IrnBatch(images, labels, tuple(i for i, _, _ in found))

    def _readable(self, order: Sequence[str], row: int) -> tuple[str, np.ndarray, np.ndarray]:
        """The picture of a row with its label, or the next one that has both."""
        for ident in (*order[row:], *order[:row]):
            found = self._decode(ident)
            if found is not None:
                return ident, *found
        remedy = "make the store again from a whole devkit, and the confidence labels from it"
        raise UserError("no picture with a confidence label can be used", file=self.labels, field="picture", remedy=remedy)

    def _decode(self, ident: str) -> tuple[np.ndarray, np.ndarray] | None:
        found = self._decoded.get(ident)
        if found is not None or ident in self.set_aside:
            return found
        try:
            pixels, labels = self.data[ident].pixels(), seeds_from(self._labels[ident]).label_map
        except Exception as error:  # one bad picture never ends a run
            reason = error.message if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self.set_aside[ident] = reason.splitlines()[0][:300]
            return None
        if labels.shape != pixels.shape[:2]:
            self.set_aside[ident] = f"its label has {_by(labels)} pixels, the picture {_by(pixels)}"
            return None
        if pixels.nbytes + labels.nbytes <= self._room:
            self._room -= pixels.nbytes + labels.nbytes
            self._decoded[ident] = pixels, labels
        return pixels, labels

    # --- model --------------------------------------------------------------------------------------

    def build(self) -> nn.Module:
        model = IrnNet(self.config.backbone)
        if self.config.weights == "classifier":
            self._loaded = self._take_backbone(model.backbone)
        else:
            self._loaded = load_weights(model.backbone, self.config.weights).source
        self._parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return model

    def _take_backbone(self, backbone: nn.Module) -> str:
        """The classifier's weights but its last layer's."""
        flag, remedy = "--refine.irn.weights", "choose the classifier's backbone with --refine.irn.backbone, or other weights"
        arrays = {} if self.classifier is None else weights_from(self.classifier)
        own = backbone.state_dict()
        differ = [name for name, value in own.items() if name not in arrays or arrays[name].shape != value.shape]
        if differ:
            message = f"the classifier has no {self.config.backbone} as its backbone: {differ[0]} is missing or of another shape"
            raise UserError(message, file=self.classifier, field=flag, remedy=remedy)
        backbone.load_state_dict({name: arrays[name] for name in own})
        return "classifier"

    def optimizer(self, model: nn.Module, steps: int) -> Optimizer:
        assert isinstance(model, IrnNet)
        c = self.config
        groups = [
            {"params": model.edge_parameters(), "lr": c.lr, "weight_decay": c.weight_decay},
            {"params": model.displacement_parameters(), "lr": c.lr * c.lr_displacement_factor, "weight_decay": c.weight_decay},
        ]
        return PolySGD(groups, c.lr, c.weight_decay, steps, momentum=c.momentum)

    def loss(self, model: nn.Module, batch: IrnBatch, step: int) -> StepOutput:
        """Means over the pairs of the (worker's share of the) batch, as in the official code."""
        edge, displacement = model(batch.images_nchw)
        return StepOutput(irn_losses(edge, displacement, batch.labels_nhw, self.config.radius, self._num_labels).terms())

    def facts(self) -> Mapping[str, Any]:
        return {
            "initial_weights": self._loaded,
            "parameters": self._parameters,
            "pictures": len(self._ids),
            "settings": self.config.to_dict(),
        }

    # --- mean displacement --------------------------------------------------------------------------

    def validates(self, done: int) -> bool:
        return self.config.mean_shift and done == self.steps

    def validate(self, model: nn.Module, device: str, rank: int, world: int) -> list[tuple[int, float, float]]:
        """Number and mean displacement of every batch that is this worker's: RECIPES, section 3, mean shift.

        The top left corner of every picture, not resized, zeros beyond it; the last incomplete batch is dropped unless it is the only one.
        """
        ids = self.mean_shift_ids or tuple(self._ids)
        numbers = range(max(len(ids) // self.batch_size, 1))
        found = []
        with closing(ahead(lambda number: self._corners(ids, number), numbers[rank::world], 1)) as batches:
            for number, images in batches:
                if images is not None:
                    dy, dx = model(images.to(device))[1].float().mean((0, 2, 3)).double().tolist()
                    found.append((number, dy, dx))
        return found

    def _corners(self, ids: Sequence[str], number: int) -> Tensor | None:
        images = []
        for ident in ids[number * self.batch_size : (number + 1) * self.batch_size]:
            try:
                images.append(top_left(self.data[ident].pixels(), self.config.crop))
            except Exception:  # set aside where it is trained on; here it only doesn't count
                continue
        return torch.stack(images) if images else None

    def judge(self, parts: Sequence[list[tuple[int, float, float]]]) -> Mapping[str, float]:
        means = [means for _, *means in sorted(batch for part in parts for batch in part)]
        return dict(zip(SHIFT, np.mean(means, axis=0).tolist(), strict=True)) if means else {}

    @staticmethod
    def finished(weights: Mapping[str, Tensor], log: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The trained weights (`weights.pt`) with the mean displacement of the training log (`read_log`) in its place."""
        for entry in log:
            if SHIFT[0] in entry:
                mean = torch.tensor([entry[name] for name in SHIFT], dtype=torch.float32)
                places = [name for name in weights if name.endswith("running_mean") and not name.startswith("backbone.")]
                return {**weights, **{name: mean.clone() for name in places}}
        return dict(weights)


def augmented(pixels: np.ndarray, labels: np.ndarray, rng: np.random.Generator, config: IrnConfig) -> tuple[Tensor, Tensor]:
    """RECIPES, section 3: a picture (h, w, 3) and its label (h, w), both uint8, to (3, crop, crop) float32 and (crop / 4, crop / 4) uint8.

    Draws, in this order: factor, mirror, rows, columns. Picture bicubic, label nearest, both Pillow's; zeros (the mean color) and IGNORE
    around what is smaller than the crop. The label is then reduced to the network's stride, nearest as well.
    """
    scale = float(rng.uniform(config.scale_low, config.scale_high))
    pixels = rescale(pixels, scale)
    labels = np.asarray(Image.fromarray(labels).resize(pixels.shape[1::-1], Image.Resampling.NEAREST))
    if config.flip and rng.random() < 0.5:
        pixels, labels = pixels[:, ::-1], labels[:, ::-1]
    crop = config.crop
    (rows, into_rows), (columns, into_columns) = (_window(side, crop, rng) for side in labels.shape)
    image = torch.zeros(3, crop, crop)
    image[:, into_rows, into_columns] = normalise(pixels[rows, columns])
    target = np.full((crop, crop), IGNORE, np.uint8)
    target[into_rows, into_columns] = labels[rows, columns]
    middle = STRIDE // 2  # Pillow's nearest of four is the third
    return image, torch.from_numpy(np.ascontiguousarray(target[middle::STRIDE, middle::STRIDE]))


def _window(side: int, crop: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Of one side: the part of the picture that is kept, and where in the crop it comes to lie."""
    offset = int(rng.integers(abs(side - crop), endpoint=True))
    if side > crop:
        return slice(offset, offset + crop), slice(0, crop)
    return slice(0, side), slice(offset, offset + side)


def _by(array: np.ndarray) -> str:
    return f"{array.shape[0]} x {array.shape[1]}"
