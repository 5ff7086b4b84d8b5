"""ResNet 18, 34, 50 and 101 (He et al. 2016) as spatial classifiers of output stride 16, with torchvision's parameter names.

The stride of layer4 is removed and no dilation put in its place, as IRN and RIB have it; the classifier is a 1x1 convolution without
bias, so that its output before any pooling is the class activation map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Unit = Callable[[Tensor, nn.Conv2d, "BatchNorm", bool, Tensor | None], Tensor]
"""How a convolution is applied, with its batch norm, the shortcut that is added (or None) and the rectification (or none).
`models/passes.py` has another one, for many passes with the same weights."""

LAYOUT = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class BatchNorm(nn.BatchNorm2d):
    """Batch norm whose running statistics can be fixed: then they are used and never updated, in training mode too."""

    fixed = False

    def forward(self, input: Tensor) -> Tensor:
        if self.fixed:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(input)


def plain_unit(x: Tensor, conv: nn.Conv2d, norm: BatchNorm, rectify: bool, shortcut: Tensor | None = None) -> Tensor:
    x = norm(conv(x))
    if shortcut is not None:
        x = x.add_(shortcut)
    return x.relu_() if rectify else x


class Block(nn.Module):
    """A residual block: `conv1`, `bn1`, ... as torchvision names them; basic (two 3x3) or bottleneck (1x1, 3x3 with the stride, 1x1)."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = width * 4 if bottleneck else width
        shapes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        if not bottleneck:
            shapes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        for i, (before, after, size, step) in enumerate(shapes, 1):
            self.add_module(f"conv{i}", nn.Conv2d(before, after, size, step, size // 2, bias=False))
            self.add_module(f"bn{i}", BatchNorm(after))
        self.depth = len(shapes)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), BatchNorm(outputs))

    def pairs(self) -> list[tuple[nn.Conv2d, BatchNorm]]:
        """The convolutions of the residual branch with their batch norms."""
        return [(getattr(self, f"conv{i}"), getattr(self, f"bn{i}")) for i in range(1, self.depth + 1)]

    def shortcut_pair(self) -> list[tuple[nn.Conv2d, BatchNorm]]:
        """The projection of the shortcut, where there is one."""
        return [] if self.downsample is None else [tuple(self.downsample)]  # type: ignore[list-item]

    def forward(self, x: Tensor, unit: Unit = plain_unit) -> Tensor:
        shortcut = x
        for conv, norm in self.shortcut_pair():
            shortcut = unit(x, conv, norm, False, None)
        *inner, (conv, norm) = self.pairs()
        for each in inner:
            x = unit(x, *each, True, None)
        return unit(x, conv, norm, True, shortcut)


class ResNet(nn.Module):
    """Keeps to `methods.base.Network`: `prefix` is the stem to layer2, `suffix` layer3, layer4 and the classifier.

    (n, 3, h, w) -> (n, c, ceil(h / 16), ceil(w / 16)) class logits.
    """

    stride = 16

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        bottleneck = depth >= 50
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = BatchNorm(64)
        channels = 64
        for i, (blocks, stride) in enumerate(zip(LAYOUT[depth], (1, 2, 2, 1), strict=True)):
            layer = []
            for j in range(blocks):
                layer.append(Block(channels, 64 << i, stride if j == 0 else 1, bottleneck))
                channels = (64 << i) * (4 if bottleneck else 1)
            self.add_module(f"layer{i + 1}", nn.Sequential(*layer))
        self.depth = depth
        self.classifier = nn.Conv2d(channels, num_classes, 1, bias=False)
        self.trained: Literal["stage3", "all"] = "all"
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module is not self.classifier:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def train_from(self, trained: Literal["stage3", "all"]) -> ResNet:
        """`stage3`: nothing below layer3 is trained, as the official codes detach there; its pass then leaves no graph."""
        self.trained = trained
        for name, parameter in self.named_parameters():
            if name.startswith(("conv1.", "bn1.", "layer1.", "layer2.")):
                parameter.requires_grad_(trained == "all")
        return self

    def freeze_statistics(self, fixed: bool = True) -> ResNet:
        """Fixed: batch norm uses its running statistics and leaves them as they are, in training mode too."""
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.fixed = fixed
        return self

    def prefix(self, images_nchw: Tensor, unit: Unit = plain_unit) -> Tensor:
        x = F.max_pool2d(unit(images_nchw, self.conv1, self.bn1, True, None), 3, 2, 1)
        return self._blocks(x, ("layer1", "layer2"), unit)

    def suffix(self, features_nchw: Tensor) -> Tensor:
        return self.classifier(self.suffix_features(features_nchw))

    def suffix_features(self, features_nchw: Tensor, unit: Unit = plain_unit) -> Tensor:
        return self._blocks(features_nchw, ("layer3", "layer4"), unit)

    def forward(self, images_nchw: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trained == "all"):
            features = self.prefix(images_nchw)
        return self.suffix(features)

    def suffix_parameters(self) -> list[nn.Parameter]:
        """Weights of layer3 and layer4, batch-norm scale and shift included; the classifier's are apart."""
        return [p for name, p in self.named_parameters() if name.startswith(("layer3.", "layer4."))]

    def classifier_parameters(self) -> list[nn.Parameter]:
        return list(self.classifier.parameters())

    def _blocks(self, x: Tensor, layers: tuple[str, ...], unit: Unit) -> Tensor:
        for layer in layers:
            for block in getattr(self, layer):
                x = block(x, unit)
        return x
