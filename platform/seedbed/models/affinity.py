"""AffinityNet (Ahn and Kwak 2018): features of a backbone's last stages, in whose differences the affinity of two pixels lies.

The layers carry the names of PSA's checkpoints. On ResNet-38d it is PSA's network; on the other backbones the same layers take the last
three stages, the coarse ones enlarged to the first of them.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.models import build_network
from seedbed.models.irn import stage_features, stage_shapes
from seedbed.models.resnet38 import STEM, ResNet38Body

WIDTHS = (64, 128, 256)
"""Channels that are taken from each of the three stages."""
NEW = ("f8_3.", "f8_4.", "f8_5.", "f9.")
"""What no backbone's weights hold."""


class AffinityNet(nn.Module):
    """(n, 3, h, w) -> (n, 448, ceil(h / stride), ceil(w / stride)): the last 1x1 convolution, before its ELU.

    `backbone`: resnet38 (stride 8), another ResNet by name (8) or small (4).
    """

    def __init__(self, backbone: str) -> None:
        super().__init__()
        if backbone == "resnet38":
            self.backbone: nn.Module = ResNet38Body()
            shapes = [(channels, 8) for channels in ResNet38Body.channels[1:]]
        else:
            self.backbone = build_network(backbone, 1)
            self.backbone.classifier = nn.Identity()
            shapes = stage_shapes(self.backbone)[-3:]
        self.stride = shapes[0][1]
        self.f8_3, self.f8_4, self.f8_5 = (nn.Conv2d(c, w, 1, bias=False) for (c, _), w in zip(shapes, WIDTHS, strict=True))
        self.f9 = nn.Conv2d(sum(WIDTHS), sum(WIDTHS), 1, bias=False)
        for layer in (self.f8_3, self.f8_4, self.f8_5):
            nn.init.kaiming_normal_(layer.weight)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)

    def forward(self, images_nchw: Tensor) -> Tensor:
        if isinstance(self.backbone, ResNet38Body):
            stages = list(self.backbone(images_nchw))[1:]
        else:
            stages = list(stage_features(self.backbone, images_nchw))[-3:]
        size = stages[0].shape[2:]
        parts = [F.elu(layer(x)) for layer, x in zip((self.f8_3, self.f8_4, self.f8_5), stages, strict=True)]
        return self.f9(torch.cat([p if p.shape[2:] == size else _enlarged(p, size) for p in parts], 1))

    def train_from(self, trained: Literal["stage3", "all"]) -> AffinityNet:
        """`stage3`: the stem, and the scale and shift of every batch norm, are left alone, as in PSA, SEAM and HFPL."""
        norms = {id(p) for m in self.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
        stem = STEM if isinstance(self.backbone, ResNet38Body) else ("conv1.", "layer1.") if self.stride == 8 else ("conv1.",)
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(trained == "all" or not (name.startswith(stem) or id(parameter) in norms))
        return self

    def freeze_statistics(self, fixed: bool = True) -> AffinityNet:
        """Fixed: batch norm uses its running statistics and leaves them as they are, in training mode too."""
        self.backbone.freeze_statistics(fixed)  # type: ignore[operator]
        return self

    def new_parameters(self) -> list[nn.Parameter]:
        return [p for name, p in self.named_parameters() if name.startswith(NEW)]

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""
        return [p for p in self.backbone.parameters() if p.requires_grad]


def _enlarged(x: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=False)
