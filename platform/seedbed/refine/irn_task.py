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
from seedbed.classifier.task import top_left
from seedbed.config import digest
from seedbed.data.transforms import generator, normalise, rescale
from seedbed.loop import share
from seedbed.loop.ahead import ahead
from seedbed.models.irn import STRIDE, IrnNet
from seedbed.optim import Optimizer, PolySGD
from seedbed.refine.initial_backbone import fill_backbone
from seedbed.refine.irn_losses import irn_losses, pair_counts
from seedbed.refine.irn_settings import IrnConfig, IrnWalk
from seedbed.refine.labelled_pictures import LabelledPictures, window
from seedbed.types import IGNORE, StepOutput

__all__ = ["IrnBatch", "IrnConfig", "IrnTask", "IrnWalk", "augmented"]

SHIFT = ("mean_shift/dy", "mean_shift/dx")
"""Names of the mean displacement in the training log."""


@dataclass(frozen=True)
class IrnBatch:
    """images_nchw float32 normalised; labels_nhw uint8 at stride 4: 0 background, class index + 1, from classes + 1 on ignored."""

    images_nchw: Tensor
    labels_nhw: Tensor
    ids: tuple[str, ...] = ()
    counts: Tensor | None = None
    """With several workers: (b, 3) int64, `pair_counts` of every picture of the whole batch."""
    first: int = 0


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
        self._pictures: LabelledPictures | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")} | {"_pictures": None}

    # --- data ---------------------------------------------------------------------------------------

    def open(self) -> None:
        if self._pictures is None:
            place = self.store, self.cache, self.labels, self.ids, self.set_aside
            pictures = LabelledPictures(*place, self.config.decoded_mb, "irn", self.seed, "confidence label")
            self._epoch_steps = pictures.steps(self.batch_size, "--refine.irn.batch")
            self._num_labels = len(pictures.store.info.classes) + 1
            self._pictures = pictures

    @property
    def pictures(self) -> LabelledPictures:
        assert self._pictures is not None, "open() comes first"
        return self._pictures

    @property
    def steps(self) -> int:
        return self._epoch_steps * self.config.epochs

    def identity(self) -> str:
        pictures, *labels = self.pictures.identity()
        seen_for_mean = self.pictures.store.inputs_checksum(list(self.mean_shift_ids))
        backbone = sorted(Fragments(self.classifier).hashes.items()) if self.classifier is not None else None
        return digest([self.config.training_key(), self.seed, pictures, seen_for_mean, labels, backbone])

    def batch(self, step: int, rank: int, world: int) -> IrnBatch:
        epoch, at = divmod(step, self._epoch_steps)
        order = self.pictures.order(epoch)
        rows = range(at * self.batch_size, (at + 1) * self.batch_size)[share(self.batch_size, rank, world)]
        found = [self.pictures.at(order, row) for row in rows]
        made = [augmented(pixels, labels, generator(self.seed, "irn", i, epoch), self.config) for i, pixels, labels in found]
        images, labels = (torch.stack(part) for part in zip(*made, strict=True))
        return IrnBatch(images, labels, tuple(i for i, _, _ in found))

    # --- model --------------------------------------------------------------------------------------

    def build(self) -> nn.Module:
        model = IrnNet(self.config.backbone)
        self._loaded = fill_backbone(model.backbone, self.config, self.classifier, "--refine.irn")
        self._parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return model

    def optimizer(self, model: nn.Module, steps: int) -> Optimizer:
        assert isinstance(model, IrnNet)
        c = self.config
        groups = [
            {"params": model.edge_parameters(), "lr": c.lr, "weight_decay": c.weight_decay},
            {"params": model.displacement_parameters(), "lr": c.lr * c.lr_displacement_factor, "weight_decay": c.weight_decay},
        ]
        return PolySGD(groups, c.lr, c.weight_decay, steps, momentum=c.momentum)

    def loss(self, model: nn.Module, batch: IrnBatch, step: int) -> StepOutput:
        """Means over the pairs of the batch, as in the official code."""
        edge, displacement = model(batch.images_nchw)
        whole = None if batch.counts is None else batch.counts.sum(0)
        return StepOutput(irn_losses(edge, displacement, batch.labels_nhw, self.config.radius, self._num_labels, whole).terms())

    def counts(self, batch: IrnBatch) -> Tensor:
        return pair_counts(batch.labels_nhw, self.config.radius, self._num_labels)

    def facts(self) -> Mapping[str, Any]:
        return {
            "initial_weights": self._loaded.source,
            "initial_weights_trained_on": self._loaded.trained_on,
            "parameters": self._parameters,
            "pictures": len(self.pictures.ids),
            "settings": self.config.to_dict(),
        }

    # --- mean displacement --------------------------------------------------------------------------

    def validates(self, done: int) -> bool:
        return self.config.mean_shift and done == self.steps

    def validate(self, model: nn.Module, device: str, rank: int, world: int) -> list[tuple[int, float, float]]:
        """Number and mean displacement of every batch that is this worker's: RECIPES, section 3, mean shift.

        The top left corner of every picture, not resized, zeros beyond it; the last incomplete batch is dropped unless it is the only one.
        """
        ids = self.mean_shift_ids or tuple(self.pictures.ids)
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
                images.append(top_left(self.pictures.store[ident].pixels(), self.config.crop))
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
    (rows, into_rows), (columns, into_columns) = (window(side, crop, rng) for side in labels.shape)
    image = torch.zeros(3, crop, crop)
    image[:, into_rows, into_columns] = normalise(pixels[rows, columns])
    target = np.full((crop, crop), IGNORE, np.uint8)
    target[into_rows, into_columns] = labels[rows, columns]
    middle = STRIDE // 2  # Pillow's nearest of four is the third
    return image, torch.from_numpy(np.ascontiguousarray(target[middle::STRIDE, middle::STRIDE]))
