"""IRN's inter-pixel relation network (Ahn et al. 2019): class boundaries and displacements from the stages of a frozen backbone.

Every stage is brought to stride 4 by 1x1 convolutions; all that is trained are these. The layers carry the names of published checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.models import build_network
from seedbed.models.resnet import ResNet, plain_unit

STRIDE = 4
EDGE = (32, 4)
"""Channels and groups (of group norm) of a stage in the boundary branch."""
EARLY = ((64, 8), (128, 16))
"""The same of the first two stages in the displacement branch, which join its others last."""
LATE = (256, 16)


class MeanShift(nn.Module):
    """Takes the mean displacement of the training pictures off, at inference only; zero until it was measured (`refine/irn_task.py`)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.running_mean
        assert isinstance(mean, Tensor)
        return x if self.training else x - mean.view(1, -1, 1, 1)


class IrnNet(nn.Module):
    """(n, 3, h, w) -> logits of a class boundary (n, 1, h', w') and displacements (n, 2, h', w') as (dy, dx), both at stride 4.

    `backbone`: a ResNet by name, or `small`. It is never trained, its batch-norm statistics stay fixed, and no gradient reaches it.
    """

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.backbone = build_network(backbone, 1)
        self.backbone.classifier = nn.Identity()
        self.backbone.requires_grad_(False)
        self.backbone.freeze_statistics(True)  # type: ignore[operator]
        shapes = stage_shapes(self.backbone)
        meeting = shapes[len(EARLY)][1]  # the later stages meet at the stride of the first of them
        for number, (channels, stride) in enumerate(shapes, 1):
            self.add_module(f"fc_edge{number}", nn.Sequential(*_unit(channels, *EDGE, stride // STRIDE)))
            early = number <= len(EARLY)
            width, up = (EARLY[number - 1], stride // STRIDE) if early else (LATE, stride // meeting)
            self.add_module(f"fc_dp{number}", nn.Sequential(*_unit(channels, *width, up)))
        self.stages, late = len(shapes), len(shapes) - len(EARLY)
        self.add_module(f"fc_edge{self.stages + 1}", nn.Conv2d(EDGE[0] * self.stages, 1, 1))
        self.add_module(f"fc_dp{self.stages + 1}", nn.Sequential(*_unit(LATE[0] * late, *LATE, meeting // STRIDE)))
        self.mean_shift = MeanShift(2)
        joined = sum(channels for channels, _ in EARLY) + LATE[0]
        last = [*_unit(joined, *LATE, 1), nn.Conv2d(LATE[0], 2, 1, bias=False), self.mean_shift]
        self.add_module(f"fc_dp{self.stages + 2}", nn.Sequential(*last))
        self.train()

    def train(self, mode: bool = True) -> IrnNet:
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images_nchw: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            features = list(stage_features(self.backbone, images_nchw))
        size = features[1].shape[2:]
        edges = [_cropped(self.get_submodule(f"fc_edge{i}")(x), size) for i, x in enumerate(features, 1)]
        edge = self.get_submodule(f"fc_edge{self.stages + 1}")(torch.cat(edges, 1))
        moved = [self.get_submodule(f"fc_dp{i}")(x) for i, x in enumerate(features, 1)]
        early, late = moved[: len(EARLY)], moved[len(EARLY) :]
        met = torch.cat([_cropped(x, late[0].shape[2:]) for x in late], 1)
        merged = _cropped(self.get_submodule(f"fc_dp{self.stages + 1}")(met), size)
        return edge, self.get_submodule(f"fc_dp{self.stages + 2}")(torch.cat([*early, merged], 1))

    def edge_parameters(self) -> list[nn.Parameter]:
        """Of the boundary branch, group norm's included."""
        return [p for name, p in self.named_parameters() if name.startswith("fc_edge")]

    def displacement_parameters(self) -> list[nn.Parameter]:
        return [p for name, p in self.named_parameters() if name.startswith("fc_dp")]


def stage_shapes(backbone: nn.Module) -> list[tuple[int, int]]:
    """(channels, stride) of what `stage_features` gives: for a ResNet stem and pooling, then each of its four layers."""
    if isinstance(backbone, ResNet):
        layers = [getattr(backbone, f"layer{i}")[-1].pairs()[-1][0].out_channels for i in range(1, 5)]
        return [(64, 4), *zip(layers, (4, 8, 16, 16), strict=True)]
    return [(getattr(backbone, f"layer{i}").conv2.out_channels, 4) for i in range(1, 4)]


def stage_features(backbone: nn.Module, images_nchw: Tensor) -> Iterator[Tensor]:
    """The outputs of the backbone's stages, first to last."""
    if isinstance(backbone, ResNet):
        x = F.max_pool2d(plain_unit(images_nchw, backbone.conv1, backbone.bn1, True), 3, 2, 1)
        yield x
        for i in range(1, 5):
            x = getattr(backbone, f"layer{i}")(x)
            yield x
        return
    x = backbone.prefix(images_nchw)  # type: ignore[operator]
    for i in range(1, 4):
        x = getattr(backbone, f"layer{i}")(x)
        yield x


def _unit(inputs: int, outputs: int, groups: int, factor: int) -> list[nn.Module]:
    """1x1 convolution, group norm, enlargement, rectification, in this order."""
    enlarge = [nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=False)] if factor > 1 else []
    return [nn.Conv2d(inputs, outputs, 1, bias=False), nn.GroupNorm(groups, outputs), *enlarge, nn.ReLU(inplace=True)]


def _cropped(x: Tensor, size: torch.Size) -> Tensor:
    """What was enlarged may be some pixels larger than the finer map; the rest lies to the right and below."""
    return x[:, :, : size[0], : size[1]]
