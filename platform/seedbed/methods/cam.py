"""Class activation maps (Zhou et al. 2016) as IRN makes them: several scales, each with its mirror, rectified and added up."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from seedbed.methods.base import Companions
from seedbed.methods.maps import CamConfig, Precision, fixed_statistics, make_maps, merge_mirror, view_groups
from seedbed.models.passes import many_passes
from seedbed.types import Batch, Maps, StepOutput, Views

__all__ = ["Cam", "CamConfig"]


class Cam:
    name: ClassVar[str] = "cam"
    version: ClassVar[int] = 2

    def __init__(self, settings: CamConfig | None = None, precision: Precision = "fp32") -> None:
        self.settings = settings or CamConfig()
        self.precision = precision

    def loss(self, model: nn.Module, batch: Batch, step: int) -> StepOutput:
        """Multi-label logistic loss of the mean scores, averaged over classes and pictures."""
        scores = model(batch.images_nchw)
        return StepOutput(
            {"bce": F.multilabel_soft_margin_loss(scores.float().mean((2, 3)), batch.labels_nc)}, scores, classification="bce"
        )

    def localise(self, model: nn.Module, views: Views, labels: np.ndarray, companions: Companions | None = None) -> Maps:
        classes = np.flatnonzero(labels)
        place = next(model.parameters()).device
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        with torch.no_grad(), fixed_statistics(model):
            passes = many_passes(model)
            tensors = [view.to(place) for view in views.tensors]
            maps = [torch.empty(0)] * len(tensors)
            for group in view_groups(views.scales, tensors):
                found = passes.suffixes([passes.prefix(tensors[i], dtype) for i in group], dtype)
                for i, scores in zip(group, found, strict=True):
                    maps[i] = merge_mirror(scores[:, classes])
        return make_maps(views, classes, maps)
