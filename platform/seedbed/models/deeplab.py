"""DeepLab-v2 (Chen et al. 2018) on a ResNet in Caffe's layout, with multi-scale input, as deeplab-pytorch has it and names its tensors.

Tensors are named as in the published checkpoints (`base.layer2.block1.reduce.conv.weight`; layer2 is torchvision's layer1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.models.resnet import BatchNorm
from seedbed.models.segmenter import Group, Segmenter, named_group

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
RATES = (6, 12, 18, 24)
SCALES = (0.5, 0.75)


class ConvUnit(nn.Module):
    """Convolution without bias, batch norm, and where asked for rectification."""

    def __init__(
        self, inputs: int, outputs: int, size: int, stride: int = 1, padding: int = 0, dilation: int = 1, relu: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding, dilation, bias=False)
        self.bn = BatchNorm(outputs)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x.relu_() if self.relu else x


class Bottleneck(nn.Module):
    """1x1, dilated 3x3, 1x1, and the shortcut. The stride sits in the first 1x1 (Caffe) or in the 3x3 (torchvision's weights)."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int, first: bool, stride_in_3x3: bool) -> None:
        super().__init__()
        middle = outputs // 4
        early, late = (1, stride) if stride_in_3x3 else (stride, 1)
        self.reduce = ConvUnit(inputs, middle, 1, early)
        self.conv3x3 = ConvUnit(middle, middle, 3, late, dilation, dilation)
        self.increase = ConvUnit(middle, outputs, 1, relu=False)
        self.shortcut = ConvUnit(inputs, outputs, 1, stride, relu=False) if first else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.increase(self.conv3x3(self.reduce(x))).add_(self.shortcut(x)).relu_()


class Stem(nn.Module):
    """7x7 of stride 2, then 3x3 maximum of stride 2 whose size is rounded up."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvUnit(3, 64, 7, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv1(x), 3, 2, 1, ceil_mode=True)


class SummedAspp(nn.Module):
    """Parallel dilated 3x3 convolutions to class scores, summed."""

    def __init__(self, inputs: int, outputs: int, rates: Sequence[int], deviation: float = 0.01) -> None:
        super().__init__()
        for i, rate in enumerate(rates):
            branch = nn.Conv2d(inputs, outputs, 3, 1, rate, rate)
            nn.init.normal_(branch.weight, std=deviation)
            nn.init.zeros_(branch.bias)  # type: ignore[arg-type]
            self.add_module(f"c{i}", branch)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.children()
        total = first(x)
        for branch in others:
            total = total + branch(x)
        return total


class DeepLabBase(nn.Module):
    """One scale: (n, 3, h, w) -> (n, c, about h / 8, about w / 8) class scores."""

    def __init__(self, num_classes: int, blocks: Sequence[int], rates: Sequence[int], stride_in_3x3: bool) -> None:
        super().__init__()
        self.layer1 = Stem()
        channels = 64
        for i, (count, stride, dilation) in enumerate(zip(blocks, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)):
            outputs = 256 << i
            layer = nn.Sequential()
            for j in range(count):
                block = Bottleneck(channels, outputs, stride if j == 0 else 1, dilation, j == 0, stride_in_3x3)
                layer.add_module(f"block{j + 1}", block)
                channels = outputs
            self.add_module(f"layer{i + 2}", layer)
        self.aspp = SummedAspp(channels, num_classes, rates)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


class DeepLabV2(Segmenter):
    """The network on its input and on smaller copies of it; the element-wise maximum of the class scores counts.

    num_classes with background. `stride_in_3x3`: for torchvision's weights, which were trained so.
    """

    input = "bgr"
    align_corners = False

    def __init__(
        self,
        num_classes: int,
        depth: int = 101,
        *,
        blocks: Sequence[int] | None = None,
        rates: Sequence[int] = RATES,
        scales: Sequence[float] = SCALES,
        stride_in_3x3: bool = False,
    ) -> None:
        super().__init__()
        self.depth, self.scales, self.stride_in_3x3 = depth, tuple(scales), stride_in_3x3
        self.base = DeepLabBase(num_classes, BLOCKS[depth] if blocks is None else blocks, rates, stride_in_3x3)
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and ".aspp." not in f".{name}":
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def outputs(self, images_nchw: Tensor) -> list[Tensor]:
        """Class scores [full, each scale, maximum], each at its own size: the maximum at that of the first."""
        full = self.base(images_nchw)
        scaled = [self.base(shrunk(images_nchw, scale)) for scale in self.scales]
        fused = full
        for scores in scaled:
            fused = torch.maximum(fused, F.interpolate(scores, full.shape[-2:], mode="bilinear", align_corners=False))
        return [full, *scaled, fused] if scaled else [full]

    def compiled(self) -> nn.Module:
        return self.base

    def groups(self) -> list[Group]:
        """Backbone convolutions; ASPP weights at 10 times the rate; ASPP biases at 20 times, without decay. No batch norm."""
        named = [(name, p) for name, p in self.named_parameters() if ".bn." not in name]
        return [
            named_group("backbone", 1, True, [(n, p) for n, p in named if ".aspp." not in n]),
            named_group("head", 10, True, [(n, p) for n, p in named if ".aspp." in n and n.endswith("weight")]),
            named_group("head bias", 20, False, [(n, p) for n, p in named if ".aspp." in n and n.endswith("bias")]),
        ]


def shrunk(images_nchw: Tensor, scale: float) -> Tensor:
    """The input times a factor: sides floor(side * factor), bilinear, and the factor itself (not the ratio of sizes) in the coordinates.

    A side that would become 0 is continued first, so that it becomes 1.
    """
    lacking = [max(0, math.ceil(1 / scale) - side) for side in images_nchw.shape[-2:]]
    if any(lacking):
        images_nchw = F.pad(images_nchw, (0, lacking[1], 0, lacking[0]), mode="replicate")
    return F.interpolate(images_nchw, scale_factor=scale, mode="bilinear", align_corners=False, recompute_scale_factor=False)
