"""A network for made pictures: 53 thousand parameters, output stride 4, receptive field 47 pixels.

Deep enough to know a head, a tint or a texture from one another, shallow enough that a map still tells where the evidence lies, and cheap
enough that it is trained in a minute on one core.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class SmallNet(nn.Module):
    """The stem is the prefix, which fine-tuning leaves alone; the blocks and the classifier are the suffix."""

    stride = 4

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = Block(16, 24, stride=2)
        self.layer2 = Block(24, 24)
        self.layer3 = Block(24, 48)
        self.classifier = nn.Conv2d(48, num_classes, 1, bias=False)
        self.statistics_fixed = False
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, std=0.01)

    def prefix(self, images_nchw: Tensor) -> Tensor:
        # with so few channels the layout decides: a third faster on a CPU
        images_nchw = images_nchw.contiguous(memory_format=torch.channels_last)
        return F.relu(self.bn1(self.conv1(images_nchw)), inplace=True)

    def suffix(self, features_nchw: Tensor) -> Tensor:
        return self.classifier(self.layer3(self.layer2(self.layer1(features_nchw))))

    def forward(self, images_nchw: Tensor) -> Tensor:
        """(n, 3, h, w) -> (n, c, ceil(h / 4), ceil(w / 4)) class logits."""
        return self.suffix(self.prefix(images_nchw))

    def suffix_parameters(self) -> list[nn.Parameter]:
        """What fine-tuning changes, without the classifier."""
        return [p for layer in (self.layer1, self.layer2, self.layer3) for p in layer.parameters()]

    def classifier_parameters(self) -> list[nn.Parameter]:
        return list(self.classifier.parameters())

    def freeze_statistics(self, fixed: bool = True) -> SmallNet:
        """Fixed: batch normalization uses its running statistics and leaves them alone, in training mode too."""
        self.statistics_fixed = fixed
        return self.train(self.training)

    def train(self, mode: bool = True) -> SmallNet:
        super().train(mode)
        if self.statistics_fixed:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self
