"""The contract of a method, and of the networks it runs on. Small on purpose: one file adds a method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Protocol

import numpy as np
from torch import Tensor, nn

from seedbed.types import Batch, Maps, StepOutput, Views

Companions = Iterator[tuple[Tensor, Tensor]]
"""Per step: images (b, 3, h, w) float32 normalised, labels (b, c) float32. May end early."""


class Network(Protocol):
    """A classifier whose prediction is spatial: (n, 3, h, w) -> (n, c, h / stride, w / stride) class logits, bias-free.

    `prefix` is what fine-tuning never changes (ResNet: stem to stage 2), `suffix` the rest; forward is suffix(prefix(x)).
    """

    stride: int

    def prefix(self, images_nchw: Tensor) -> Tensor: ...

    def suffix(self, features_nchw: Tensor) -> Tensor: ...

    def suffix_parameters(self) -> list[nn.Parameter]: ...

    def classifier_parameters(self) -> list[nn.Parameter]: ...


class Method(Protocol):
    """What makes localisation maps.

    `localise` is never called under no_grad by the caller (RIB trains inside it) and leaves the model's weights exactly as it found them.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    """Code version: part of the stage's key; goes up whenever the output changes."""

    # A method whose network is not the plain classifier has besides: `build(backbone, num_classes) -> nn.Module`, a static method.

    def loss(self, model: nn.Module, batch: Batch, step: int) -> StepOutput: ...

    def localise(self, model: nn.Module, views: Views, labels: np.ndarray, companions: Companions | None) -> Maps: ...
