"""Importance sampling loss (Jonnarth et al., WACV 2024): positions drawn where a map is high are classified, beside the mean of the map.

The draw belongs to the picture: whoever computes it, in whatever batch, draws the same positions. docs/addons.md tells it in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seedbed.addons.base import with_background
from seedbed.config import Settings, bounded, setting
from seedbed.data.transforms import generator
from seedbed.types import Batch, StepOutput, UserError

OFFICIAL: dict[str, Any] = {"epsilon": 1e-5, "weight": 0.2, "scale": 1.0, "posterior": "binomial"}
PAPER: dict[str, Any] = {**OFFICIAL, "epsilon": 0.0}
TENTH: dict[str, Any] = {**OFFICIAL, "scale": 0.1}
MULTINOMIAL: dict[str, Any] = {**OFFICIAL, "posterior": "multinomial", "weight": 0.6}


@dataclass(frozen=True)
class IslConfig(Settings):
    """Importance sampling loss; in brackets: paper / official code, where they differ."""

    PRESETS: ClassVar = {"official": OFFICIAL, "paper": PAPER, "sipe": TENTH, "mctformer": TENTH, "multinomial": MULTINOMIAL}

    preset: Literal["official", "paper", "sipe", "mctformer", "multinomial"] = setting("official", key=False)
    """A whole set of values: the official code's or the paper's text; scaled for the rates of SIPE and MCTformer (section 5.1); the
    multinomial original with its own weight (section 5.5)."""
    weight: float = bounded(0.2, 0, 1)
    """lambda: share of the sampled loss in the classification loss, the mean's keeps the rest (binomial 0.2, multinomial 0.6)."""
    scale: float = bounded(1.0, 0, 1)
    """Factor of the weight (0.1 for SIPE and MCTformer, 1 otherwise)."""
    samples: int = bounded(10, 1, 10_000)
    """N, positions drawn for every class (10)."""
    posterior: Literal["binomial", "multinomial"] = "binomial"
    """What the scores are taken for: classes by themselves [the paper's], or excluding one another and the background [Table 4]."""
    epsilon: float = bounded(1e-5, 0, 1)
    """Added to the posterior before it is drawn from (0 / 1e-5)."""


def binomial_posterior(scores_nchw: Tensor) -> Tensor:
    """Eq. (14), Jonnarth et al. 2024. Probability that a class is at a position, whatever others are there; in (0, 1)."""
    return scores_nchw.sigmoid()


def multinomial_posterior(scores_nchw: Tensor) -> Tensor:
    """Eq. (5), Jonnarth et al. 2024. The same for classes that exclude one another, background among them; sums to 1 over c."""
    return scores_nchw.softmax(1)


def sampling_distribution(posterior_nchw: Tensor) -> Tensor:
    """Eq. (15), Jonnarth et al. 2024 (and Eq. 6). A posterior over its sum: where a position of a class is drawn, (n, c, h, w)."""
    return posterior_nchw / posterior_nchw.sum((2, 3), keepdim=True)


def drawn_positions(distribution_nchw: Tensor, uniform_ncd: Tensor) -> Tensor:
    """Flat positions (n, c, d) int64, drawn with replacement: the inverse of the cumulative distribution at numbers of [0, 1).

    In float64, and by products with triangular matrices: a cumulative sum on a GPU is not the same twice.
    """
    p = distribution_nchw.detach().double()
    h, w = p.shape[2:]
    in_row = p @ torch.ones(w, w, dtype=p.dtype, device=p.device).triu()
    before = in_row[..., -1] @ torch.ones(h, h, dtype=p.dtype, device=p.device).triu(1)
    cumulative = (in_row + before[..., None]).flatten(2)
    levels = uniform_ncd.to(p) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, levels.contiguous(), right=True).clamp(max=h * w - 1)


def uniform_numbers(ids: Sequence[str], shape: tuple[int, ...], seed: int, step: int) -> np.ndarray:
    """(n, *shape) float64 of [0, 1), each picture's from a generator of its own."""
    return np.stack([generator(seed, "isl", ident, step).random(shape) for ident in ids])


def drawn_scores(scores_nchw: Tensor, positions_ncd: Tensor) -> Tensor:
    """Scores of the first c channels at each one's own positions, (n, c, d); the gradient reaches nothing else."""
    return scores_nchw.flatten(2).gather(2, positions_ncd)


def drawn_log_odds(scores_nchw: Tensor, positions_ncd: Tensor) -> Tensor:
    """Log-odds (n, c, d) of the multinomial posterior of Eq. (7): the score less the logsumexp of all other channels there.

    scores_nchw has the c classes first and the background last.
    """
    n, c, d = positions_ncd.shape
    channels = scores_nchw.shape[1]
    there = scores_nchw.flatten(2).gather(2, positions_ncd.flatten(1)[:, None].expand(n, channels, c * d)).view(n, channels, c, d)
    own = torch.eye(channels, c, dtype=torch.bool, device=scores_nchw.device)[None, :, :, None]
    others = there.masked_fill(own, -torch.inf).logsumexp(1)
    return there.diagonal(dim1=1, dim2=2).movedim(-1, 1) - others


def sampled_loss(log_odds_nc: Tensor, labels_nc: Tensor) -> Tensor:
    """Eq. (8), Jonnarth et al. 2024. Binary cross-entropy of one drawn position a class, averaged over classes; (n,).

    The probability stands as its log-odds, so that a posterior of 0 or 1 costs no infinity.
    """
    return F.binary_cross_entropy_with_logits(log_odds_nc, labels_nc, reduction="none").mean(1)


def multi_sample_loss(log_odds_ncd: Tensor, labels_nc: Tensor) -> Tensor:
    """Eq. (18), Jonnarth et al. 2024. The single-sample loss, averaged over the draws; (n,)."""
    return torch.stack([sampled_loss(drawn, labels_nc) for drawn in log_odds_ncd.unbind(2)]).mean(0)


def gap_loss(pooled_nc: Tensor, labels_nc: Tensor) -> Tensor:
    """Eq. (17), Jonnarth et al. 2024. Binary cross-entropy of the pooled scores (their mean, as in the code), over classes; (n,)."""
    return F.multilabel_soft_margin_loss(pooled_nc, labels_nc, reduction="none")


def blended(gap: Tensor, sampled: Tensor, weight: float) -> Tensor:
    """Eq. (16), Jonnarth et al. 2024. (1 - weight) of the pooled loss and weight of the sampled one."""
    return gap + weight * (sampled - gap)


class Isl:
    name: ClassVar[str] = "isl"
    version: ClassVar[int] = 1

    def __init__(self, settings: IslConfig | None = None) -> None:
        self.settings = settings or IslConfig()

    def __call__(self, out: StepOutput, batch: Batch, seed: int, step: int) -> StepOutput:
        """The term `out.classification` with the blend in place of its pooled loss, within its share of the term."""
        weight = self.settings.weight * self.settings.scale
        if weight == 0:
            return out
        if out.logits_nchw is None or out.classification not in out.losses:
            raise UserError(
                "the importance sampling loss needs a method that classifies the mean of its spatial class scores",
                field="--addons",
                remedy="leave isl out, or train with another method",
            )
        pooled = out.logits_nchw.float().mean((2, 3)) if out.pooled_nc is None else out.pooled_nc.float()
        gap = gap_loss(pooled, batch.labels_nc).mean()
        sampled = multi_sample_loss(self.log_odds(out, batch, seed, step), batch.labels_nc).mean()
        changed = out.losses[out.classification] + out.share * (blended(gap, sampled, weight) - gap)
        return replace(out, losses={**out.losses, out.classification: changed})

    def log_odds(self, out: StepOutput, batch: Batch, seed: int, step: int) -> Tensor:
        """(n, c, samples) of the posterior at the drawn positions."""
        s = self.settings
        assert out.logits_nchw is not None
        n, c = out.logits_nchw.shape[:2]
        if s.posterior == "multinomial":
            scores = with_background(out, "the multinomial posterior", "--isl.posterior", without="binomial")
            posterior = multinomial_posterior(scores.detach())[:, :c]
        else:
            scores = out.logits_nchw.float()
            posterior = binomial_posterior(scores.detach())
        distribution = sampling_distribution(posterior + s.epsilon)
        ids = batch.ids or [str(row) for row in range(n)]
        uniform = torch.from_numpy(uniform_numbers(ids, (c, s.samples), seed, step)).to(scores.device)
        positions = drawn_positions(distribution, uniform)
        return (drawn_log_odds if s.posterior == "multinomial" else drawn_scores)(scores, positions)
