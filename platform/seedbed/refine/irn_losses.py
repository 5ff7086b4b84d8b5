"""What IRN's network is trained on (Ahn et al. 2019): pairs of pixels with the same label, or with different ones, and their losses.

Arrays over pairs are (n, d, s): pictures, directions in the order of `paths`, sources in the order of `source_indices`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seedbed.refine.paths import paths, source_grid
from seedbed.refine.random_walk import largest_on_paths

TINY = 1e-5
"""README irn.npz: within the logarithms, and added to counts."""
PART = 1 << 23
"""Pairs of pictures that are looked at in one go, about: some 100 bytes each."""


class PairLabels(NamedTuple):
    """Which pairs (n, d, s), bool, are both background, both the same class, of different labels."""

    bg_pos: Tensor
    fg_pos: Tensor
    neg: Tensor


class LossMaps(NamedTuple):
    """Losses of every pair before they are weighted: (n, d, s), the displacements' (n, 2, d, s)."""

    pos_aff: Tensor
    neg_aff: Tensor
    dp_fg: Tensor
    dp_bg: Tensor


class IrnLosses(NamedTuple):
    """Scalars. The total is their sum with the weights of `TERMS`."""

    bg_pos: Tensor
    fg_pos: Tensor
    neg: Tensor
    dp_fg: Tensor
    dp_bg: Tensor

    def terms(self) -> dict[str, Tensor]:
        """README irn.npz: what is minimised is (pos + neg) / 2 + (dp_fg + dp_bg) / 2, pos being (bg_pos + fg_pos) / 2."""
        return {"pos": (self.bg_pos + self.fg_pos) / 4, "neg": self.neg / 2, "dp_fg": self.dp_fg / 2, "dp_bg": self.dp_bg / 2}


def pair_labels(labels_nhw: Tensor, radius: int, num_labels: int) -> PairLabels:
    """README irn.npz, affinity labels. labels (n, h, w) uint8; a label of num_labels (classes and background) or above is ignored."""
    source, partner = _both_ends(labels_nhw[:, None], radius)
    source, partner = source[:, 0], partner[:, 0]
    known, same = (source < num_labels) & (partner < num_labels), source == partner
    return PairLabels(known & same & (source == 0), known & same & (source > 0), known & ~same)


def path_affinity(edges_nhw: Tensor, radius: int) -> Tensor:
    """(n, d, s): 1 - largest edge (probabilities) on a pair's path; the gradient goes to where that is."""
    affinity: Tensor = 1 - _LargestOnPaths.apply(edges_nhw, radius)
    return affinity


def loss_maps(edge_n1hw: Tensor, displacement_n2hw: Tensor, radius: int) -> LossMaps:
    """README irn.npz, losses. edge: logits of a boundary; displacement: (dy, dx) in pixels of the map.

    Displacements of a foreground pair, source minus partner, are compared with the pair's own direction, those of a background pair with 0.
    """
    affinity = path_affinity(torch.sigmoid(edge_n1hw[:, 0]), radius)
    source, partner = _both_ends(displacement_n2hw, radius)
    moved = source - partner
    way = torch.tensor([path.destination for path in paths(radius)], dtype=moved.dtype, device=moved.device).T[None, :, :, None]
    return LossMaps(-torch.log(affinity + TINY), -torch.log(1 + TINY - affinity), (moved - way).abs(), moved.abs())


def pair_counts(labels_nhw: Tensor, radius: int, num_labels: int) -> Tensor:
    """(n, 3) int64, of every picture: its pairs of each kind of `PairLabels`. What a batch's losses divide by is their sum."""
    each = (pair_labels(one, radius, num_labels) for one in labels_nhw.split(1))
    return torch.stack([torch.stack([kind.sum() for kind in kinds]) for kinds in each])


def irn_losses(
    edge_n1hw: Tensor, displacement_n2hw: Tensor, labels_nhw: Tensor, radius: int, num_labels: int, whole: Tensor | None = None
) -> IrnLosses:
    """README irn.npz: means over the pairs of each kind in the whole batch; 0 where it has none.

    `whole` (3,) int64: the pairs of the batch that these pictures are a part of, where they are not all of it (`pair_counts`).

    edge (n, 1, h, w), displacement (n, 2, h, w) and labels (n, h, w) uint8 of one size. Memory does not grow with the batch: the gradients
    are found part by part in the forward pass.
    """
    values: tuple[Tensor, ...] = _Losses.apply(edge_n1hw.float(), displacement_n2hw.float(), labels_nhw, radius, num_labels, whole)
    return IrnLosses(*values)


def _both_ends(values_nchw: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Sources (n, c, 1, s) and the partners of each in every direction (n, c, d, s)."""
    rows, columns = source_grid((values_nchw.shape[2], values_nchw.shape[3]), radius)
    left = radius - 1

    def at(dy: int, dx: int) -> Tensor:
        return values_nchw[:, :, dy : dy + rows, left + dx : left + dx + columns].flatten(2)

    return at(0, 0)[:, :, None], torch.stack([at(*path.destination) for path in paths(radius)], 2)


def _sums(maps: LossMaps, labels: PairLabels) -> Iterator[Tensor]:
    yield (maps.pos_aff * labels.bg_pos).sum()
    yield (maps.pos_aff * labels.fg_pos).sum()
    yield (maps.neg_aff * labels.neg).sum()
    yield (maps.dp_fg * labels.fg_pos[:, None]).sum()
    yield (maps.dp_bg * labels.bg_pos[:, None]).sum()


class _LargestOnPaths(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, edges_nhw: Tensor, radius: int) -> Tensor:
        largest, places = largest_on_paths(edges_nhw, radius)
        ctx.save_for_backward(places)
        ctx.shape = edges_nhw.shape
        return largest

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        n, h, w = ctx.shape
        found = gradient.new_zeros(n, h * w)
        return found.scatter_add_(1, ctx.saved_tensors[0].flatten(1).long(), gradient.flatten(1)).reshape(n, h, w), None


class _Losses(torch.autograd.Function):
    """The five losses. What is kept for the backward pass are their gradients, of the size of the inputs, not the pairs."""

    @staticmethod
    def forward(
        ctx: Any, edge: Tensor, displacement: Tensor, labels: Tensor, radius: int, num_labels: int, whole: Tensor | None
    ) -> tuple[Tensor, ...]:
        rows, columns = source_grid((edge.shape[2], edge.shape[3]), radius)
        size = max(1, PART // max(len(paths(radius)) * rows * columns, 1))
        if whole is None:
            whole = torch.zeros(3, dtype=torch.int64, device=edge.device)
            for part in labels.split(size):
                whole += torch.stack([kind.sum() for kind in pair_labels(part, radius, num_labels)])
        bg, fg, neg = whole.to(edge.dtype)
        divisors = (bg + TINY, fg + TINY, neg + TINY, 2 * fg + TINY, 2 * bg + TINY)
        inputs = (edge, edge, edge, displacement, displacement)
        gradients = [torch.zeros_like(x) for x in inputs]
        totals = [edge.new_zeros(()) for _ in inputs]
        for start in range(0, len(edge), size):
            rows_of = slice(start, start + size)
            with torch.enable_grad():
                ends = edge[rows_of].detach().requires_grad_(), displacement[rows_of].detach().requires_grad_()
                sums = _sums(loss_maps(*ends, radius), pair_labels(labels[rows_of], radius, num_labels))
                for i, (value, divisor) in enumerate(zip(sums, divisors, strict=True)):
                    (gradient,) = torch.autograd.grad(value, ends[i // 3], retain_graph=True)
                    gradients[i][rows_of] = gradient / divisor
                    totals[i] += value.detach() / divisor
        ctx.save_for_backward(*gradients)
        return tuple(totals)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        bg, fg, neg, dp_fg, dp_bg = (g * found for g, found in zip(given, ctx.saved_tensors, strict=True))
        return bg + fg + neg, dp_fg + dp_bg, None, None, None, None
