"""SEAM's network (Wang et al. 2020): a backbone, a classifier with a background, and the pixel correlation module (PCM).

The layers carry the names of SEAM's and HFPL's checkpoints. On ResNet-38d it is their network; on the other backbones the same layers
take the two stages before the last one, brought to the size of the class scores.
"""

from __future__ import annotations

from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.models import build_network
from seedbed.models.irn import stage_features, stage_shapes
from seedbed.models.resnet import ResNet
from seedbed.models.resnet38 import STEM, ResNet38Body, plain_name
from seedbed.models.resnet38_weights import load_resnet38
from seedbed.models.weights import FLAG, LoadReport, file_source, load_weights, read_checkpoint, require_finite
from seedbed.types import UserError

TINY = 1e-5
WIDTHS = (64, 128)
"""Channels that the affinity takes from each of the two stages; the picture's three come before them."""
AFFINITY = 192
"""Channels of the embedding in which pixels are compared."""
NEW = ("f8_3.", "f8_4.", "f9.", "fc8.")
"""What no backbone's weights hold."""
BLOCK = 1 << 26
"""Entries of the affinity that are held at once where no gradient is needed: 256 MB."""


class SeamMaps(NamedTuple):
    """logits (n, c + 1, h, w) at the network's stride; cam, the same enlarged to the picture, and cam_rv, revised by the PCM, both
    (n, c + 1, H, W). Channel 0 is the background's."""

    logits: Tensor
    cam: Tensor
    cam_rv: Tensor


def rectified_maps(scores_nchw: Tensor) -> Tensor:
    """What the PCM spreads, without a gradient: (n, c + 1, h, w) scores -> maps over their maximum, the strongest class alone.

    Rectified, less 1e-5, over the maximum + 1e-5; the background is 1 - the largest of the classes; at every position all classes but
    the strongest are zero.
    """
    with torch.no_grad():
        positive = scores_nchw.relu()
        maps = (positive - TINY).relu() / (positive.amax((2, 3), keepdim=True) + TINY)
        classes = maps[:, 1:]
        top = classes.amax(1, keepdim=True)
        return torch.cat([1 - top, classes * (classes >= top)], 1)


def correlate(maps_nchw: Tensor, embedding_nchw: Tensor) -> Tensor:
    """The pixel correlation module of Wang et al. 2020: y_i = sum_j s_ij m_j / sum_j s_ij, s_ij = ReLU(cosine(f_i, f_j)).

    Maps (n, c, h', w') and embedding f (n, k, h, w) -> (n, c, h, w). Maps of another size are brought to the embedding's (bilinear,
    corners aligned). 1e-5 is added to lengths and sums. Without gradients the affinity (h w) x (h w) is made a few columns at a time.
    """
    n, c = maps_nchw.shape[:2]
    size = embedding_nchw.shape[2:]
    maps = enlarged(maps_nchw, size).reshape(n, c, -1)
    maps = torch.cat([maps, torch.ones_like(maps[:, :1])], 1)  # its product is the sum that all others are divided by
    directions = embedding_nchw.reshape(n, embedding_nchw.shape[1], -1)
    lengths = directions.square().sum(1, keepdim=True).clamp_min(TINY**4).sqrt()  # a tenth of the time of torch's norm over this axis
    directions = directions / (lengths + TINY)
    positions = directions.shape[2]
    width = positions if torch.is_grad_enabled() else max(1, BLOCK // (n * positions))
    columns = []
    for part in directions.split(width, 2):
        affinity = (directions.transpose(1, 2) @ part).relu_()
        spread = maps @ affinity
        # Dividing what is summed rather than the affinity saves two copies of it.
        columns.append(spread[:, :c] / (spread[:, c:] + TINY))
    return torch.cat(columns, 2).view(n, c, *size)


def enlarged(x_nchw: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Bilinear, corners aligned, as all of SEAM's training has it.

    Where a gradient is wanted, by a matrix for each side: the gradient of torch's interpolation is slow on a CPU, and on a GPU not the same
    twice.
    """
    if x_nchw.shape[2:] == tuple(size):
        return x_nchw
    if not (torch.is_grad_enabled() and x_nchw.requires_grad):
        return F.interpolate(x_nchw, tuple(size), mode="bilinear", align_corners=True)
    with torch.autocast(x_nchw.device.type, enabled=False):
        x = x_nchw.float()
        down, across = (
            F.interpolate(torch.eye(have, device=x.device)[None], want, mode="linear", align_corners=True)[0]
            for have, want in zip(x.shape[2:], size, strict=True)
        )
        return down.T @ x @ across


class SeamNet(nn.Module):
    """(n, 3, H, W) -> (n, c, h, w) class logits at the network's stride, without the background's. `forward_seam` gives everything.

    `backbone`: resnet38 (stride 8), another ResNet by name (16) or small (4). Keeps to `methods.base.Network`.
    """

    def __init__(self, backbone: str, num_classes: int) -> None:
        super().__init__()
        if backbone == "resnet38":
            self.backbone: nn.Module = ResNet38Body()
            shapes = [(channels, ResNet38Body.stride) for channels in ResNet38Body.channels[1:]]
        else:
            self.backbone = build_network(backbone, num_classes)
            self.backbone.classifier = nn.Identity()
            shapes = stage_shapes(self.backbone)[-3:]
        channels, self.stride = [c for c, _ in shapes], shapes[-1][1]
        # The small network has no channel to spare, and none of PSA's dropouts either.
        self.dropout7 = nn.Dropout2d(0.0 if backbone == "small" else 0.5)
        self.f8_3, self.f8_4 = (nn.Conv2d(c, w, 1, bias=False) for c, w in zip(channels, WIDTHS, strict=False))
        self.f9 = nn.Conv2d(3 + sum(WIDTHS), AFFINITY, 1, bias=False)
        self.fc8 = nn.Conv2d(channels[-1], num_classes + 1, 1, bias=False)
        for layer in (self.f8_3, self.f8_4):
            nn.init.kaiming_normal_(layer.weight)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)
        nn.init.xavier_uniform_(self.fc8.weight)
        self.trained: Literal["stage3", "all"] = "all"

    # --- passes -------------------------------------------------------------------------------------

    def stages(self, images_nchw: Tensor) -> list[Tensor]:
        """Two stages and the features that the classifier sees."""
        backbone = self.backbone
        if isinstance(backbone, ResNet38Body):
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.trained == "all"):
                x = backbone.stem(images_nchw)
            return list(backbone.rest(x))[1:]
        if self.trained == "stage3" and isinstance(backbone, ResNet):
            with torch.no_grad():
                second = backbone.prefix(images_nchw)
            third = backbone.get_submodule("layer3")(second)
            return [second, third, backbone.get_submodule("layer4")(third)]
        return list(stage_features(backbone, images_nchw))[-3:]

    def forward_seam(self, images_nchw: Tensor) -> SeamMaps:
        """Class scores, and the two maps at the picture's size. What the affinity compares sends no gradient into the backbone, nor do
        the maps that it spreads."""
        logits, revised = self.low_resolution(images_nchw)
        size = images_nchw.shape[2:]
        return SeamMaps(logits, enlarged(logits, size), enlarged(revised, size))

    def low_resolution(self, images_nchw: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and revised maps (n, c + 1, h, w) at the network's stride, in float32: what `forward_seam` enlarges."""
        second, third, last = self.stages(images_nchw)
        logits = self.fc8(self.dropout7(last)).float()
        with torch.autocast(images_nchw.device.type, enabled=False):
            return logits, correlate(rectified_maps(logits), self.embedding(images_nchw, second, third, logits.shape[2:]))

    def embedding(self, images_nchw: Tensor, second: Tensor, third: Tensor, size: torch.Size) -> Tensor:
        """(n, 192, h, w): the picture and two stages, at one size, mixed by f9."""
        parts = [layer(enlarged(x.detach().float(), size)).relu() for layer, x in ((self.f8_3, second), (self.f8_4, third))]
        return self.f9(torch.cat([enlarged(images_nchw, size), *parts], 1))

    def forward(self, images_nchw: Tensor) -> Tensor:
        return self.fc8(self.dropout7(self.stages(images_nchw)[-1]))[:, 1:]

    def prefix(self, images_nchw: Tensor) -> Tensor:
        backbone = self.backbone
        return backbone.stem(images_nchw) if isinstance(backbone, ResNet38Body) else backbone.prefix(images_nchw)  # type: ignore[operator]

    def suffix(self, features_nchw: Tensor) -> Tensor:
        backbone = self.backbone
        if isinstance(backbone, ResNet38Body):
            last = backbone.rest(features_nchw).conv6
        else:
            last = backbone.suffix(features_nchw)  # type: ignore[operator]
        return self.fc8(self.dropout7(last))[:, 1:]

    # --- what is trained ----------------------------------------------------------------------------

    def train_from(self, trained: Literal["stage3", "all"]) -> SeamNet:
        """`stage3`: what the official codes train of this backbone; the rest then leaves no graph."""
        self.trained = trained
        if isinstance(self.backbone, ResNet38Body):
            self.backbone.freeze_stem(trained == "stage3")
        elif isinstance(self.backbone, ResNet):
            self.backbone.train_from(trained)
        return self

    def freeze_statistics(self, fixed: bool = True) -> SeamNet:
        """Fixed: batch norm uses its running statistics and leaves them as they are, in training mode too."""
        self.backbone.freeze_statistics(fixed)  # type: ignore[operator]
        return self

    def suffix_parameters(self) -> list[nn.Parameter]:
        """What the plain classifier's fine-tuning changes, without the last layer."""
        backbone = self.backbone
        if isinstance(backbone, ResNet38Body):
            return [p for name, p in backbone.named_parameters() if not name.startswith(STEM)]
        return backbone.suffix_parameters()  # type: ignore[operator]

    def classifier_parameters(self) -> list[nn.Parameter]:
        """All new layers: they have the larger learning rate. None has a bias."""
        return [p for name, p in self.named_parameters() if name.startswith(NEW)]

    # --- weights ------------------------------------------------------------------------------------

    def load_published(self, source: str | Path, field: str = FLAG) -> LoadReport:
        """A backbone's weights, or all of a SEAM checkpoint (HFPL's too); what did not match is in the report. UserError names the file."""
        if isinstance(self.backbone, ResNet38Body):
            return load_resnet38(self, source, field=field)
        if str(source) not in ("none", "imagenet"):
            state = {plain_name(name): value for name, value in read_checkpoint(Path(source), field).items()}
            if "f9.weight" in state:
                return self._fill(state, Path(source), field)
        heads = tuple(name for name in self.state_dict() if name.startswith(NEW))
        report = load_weights(self.backbone, source, field)
        matched, missing = (tuple(f"backbone.{name}" for name in names) for names in (report.matched, report.missing))
        return replace(report, matched=matched, missing=(*missing, *heads))

    def _fill(self, state: dict[str, Tensor], path: Path, field: str) -> LoadReport:
        """A checkpoint of this very network on another backbone than ResNet-38d: everything has to fit but the classes."""
        own = {plain_name(name): (name, value) for name, value in self.state_dict().items()}
        counted = [n for n in own if not n.endswith("num_batches_tracked")]
        wrong = [n for n in counted if n != "fc8.weight" and (n not in state or state[n].shape != own[n][1].shape)]
        if wrong:
            message = f"{path.name} holds the weights of another network: {wrong[0]} is missing or of another shape"
            remedy = "choose the backbone that the file belongs to with --classifier.backbone, or give another file"
            raise UserError(message, file=path, field=field, remedy=remedy)
        require_finite(state, path.name, path, field, shown=itemgetter(0))
        fits = {n: v for n, v in state.items() if n in own and v.shape == own[n][1].shape}
        self.load_state_dict({own[n][0]: v for n, v in fits.items()}, strict=False)
        fresh = tuple(own[n][0] for n in counted if n not in fits)
        return LoadReport(file_source(path), tuple(own[n][0] for n in fits), fresh, tuple(n for n in state if n not in fits))
