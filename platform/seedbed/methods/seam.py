"""SEAM: Self-supervised Equivariant Attention Mechanism for Weakly Supervised Semantic Segmentation (Wang et al., CVPR 2020).

The classifier sees every picture twice, the second time reduced. Its maps, and those that the pixel correlation module (`models/seam.py`)
makes of them, are to be the same in both. docs/seam.md says where the official code goes beyond the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.config import Settings, bounded
from seedbed.methods.base import Companions
from seedbed.methods.maps import CamConfig, fixed_statistics, make_maps, max_normalised
from seedbed.models.seam import SeamNet, enlarged
from seedbed.types import Batch, Maps, StepOutput, UserError, Views

Branch = tuple[Tensor, Tensor]
"""cam and cam_rv of a batch, both (n, c + 1, h, w), the background first, as the network gives them."""


@dataclass(frozen=True)
class SeamConfig(Settings):
    """SEAM's settings; defaults are its official code, which HFPL shares."""

    second_scale: float = bounded(0.3, 0, 1, open_low=True)
    """Factor of the second branch's picture. SEAM, HFPL: 0.3."""
    ecr_share: float = bounded(0.2, 0, 1, open_low=True)
    """Share of the values, over classes and positions, that enter the equivariant cross regularisation: the largest. SEAM, HFPL: 0.2."""
    rvmin_share: float = bounded(0.25, 0, 1, open_low=True)
    """Share of the positions that the minimum pooling takes: the lowest. SEAM, HFPL: 1/4."""
    rvmin_weight: float = bounded(1.0, 0, 1e4)
    """Weight of the minimum pooling; 0: none. SEAM, HFPL: 1."""
    er_weight: float = bounded(1.0, 0, 1e4)
    """Weight of the equivariant regularisation. SEAM, HFPL: 1."""
    ecr_weight: float = bounded(1.0, 0, 1e4)
    """Weight of the equivariant cross regularisation. SEAM, HFPL: 1."""
    output: Literal["cam_rv", "cam"] = "cam_rv"
    """Maps at inference: those that the pixel correlation module revised, or the class scores. SEAM, HFPL: cam_rv."""


def classification_loss(cam_nchw: Tensor, labels_nc: Tensor) -> Tensor:
    """L_cls of one branch, Wang et al. 2020: multi-label logistic loss of a map's mean over the positions; the background has none."""
    return F.multilabel_soft_margin_loss(cam_nchw[:, 1:].mean((2, 3)), labels_nc)


def rvmin_loss(cam_rv_nchw: Tensor, labels_nc: Tensor, share: float = 0.25) -> Tensor:
    """Minimum pooling of SEAM's code: at every position the largest of the picture's own classes; the mean of the lowest share, rectified.

    It keeps the revised map from covering the whole picture. Where a value is below that of the absent classes, 0, it counts as 0.
    """
    top = (cam_rv_nchw[:, 1:] * labels_nc[:, :, None, None]).amax(1).flatten(1)
    lowest = top.topk(max(1, int(top.shape[1] * share)), 1, largest=False).values
    return lowest.relu().mean()


def er_loss(one_nchw: Tensor, other_nchw: Tensor) -> Tensor:
    """L_ER, Wang et al. 2020: mean absolute difference of two branches' maps, over all classes without the background."""
    return (one_nchw[:, 1:] - other_nchw[:, 1:]).abs().mean()


def ecr_loss(reference_nchw: Tensor, revised_nchw: Tensor, share: float = 0.2) -> Tensor:
    """One half of L_ECR, Wang et al. 2020: absolute difference of a branch's revised map and the other's reference, mean of the largest.

    Of the reference only the strongest class at every position stays, beside the background; it is a constant for the gradient.
    """
    difference = (strongest_class(reference_nchw) - revised_nchw).abs().flatten(1)
    return difference.topk(max(1, int(difference.shape[1] * share)), 1).values.mean()


def strongest_class(maps_nchw: Tensor) -> Tensor:
    """(n, c + 1, h, w), without a gradient: at every position all classes but the strongest are 0; the background is left."""
    with torch.no_grad():
        classes = maps_nchw[:, 1:]
        return torch.cat([maps_nchw[:, :1], classes * (classes == classes.amax(1, keepdim=True))], 1)


def with_background(maps_nchw: Tensor) -> Tensor:
    """(n, c + 1, h, w) in [0, 1]: the background becomes 1 - the largest of the classes."""
    return torch.cat([1 - maps_nchw[:, 1:].amax(1, keepdim=True), maps_nchw[:, 1:]], 1)


def labelled(maps_nchw: Tensor, labels_nc: Tensor) -> Tensor:
    """(n, c + 1, h, w) scores over their range; classes that a picture does not have are 0, the background is there."""
    return max_normalised(maps_nchw) * F.pad(labels_nc, (1, 0), value=1.0)[:, :, None, None]


def seam_losses(first: Branch, second: Branch, labels_nc: Tensor, settings: SeamConfig | None = None) -> dict[str, Tensor]:
    """The named terms, whose sum is the official loss: (cls1 + cls2) / 2 + (rvmin1 + rvmin2) / 2 + er + ecr1 + ecr2.

    `cls` and `cls2` are the halves of either branch. labels_nc (n, c) float32; the first branch's maps are brought to the second's size.
    """
    s = settings or SeamConfig()
    size = second[0].shape[2:]
    cam1, rv1 = (enlarged(labelled(x, labels_nc), size) for x in first)
    cam2, rv2 = (labelled(x, labels_nc) for x in second)
    ecr = ecr_loss(with_background(cam2), rv1, s.ecr_share) + ecr_loss(with_background(cam1), rv2, s.ecr_share)
    rvmin = rvmin_loss(first[1], labels_nc, s.rvmin_share) + rvmin_loss(second[1], labels_nc, s.rvmin_share)
    return {
        "cls": classification_loss(first[0], labels_nc) / 2,
        "cls2": classification_loss(second[0], labels_nc) / 2,
        "rvmin": s.rvmin_weight * rvmin / 2,
        "er": s.er_weight * er_loss(cam1, cam2),
        "ecr": s.ecr_weight * ecr,
    }


class Seam:
    name: ClassVar[str] = "seam"
    version: ClassVar[int] = 3

    def __init__(self, settings: SeamConfig | None = None, cam: CamConfig | None = None) -> None:
        self.settings = settings or SeamConfig()
        self.cam = cam or CamConfig()

    @staticmethod
    def build(backbone: str, num_classes: int) -> SeamNet:
        """The network that this method trains."""
        return SeamNet(backbone, num_classes)

    def loss(self, model: nn.Module, batch: Batch, step: int) -> StepOutput:
        """`cls` is half of the first branch's classification, hence `share`: what an add-on blends into it concerns this branch alone.

        It is the logistic loss of the mean of the map at the picture's size; `logits_nchw` are the scores that this is enlarged from.
        """
        network = seam_net(model)
        images = batch.images_nchw
        side = [max(1, int(length * self.settings.second_scale)) for length in images.shape[2:]]
        logits, *first = network.forward_seam(images)
        _, *second = network.forward_seam(enlarged(images, (side[0], side[1])))
        terms = seam_losses((first[0], first[1]), (second[0], second[1]), batch.labels_nc, self.settings)
        pooled = first[0][:, 1:].mean((2, 3))
        return StepOutput(terms, logits[:, 1:], logits[:, :1], classification="cls", share=0.5, pooled_nc=pooled)

    def localise(self, model: nn.Module, views: Views, labels: np.ndarray, companions: Companions | None = None) -> Maps:
        """Sums of a picture's map and its mirror's at the network's stride, of the labelled classes, in SEAM's form (`Maps.inputs`)."""
        network, classes = seam_net(model), np.flatnonzero(labels)
        place = next(model.parameters()).device
        sums = []
        with torch.no_grad(), fixed_statistics(model):
            for view in views.tensors:
                cam, revised = network.low_resolution(view.to(place))
                rows = (revised if self.settings.output == "cam_rv" else cam)[:, 1:][:, classes]
                sums.append(rows[0] if len(rows) == 1 else rows[0] + rows[1].flip(-1))
        inputs = tuple((view.shape[-2], view.shape[-1]) for view in views.tensors)
        return make_maps(views, classes, sums, inputs=inputs)


def seam_net(model: nn.Module) -> SeamNet:
    if not isinstance(model, SeamNet):
        remedy = "train the classifier with this method too"
        raise UserError(f"SEAM needs its own network, this is a {type(model).__name__}", field="--method", remedy=remedy)
    return model
