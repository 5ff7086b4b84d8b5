"""Feature similarity loss (Jonnarth et al., WACV 2024): of two near positions, alike in color means alike in class, and the reverse.

It draws the contours of a map to the edges of the picture. Where paper and official code differ a setting chooses; docs/addons.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.addons.base import with_background
from seedbed.addons.isl import binomial_posterior, multinomial_posterior
from seedbed.addons.pairs import pair_loss
from seedbed.config import Settings, bounded, setting
from seedbed.data.transforms import MEAN, STD
from seedbed.methods.maps import max_normalised as seam_max_normalised
from seedbed.types import Batch, StepOutput, UserError

SMALLEST_SIGMA = 0.1
"""Of a learned sigma, positions."""

OFFICIAL: dict[str, Any] = {
    "normalise": "code", "background": True, "guard": 1e-5, "weight": 1.0, "upsample": 1, "gate": "r", "learned": False,
    "classes": "present",
}  # fmt: skip
PAPER: dict[str, Any] = {**OFFICIAL, "normalise": "paper", "background": False, "guard": 0.0}
SIPE: dict[str, Any] = {**OFFICIAL, "weight": 0.1, "upsample": 2}
MCTFORMER: dict[str, Any] = {**OFFICIAL, "weight": 0.1, "upsample": 4}
SEAM_COCO: dict[str, Any] = {**OFFICIAL, "weight": 0.2}
MULTINOMIAL: dict[str, Any] = {**OFFICIAL, "gate": "a", "learned": True, "classes": "all"}


@dataclass(frozen=True)
class FslConfig(Settings):
    """Feature similarity loss; in brackets: paper / official code, where they differ."""

    PRESETS: ClassVar = {
        "official": OFFICIAL,
        "paper": PAPER,
        "sipe": SIPE,
        "mctformer": MCTFORMER,
        "seam_coco": SEAM_COCO,
        "multinomial": MULTINOMIAL,
    }

    preset: Literal["official", "paper", "sipe", "mctformer", "seam_coco", "multinomial"] = setting("official", key=False)
    """A whole set of values: the official code's or the paper's text; scaled and enlarged for SIPE, MCTformer, SEAM on COCO (section
    5.1); the multinomial original of Table 4."""
    weight: float = bounded(1.0, 0, 100)
    """Factor of the loss (1; 0.1 for SIPE and MCTformer, 0.2 for SEAM on COCO)."""
    mu: float = bounded(2.5, -20, 20)
    """Where similar ends: at a color distance of 1 / (1 + exp(mu)) (2.5, which is 0.076)."""
    sigma: float | None = bounded(5.0, 0, 1e4, open_low=True)
    """Reach of the Gaussian weight, positions (5). None: every pair of positions weighs 1 / (h w)."""
    gate: Literal["r", "b", "s", "a"] = "r"
    """What shall be alike: the map over its maximum [the paper's choice], binomial posterior, raw scores, or multinomial posterior."""
    normalise: Literal["code", "paper"] = "code"
    """Gate r: (ReLU(s) - min - 1e-5) / (max - min + 1e-5), all of it in the gradient [code]; ReLU(s) / max, max a constant [paper]."""
    classes: Literal["present", "all"] = "present"
    """Which are compared: those of the picture's label (section 4.3), or all, as in the multinomial original, which that is newer than."""
    background: bool = setting(True)
    """A channel more, 1 - the largest of the classes [code; not in the paper]; with gate a the posterior of the background itself."""
    guard: float = bounded(1e-5, 0, 0.1)
    """Added to the color distance and to 1 - it before their quotient (0 / 1e-5)."""
    upsample: int = bounded(1, 1, 64)
    """Factor by which the scores are enlarged first (1; SIPE 2, MCTformer 4)."""
    learned: bool = setting(False)
    """mu and sigma are trained with the network, as before this paper [Table 4]."""

    def check_together(self, prefix: str) -> None:
        if self.learned and self.sigma is None:
            flag = f"--{prefix}learned"
            raise UserError(f"{flag} needs a sigma to begin with", field=flag, remedy=f"give --{prefix}sigma a number")


def max_normalised(scores_nchw: Tensor, way: Literal["code", "paper"] = "code") -> Tensor:
    """Eq. (4), Jonnarth et al. 2024. Rectified scores over their maximum in the picture, per class; a map without a positive score is 0.

    paper: the maximum is a constant for the gradient, as their bound has it. code: the minimum goes off first, and 1e-5, and the gradient
    reaches both.
    """
    if way == "code":
        return seam_max_normalised(scores_nchw)
    rectified = scores_nchw.relu()
    return rectified / rectified.amax((2, 3), keepdim=True).detach().clamp(min=torch.finfo(rectified.dtype).tiny)


def feature_similarity_loss(
    y_nchw: Tensor, x_nchw: Tensor, mu: float | Tensor = 2.5, sigma: float | Tensor | None = 5.0, guard: float = 0.0
) -> Tensor:
    """Eq. (9), Jonnarth et al. 2024. Of judgements y and colors x in [0, 1] of one size; mean over the pictures.

    Pairs farther apart than five sigma are left out (`pairs.REACH`), everything else is exact.
    """
    return pair_loss(y_nchw, x_nchw, mu, sigma, guard)


def colors_at(images_nchw: Tensor, size: tuple[int, int]) -> Tensor:
    """Normalised network inputs -> colors in [0, 1] at another size, bilinear with corner alignment; padding becomes the mean color."""
    small = F.interpolate(images_nchw.float(), size, mode="bilinear", align_corners=True)
    mean, std = (torch.tensor(v, device=small.device)[:, None, None] for v in (MEAN, STD))
    return (small * std + mean).clamp(0, 1)


class Fsl(nn.Module):
    """A module, because mu and sigma may be learned; without that it has no parameters."""

    name: ClassVar[str] = "fsl"
    version: ClassVar[int] = 1
    mu: float | Tensor
    sigma: float | Tensor | None

    def __init__(self, settings: FslConfig | None = None) -> None:
        super().__init__()
        self.settings = settings or FslConfig()
        if self.settings.learned and self.settings.sigma is not None:
            self.mu = nn.Parameter(torch.tensor(float(self.settings.mu)))
            self.sigma = nn.Parameter(torch.tensor(float(self.settings.sigma)))
        else:
            self.mu, self.sigma = self.settings.mu, self.settings.sigma

    def forward(self, out: StepOutput, batch: Batch, seed: int, step: int) -> StepOutput:
        """The term `fsl` beside the others."""
        s = self.settings
        if s.weight == 0:
            return out
        if out.logits_nchw is None:
            raise UserError(
                "the feature similarity loss needs a method with spatial class scores", field="--addons", remedy="leave fsl out"
            )
        y = self.judgements(out, batch.labels_nc)
        with torch.no_grad():
            x = colors_at(batch.images_nchw, (y.shape[2], y.shape[3]))
        sigma = self.sigma.clamp(min=SMALLEST_SIGMA) if isinstance(self.sigma, Tensor) else self.sigma
        loss = feature_similarity_loss(y, x, self.mu, sigma, s.guard)
        return replace(out, losses={**out.losses, "fsl": s.weight * loss})

    def judgements(self, out: StepOutput, labels_nc: Tensor) -> Tensor:
        """What the gate compares, (n, c or c + 1, h, w), the background first where there is one; classes that are not compared are 0."""
        s = self.settings
        assert out.logits_nchw is not None
        classes = out.logits_nchw.shape[1]
        scores = with_background(out, "gate a", "--fsl.gate", without="r") if s.gate == "a" else out.logits_nchw.float()
        if s.upsample > 1:
            scores = F.interpolate(scores, scale_factor=s.upsample, mode="bilinear", align_corners=False)
        if s.gate == "r":
            scores = max_normalised(scores, s.normalise)
        elif s.gate == "b":
            scores = binomial_posterior(scores)
        elif s.gate == "a":
            scores = multinomial_posterior(scores)
        y = scores[:, :classes]
        if s.classes == "present":
            y = y * labels_nc[:, :, None, None]
        if not s.background:
            return y
        return torch.cat([scores[:, classes:] if s.gate == "a" else 1 - y.amax(1, keepdim=True), y], 1)
