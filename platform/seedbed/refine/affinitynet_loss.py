"""AffinityNet's pairs: what they are trained on, their affinity, and the loss (PSA; Ahn and Kwak 2018)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seedbed.refine.confidence import affinity_positions
from seedbed.refine.paths import directions, source_grid
from seedbed.refine.random_walk import affinitynet_radius
from seedbed.types import IGNORE

TINY = 1e-5
"""Guards logarithms and divisors, as in the official code."""


class Pairs(NamedTuple):
    """(n, d, s) bool, directions in the order of `paths.directions`, sources in reading order."""

    background: Tensor
    foreground: Tensor
    different: Tensor


class Losses(NamedTuple):
    background: Tensor
    foreground: Tensor
    different: Tensor

    def terms(self) -> dict[str, Tensor]:
        """Their shares of the loss: a quarter, a quarter, a half."""
        return {"bg": self.background / 4, "fg": self.foreground / 4, "neg": self.different / 2}


def windows(maps: Tensor, radius: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(..., h, w) -> per direction the sources and their partners, (..., rows, columns) views. Nothing is padded: README, difference 24."""
    rows, columns = source_grid((maps.shape[-2], maps.shape[-1]), radius)
    left = radius - 1
    for dy, dx in directions(radius):
        partners = maps[..., dy : dy + rows, left + dx : left + dx + columns]
        yield maps[..., :rows, left : left + columns], partners


def pair_labels(labels_nhw: Tensor, radius: int) -> Pairs:
    """Golden affinitynet, `lab_*_pos` and `lab_neg`. (n, h, w) uint8 labels with IGNORE: alike and 0, alike and a class, different."""
    found = []
    for source, partner in windows(labels_nhw, radius):
        valid, alike = (source != IGNORE) & (partner != IGNORE), source == partner
        found.append([part.flatten(1) for part in (valid & alike & (source == 0), valid & alike & (source != 0), valid & ~alike)])
    if not found:
        return Pairs(*(labels_nhw.new_zeros((len(labels_nhw), 0, 0), dtype=torch.bool) for _ in range(3)))
    return Pairs(*(torch.stack(part, 1) for part in zip(*found, strict=True)))


def pair_affinity(features_nfhw: Tensor, radius: int) -> Tensor:
    """Golden affinitynet, `aff_sparse`. (n, f, h, w) features after the ELU -> (n, d, s) float32: exp(-mean |difference|) in (0, 1]."""
    return PairAffinity.apply(features_nfhw, radius)


class PairAffinity(torch.autograd.Function):
    """Keeps the features and the affinities alone: the differences of all pairs in all channels would be a gigabyte for eight crops."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, radius: int) -> Tensor:
        parts = [(source - partner).abs_().mean(1).neg_().exp_().flatten(1) for source, partner in windows(features, radius)]
        affinity = torch.stack(parts, 1) if parts else features.new_zeros(len(features), 0, 0)
        ctx.radius = radius
        ctx.save_for_backward(features, affinity)
        return affinity

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        features, affinity = ctx.saved_tensors
        out = torch.zeros_like(features)
        weights = (gradients[0] * affinity).div_(-features.shape[1])
        of_features, of_out = windows(features, ctx.radius), windows(out, ctx.radius)
        for number, ((source, partner), (to_source, to_partner)) in enumerate(zip(of_features, of_out, strict=True)):
            flow = (source - partner).sign_().mul_(weights[:, number].reshape(len(out), 1, *source.shape[2:]))
            to_source += flow
            to_partner -= flow
        return out, None


def pair_counts(labels_nhw: Tensor, radius: int) -> Tensor:
    """(n, 3) int64, of every picture: its pairs of each kind of `Pairs`. What a batch's losses divide by is their sum."""
    radius = affinitynet_radius((labels_nhw.shape[1], labels_nhw.shape[2]), radius)
    return torch.stack([kind.flatten(1).sum(1) for kind in pair_labels(labels_nhw, radius)], 1)


def affinity_losses(f9_nfhw: Tensor, labels_nhw: Tensor, radius: int, whole: Tensor | None = None) -> Losses:
    """Golden affinitynet, `loss_*`. (n, f, h, w) the network's output and (n, h, w) uint8 labels at its stride -> the three means.

    -log of the affinity of pairs that are alike, -log(1 - affinity) of those that differ, each over all such pairs of the batch; 0 where
    there are none. The radius is reduced for short sides, as where the maps walk. `whole` (3,) int64: the pairs of the batch that these
    pictures are a part of, where they are not all of it (`pair_counts`).
    """
    radius = affinitynet_radius((labels_nhw.shape[1], labels_nhw.shape[2]), radius)
    pairs = pair_labels(labels_nhw, radius)
    affinity = pair_affinity(F.elu(f9_nfhw.float()), radius)
    alike, differ = -torch.log(affinity + TINY), -torch.log(1 + TINY - affinity)
    counts = [kind.sum() for kind in pairs] if whole is None else whole
    return Losses(*(_mean(*of) for of in zip((alike, alike, differ), pairs, counts, strict=True)))


def _mean(values: Tensor, chosen: Tensor, count: Tensor) -> Tensor:
    return (values * chosen).sum() / (count + TINY)


def reduced(scores_2nhw: np.ndarray, stride: int) -> np.ndarray:
    """Means over blocks of stride x stride pixels (golden affinitynet, `lab_pooled`); both sides must be multiples of it."""
    *head, h, w = scores_2nhw.shape
    return scores_2nhw.reshape(*head, h // stride, stride, w // stride, stride).mean((-3, -1))


def reduced_labels(scores_2nhw: np.ndarray, stride: int) -> np.ndarray:
    """Golden affinitynet, `lab_label`. Scores of a crop, averaged first -> (h / stride, w / stride) uint8 positions, IGNORE.

    Positions and class indices are equivalent within a picture, and no pair spans two (README, difference 25).
    """
    return affinity_positions(reduced(scores_2nhw, stride))
