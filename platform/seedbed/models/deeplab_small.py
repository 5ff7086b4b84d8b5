"""A segmenter for made pictures and for CPUs: a small backbone of stride 4 or 8, summed dilated convolutions on top.

Backbones: `small`, the network of the shapes set (stride 4), or a ResNet of basic blocks (`resnet18`, `resnet34`) to layer3, whose last
stride is taken away (stride 8). Tensors of the backbone keep their names behind `backbone.`, so that a classifier's weights fit.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.models.deeplab import SummedAspp
from seedbed.models.resnet import ResNet
from seedbed.models.segmenter import Group, Segmenter, named_group
from seedbed.models.small import SmallNet

RATES = {"small": (1, 3, 6), "resnet18": (1, 3, 6), "resnet34": (1, 3, 6)}
HIDDEN = 48


class SmallDeepLab(Segmenter):
    """num_classes with background."""

    input = "rgb"
    align_corners = False
    loss_at_input = True

    def __init__(self, num_classes: int, backbone: str = "small") -> None:
        super().__init__()
        network: Any = SmallNet(1) if backbone == "small" else ResNet(int(backbone.removeprefix("resnet")), 1)
        channels = network.layer3[-1].bn2.num_features if backbone != "small" else network.layer3.bn2.num_features
        if backbone != "small":
            del network.layer4
            _without_stride(network.layer3[0])
            self.depth = network.depth
        del network.classifier
        self.backbone = network
        squeeze = nn.Conv2d(channels, HIDDEN, 1, bias=False)
        nn.init.kaiming_normal_(squeeze.weight, mode="fan_out", nonlinearity="relu")
        self.squeeze = nn.Sequential(squeeze, nn.BatchNorm2d(HIDDEN))
        self.aspp = SummedAspp(HIDDEN, num_classes, RATES[backbone])

    def outputs(self, images_nchw: Tensor) -> list[Tensor]:
        x = self.backbone.prefix(images_nchw)
        layers = ("layer1", "layer2", "layer3") if isinstance(self.backbone, SmallNet) else ("layer3",)
        for name in layers:
            x = getattr(self.backbone, name)(x)
        return [self.aspp(F.relu(self.squeeze(x), inplace=True))]

    def groups(self) -> list[Group]:
        norms = {name for name, module in self.named_modules() if isinstance(module, nn.BatchNorm2d)}
        named = [(name, p) for name, p in self.named_parameters() if name.rpartition(".")[0] not in norms]
        head = ("squeeze.", "aspp.")
        return [
            named_group("backbone", 1, True, [(n, p) for n, p in named if not n.startswith(head)]),
            named_group("head", 10, True, [(n, p) for n, p in named if n.startswith(head) and n.endswith("weight")]),
            named_group("head bias", 20, False, [(n, p) for n, p in named if n.startswith(head) and n.endswith("bias")]),
        ]


def _without_stride(block: nn.Module) -> None:
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
