"""DeepLab-v1 with a large field of view on ResNet-38, as in YudeWang's codebase and HFPL, with their tensor names."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.models.resnet import BatchNorm
from seedbed.models.resnet38 import ResNet38Body
from seedbed.models.segmenter import Group, Segmenter, named_group

HIDDEN = 512
RATE = 12
MOMENTUM = 3e-4
"""Of every batch norm's running statistics."""
HEAD = ("conv_fov.", "conv_fov2.", "cls_conv.")


class DeepLabV1(Segmenter):
    """num_classes with background. Class scores at an eighth of the input; the loss looks at them at the input's size."""

    input = "rgb"
    align_corners = True
    resizing = "cubic"
    loss_at_input = True

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.backbone = ResNet38Body()
        self.conv_fov = nn.Conv2d(ResNet38Body.channels[-1], HIDDEN, 3, 1, RATE, RATE, bias=False)
        self.bn_fov = BatchNorm(HIDDEN)
        self.conv_fov2 = nn.Conv2d(HIDDEN, HIDDEN, 1, bias=False)
        self.bn_fov2 = BatchNorm(HIDDEN)
        self.dropout1 = nn.Dropout(0.5)
        self.cls_conv = nn.Conv2d(HIDDEN, num_classes, 1)
        for conv in (self.conv_fov, self.conv_fov2, self.cls_conv):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.momentum = MOMENTUM

    def outputs(self, images_nchw: Tensor) -> list[Tensor]:
        """[class scores]."""
        x = self.backbone(images_nchw).conv6
        x = F.relu(self.bn_fov(self.conv_fov(x)), inplace=True)
        x = F.relu(self.bn_fov2(self.conv_fov2(x)), inplace=True)
        return [self.cls_conv(self.dropout1(x))]

    def groups(self) -> list[Group]:
        """Backbone convolutions; the head's weights at 10 times the rate; the classifier's bias at 20 times, without decay."""
        named = [(name, p) for name, p in self.named_parameters() if ".bn" not in f".{name}"]
        return [
            named_group("backbone", 1, True, [(n, p) for n, p in named if n.startswith("backbone.")]),
            named_group("head", 10, True, [(n, p) for n, p in named if n.startswith(HEAD) and n.endswith("weight")]),
            named_group("head bias", 20, False, [(n, p) for n, p in named if n.startswith(HEAD) and n.endswith("bias")]),
        ]

    def compiled(self) -> nn.Module:
        return self.backbone
