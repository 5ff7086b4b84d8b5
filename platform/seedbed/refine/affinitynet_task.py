"""AffinityNet's training as a task of the loop. Sees pictures and the labels made of their maps, never a mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seedbed.artefacts import Fragments
from seedbed.artefacts.records import SCORE_STEPS
from seedbed.config import digest
from seedbed.data.transforms import generator, normalise
from seedbed.loop import share
from seedbed.models.affinity import AffinityNet
from seedbed.optim import Optimizer, PolySGD
from seedbed.refine.affinitynet_loss import affinity_losses, pair_counts, reduced_labels
from seedbed.refine.affinitynet_settings import AffinityConfig
from seedbed.refine.initial_backbone import fill_backbone
from seedbed.refine.labelled_pictures import ScoredPictures, window
from seedbed.types import StepOutput

__all__ = ["AffinityBatch", "AffinityConfig", "AffinityTask", "augmented"]


@dataclass(frozen=True)
class AffinityBatch:
    """images_nchw float32 normalised; labels_nhw uint8 at the network's stride: 0 background, place in the picture's list + 1, IGNORE."""

    images_nchw: Tensor
    labels_nhw: Tensor
    ids: tuple[str, ...] = ()
    counts: Tensor | None = None
    """With several workers: (b, 3) int64, `pair_counts` of every picture of the whole batch."""
    first: int = 0


@dataclass
class AffinityTask:
    """What a worker is sent."""

    store: str
    cache: str | None
    ids: tuple[str, ...]
    labels: Path
    """Folder of the artefact with the random field's scores (`confidence.affinity_scores`)."""
    config: AffinityConfig
    seed: int
    classifier: Path | None = None
    """Folder of the classifier's artefact, whose backbone is taken with the weights `classifier`."""
    set_aside: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config = self.config.resolved()
        self.batch_size, self.pace = self.config.batch, self.config.pace()
        self._pictures: ScoredPictures | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")} | {"_pictures": None}

    # --- data ---------------------------------------------------------------------------------------

    def open(self) -> None:
        if self._pictures is None:
            megabytes, stage = self.config.decoded_mb, "affinitynet"
            pictures = ScoredPictures(self.store, self.cache, self.labels, self.ids, self.set_aside, megabytes, stage, self.seed)
            self._epoch_steps = pictures.steps(self.batch_size, "--refine.affinitynet.batch")
            with torch.device("meta"):
                self._stride = AffinityNet(self.config.backbone).stride
            self._pictures = pictures

    @property
    def pictures(self) -> ScoredPictures:
        assert self._pictures is not None, "open() comes first"
        return self._pictures

    @property
    def steps(self) -> int:
        return self._epoch_steps * self.config.epochs

    def identity(self) -> str:
        backbone = sorted(Fragments(self.classifier).hashes.items()) if self.config.weights == "classifier" and self.classifier else None
        return digest([self.config.training_key(), self.seed, self.pictures.identity(), backbone])

    def batch(self, step: int, rank: int, world: int) -> AffinityBatch:
        epoch, at = divmod(step, self._epoch_steps)
        order = self.pictures.order(epoch)
        rows = range(at * self.batch_size, (at + 1) * self.batch_size)[share(self.batch_size, rank, world)]
        found = [self.pictures.at(order, row) for row in rows]
        made = [
            augmented(pixels, scores, generator(self.seed, "affinitynet", ident, epoch), self.config, self._stride)
            for ident, pixels, scores in found
        ]
        images, labels = (torch.stack(part) for part in zip(*made, strict=True))
        return AffinityBatch(images, labels, tuple(ident for ident, _, _ in found))

    # --- model --------------------------------------------------------------------------------------

    def build(self) -> nn.Module:
        config, model = self.config, AffinityNet(self.config.backbone)
        self._loaded = fill_backbone(model.backbone, config, self.classifier, "--refine.affinitynet")
        model.freeze_statistics(config.batch_norm == "fixed")
        model.train_from(config.trained)  # type: ignore[arg-type]
        self._parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return model

    def optimizer(self, model: nn.Module, steps: int) -> Optimizer:
        """Two groups; the official codes' other two, of biases, are empty."""
        assert isinstance(model, AffinityNet)
        c = self.config
        groups = [
            {"params": model.backbone_parameters(), "lr": c.lr, "weight_decay": c.weight_decay},
            {"params": model.new_parameters(), "lr": c.lr * c.lr_new_factor, "weight_decay": c.weight_decay},
        ]
        return PolySGD(groups, c.lr, c.weight_decay, steps, momentum=c.momentum)

    def loss(self, model: nn.Module, batch: AffinityBatch, step: int) -> StepOutput:
        """Means over the pairs of the batch, as in the official code."""
        whole = None if batch.counts is None else batch.counts.sum(0)
        return StepOutput(affinity_losses(model(batch.images_nchw), batch.labels_nhw, self.config.radius, whole).terms())

    def counts(self, batch: AffinityBatch) -> Tensor:
        return pair_counts(batch.labels_nhw, self.config.radius)

    def facts(self) -> Mapping[str, Any]:
        return {
            "initial_weights": self._loaded.source,
            "initial_weights_trained_on": self._loaded.trained_on,
            "parameters": self._parameters,
            "pictures": len(self.pictures.ids),
            "settings": self.config.to_dict(),
        }

    # --- nothing is validated -----------------------------------------------------------------------

    def validates(self, done: int) -> bool:
        return False

    def validate(self, model: nn.Module, device: str, rank: int, world: int) -> None:
        return None

    def judge(self, parts: Sequence[Any]) -> Mapping[str, float]:
        return {}


def augmented(
    pixels: np.ndarray, scores_2nhw: np.ndarray, rng: np.random.Generator, config: AffinityConfig, stride: int = 8
) -> tuple[Tensor, Tensor]:
    """RECIPES, section 4b: a picture (h, w, 3) uint8 and its scores (2, n + 1, h, w) uint16 (`scores_from`) to a crop (3, crop, crop)
    float32 and its labels at the stride, uint8: the scores are averaged first, and only then is a place called sure of a class.

    Draws, in this order: colors, rows, columns, mirror. Not resized. What the crop has beyond the picture is black, not the mean color:
    the official code normalises after it; it has no scores, and its labels are ignored.
    """
    colored = config.jitter(pixels, rng)
    (rows, into_rows), (columns, into_columns) = (window(side, config.crop, rng) for side in pixels.shape[:2])
    way = -1 if config.flip and rng.random() < 0.5 else 1
    image = np.zeros((config.crop, config.crop, 3), np.uint8)
    image[into_rows, into_columns] = colored[rows, columns]
    scores = np.zeros((*scores_2nhw.shape[:2], config.crop, config.crop), np.float32)
    scores[:, :, into_rows, into_columns] = scores_2nhw[:, :, rows, columns] / np.float32(SCORE_STEPS)
    return normalise(image[:, ::way]), torch.from_numpy(reduced_labels(scores[..., ::way], stride))
