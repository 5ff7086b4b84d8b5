"""Sums over pairs of positions: how near, how alike in color, how differently judged; without a matrix of all pairs.

With weights A that the judgements y do not move, the sum of A_ij |y_i - y_j|^2 / 2 over all pairs is the sum of D_i |y_i|^2 - A_ij y_i y_j,
D being the row sums of A. Its gradient is 2 (D y - A y), and it is itself half the product of that with y: one sweep gives both. The sweep
goes over pairs of rows, as far as the Gaussian reaches; every pair is made once for both directions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

REACH = 5.0
"""Pairs farther apart than this many sigma (or a little more) are left out: exp(-12.5) = 4e-6 of the Gaussian."""
TILE = 32
"""Columns that are taken at once."""
PAIRS_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 25}
"""What fits the cache; what fills the chip."""


def spatial_weight(squared_distance: Tensor, sigma: float) -> Tensor:
    """Eq. (10), Jonnarth et al. 2024. A Gaussian of the distance, in positions; sums to 1 over the plane."""
    return torch.exp(squared_distance / (-2 * sigma**2)) / (2 * math.pi * sigma**2)


def gate(left_pc: Tensor, right_qc: Tensor) -> Tensor:
    """Eq. (11), Jonnarth et al. 2024. Half the squared distance of every left from every right: (..., p, c), (..., q, c) -> (..., p, q)."""
    squares = left_pc.square().sum(-1)[..., :, None] + right_qc.square().sum(-1)[..., None, :]
    return squares / 2 - left_pc @ right_qc.mT


def dissimilarity(delta: Tensor, mu: float, guard: float = 0.0) -> Tensor:
    """Eq. (12), Jonnarth et al. 2024. tanh(mu + log(delta / (1 - delta))) in [-1, 1], of delta in [0, 1]; below 0 for what is alike.

    tanh(log t) = 1 - 2 / (1 + t^2) needs neither. `guard` is added to delta and to 1 - delta [code: 1e-5].
    """
    near = (1 + guard - delta).square_()
    far = delta + guard
    return near.div_(torch.addcmul(near, far, far, value=math.exp(2 * mu))).mul_(-2).add_(1)


def color_distance(left_chw: Tensor, right_chw: Tensor) -> Tensor:
    """Eq. (13), Jonnarth et al. 2024. L1 distance of colors in [0, 1] over the number of channels, which lead in both: in [0, 1]."""
    total = (left_chw[0] - right_chw[0]).abs_()
    for left, right in zip(left_chw[1:], right_chw[1:], strict=True):
        total += (left - right).abs_()
    return total.div_(len(left_chw))


def pair_loss(y_nchw: Tensor, x_nchw: Tensor, mu: float | Tensor, sigma: float | Tensor | None, guard: float = 0.0) -> Tensor:
    """Minus the sum over all ordered pairs of positions of weight, gate and dissimilarity, over (n h w); see `fsl.feature_similarity_loss`.

    Differentiable once, by y and by the parameters that are tensors and ask for it. sigma None: every pair weighs 1 / (h w).
    """
    y = y_nchw if y_nchw.dtype == torch.float64 else y_nchw.float()
    found: Tensor = _PairLoss.apply(y, x_nchw.detach().to(y.dtype), mu, sigma, guard)
    return found


class _PairLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, mu: float | Tensor, sigma: float | Tensor | None, guard: float) -> Tensor:
        n, _, h, w = y.shape
        learned = any(ctx.needs_input_grad[2:4])
        kept, index = present_channels(y)
        with torch.autocast(y.device.type, enabled=False):
            half, by_mu, by_sigma = sweep(kept, x, float(mu), None if sigma is None else float(sigma), guard, learned)
        over = -1 / (n * h * w)
        gradient = torch.zeros_like(y).scatter_(1, index[:, :, None, None].expand_as(half), half)
        ctx.asked = ctx.needs_input_grad[0], *ctx.needs_input_grad[2:4]
        ctx.save_for_backward(gradient.mul_(2 * over), by_mu * over, by_sigma * over)
        return (kept * half).sum() * over

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient, by_mu, by_sigma = (found * upstream if asked else None for found, asked in zip(ctx.saved_tensors, ctx.asked, strict=True))
        return gradient, None, by_mu, by_sigma, None


def present_channels(y_nchw: Tensor) -> tuple[Tensor, Tensor]:
    """Of every picture the channels that are not constantly zero, (n, k, h, w), and which they are, (n, k); k: the most of any picture."""
    there = y_nchw.flatten(2).any(2)
    most = max(int(there.sum(1).max()), 1)
    index = there.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return y_nchw.gather(1, index[:, :, None, None].expand(-1, -1, *y_nchw.shape[2:])), index


def sweep(y_nchw: Tensor, x_nchw: Tensor, mu: float, sigma: float | None, guard: float, learned: bool) -> tuple[Tensor, Tensor, Tensor]:
    """D y - A y, (n, c, h, w); and with `learned` the derivatives by mu and sigma of the sum over all pairs, else zeros."""
    n, c, h, w = y_nchw.shape
    # The matrix doesn't see what all positions have in common; without it less is subtracted from like. The ones gather the row sums.
    centered = y_nchw - y_nchw.mean((2, 3), keepdim=True)
    y = torch.cat([centered, torch.ones_like(y_nchw[:, :1])], 1).permute(0, 2, 3, 1).contiguous()
    x = x_nchw.clamp(0, 1).transpose(0, 1).contiguous()
    sums = torch.zeros_like(y)
    by_mu, by_sigma = y.new_zeros(()), y.new_zeros(())
    at_once = PAIRS_AT_ONCE["cpu" if y.device.type == "cpu" else "cuda"]
    for dy, here, there in tiles(h, w, sigma):
        squares = squared_distances(dy, here, there, y)
        weight = torch.full_like(squares, 1 / (h * w)) if sigma is None else spatial_weight(squares, sigma)
        if dy == 0:
            weight /= 2  # within a row every pair comes twice
        for pictures, rows in parts(n, h - dy, at_once // weight.numel()):
            below = slice(rows.start + dy, rows.stop + dy)
            left, right = y[pictures, rows, here], y[pictures, below, there]
            delta = color_distance(x[:, pictures, rows, here, None], x[:, pictures, below, None, there])
            f = dissimilarity(delta, mu, guard)
            if learned:
                g = gate(left[..., :c], right[..., :c]).mul_(2 * weight)
                by_mu += ((1 - f * f) * g).sum()
                if sigma is not None:
                    by_sigma += (f * g * (squares / sigma**3 - 2 / sigma)).sum()
            a = f.mul_(weight)
            sums[pictures, rows, here] += a @ right
            sums[pictures, below, there] += a.mT @ left
    half = y[..., :c] * sums[..., c:] - sums[..., :c]
    return half.permute(0, 3, 1, 2), by_mu, by_sigma


def tiles(h: int, w: int, sigma: float | None) -> Iterator[tuple[int, slice, slice]]:
    """Row distance, columns, and the partners' columns, that hold every pair within reach once, and twice where the rows are the same."""
    reach = h + w if sigma is None else math.ceil(REACH * sigma)
    count = -(-w // TILE)
    edges = [w * i // count for i in range(count + 1)]
    for dy in range(min(reach, h - 1) + 1):
        across = math.isqrt(reach**2 - dy**2)
        for low, high in itertools.pairwise(edges):
            yield dy, slice(low, high), slice(max(low - across, 0), min(high + across, w))


def squared_distances(dy: int, here: slice, there: slice, like: Tensor) -> Tensor:
    columns = torch.arange(here.start, here.stop, dtype=like.dtype, device=like.device)
    partners = torch.arange(there.start, there.stop, dtype=like.dtype, device=like.device)
    return (columns[:, None] - partners).square_() + dy**2


def parts(pictures: int, rows: int, lines: int) -> Iterator[tuple[slice, slice]]:
    """Pictures and rows, at most so many rows of pictures at once (at least one): whole pictures where several fit."""
    whole = lines // rows
    if whole:
        for first in range(0, pictures, whole):
            yield slice(first, min(first + whole, pictures)), slice(0, rows)
        return
    for picture in range(pictures):
        for first in range(0, rows, max(lines, 1)):
            yield slice(picture, picture + 1), slice(first, min(first + max(lines, 1), rows))
