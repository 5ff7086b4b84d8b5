"""The random walk of PSA (Ahn and Kwak 2018) and IRN (Ahn et al. 2019) over pixel affinities, without the dense matrix.

Both papers square the dense transition matrix t times and multiply the maps by it. As a pixel has partners within a small radius only, the
matrix has some 70 numbers in a row, not h * w; the same maps come from 2^t products of it with them. Its numbers are kept by direction:
the affinity of every pixel to the one so many rows and columns away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seedbed.refine.paths import Offset, directions, flat, paths, source_grid, source_indices

Maps = TypeVar("Maps", np.ndarray, Tensor)

FAINT = 1e-30
"""Affinities below it count as none: against a pixel's affinity to itself, 1, they are nothing, and their products are denormal numbers,
with which a CPU is a hundred times slower."""
FLOOR = 1e-20
"""Share of a map's maximum that is added while it walks, for the same reason. A walk leaves a constant as it is."""
TILE = 1 << 14
"""Pixels whose next values are found in one go on a CPU."""


@dataclass(frozen=True)
class Affinity:
    """Affinities of neighbouring pixels of a map (h, w), raised to the power beta; those of a pixel to itself are 1."""

    offsets: tuple[Offset, ...]
    weights_dhw: Tensor
    """[d, y, x]: affinity of (y, x) and (y, x) + offsets[d], in [0, 1]; 0 where one of both does not exist or has no such partner."""

    @property
    def size(self) -> tuple[int, int]:
        return self.weights_dhw.shape[1], self.weights_dhw.shape[2]

    def dense(self) -> Tensor:
        """(h * w, h * w): the symmetric matrix, ones on its diagonal. For tests: it has (h * w)^2 numbers."""
        (h, w), n = self.size, self.size[0] * self.size[1]
        matrix = torch.eye(n, dtype=self.weights_dhw.dtype, device=self.weights_dhw.device)
        for (dy, dx), weights in zip(self.offsets, self.weights_dhw, strict=True):
            rows, columns = slice(0, max(h - dy, 0)), slice(max(-dx, 0), max(min(w, w - dx), 0))
            source = torch.arange(n, device=matrix.device).reshape(h, w)[rows, columns].flatten()
            matrix[source, source + dy * w + dx] = weights[rows, columns].flatten()
            matrix[source + dy * w + dx, source] = weights[rows, columns].flatten()
        return matrix

    def transition(self) -> Tensor:
        """(h * w, h * w): `dense` with each column divided by its sum, the probabilities of one step. For tests."""
        matrix = self.dense()
        return matrix / matrix.sum(0)


def irn_affinity(edge_hw: Maps, radius: int, beta: float) -> Affinity:
    """README irn.npz: affinity of a pair = (1 - largest edge on its path, both ends included)^beta.

    edge_hw (h, w) in [0, 1]. Pairs reach up to the border: what lies beyond it counts as edge 1, and so has no affinity to anything.
    """
    edge = as_tensor(edge_hw)
    if edge.dim() != 2:
        raise ValueError(f"an edge map has two dimensions, not the shape {tuple(edge.shape)}")
    reach = max(radius - 1, 0)
    with torch.no_grad():
        padded = F.pad(edge, (reach, reach, 0, reach), value=1.0)
        largest, _ = largest_on_paths(padded[None], radius)
        weights = (1 - largest[0]).clamp_(min=0).pow_(beta).reshape(-1, *edge.shape)
        return Affinity(tuple(path.destination for path in paths(radius)), weights)


def affinitynet_affinity(features_fhw: Maps, radius: int, beta: float) -> Affinity:
    """README affinitynet.npz: affinity of a pair = exp(-mean over the channels of |difference|)^beta.

    features_fhw (f, h, w): the network's last map, after its ELU. Only pixels whose every partner lies in the map are sources, so that
    pixels near the left, right and lower border have fewer partners, some none (README, difference 24).
    """
    features = as_tensor(features_fhw)
    if features.dim() != 3:
        raise ValueError(f"features have three dimensions, not the shape {tuple(features.shape)}")
    _, h, w = features.shape
    radius = affinitynet_radius((h, w), radius)
    offsets = directions(radius)
    weights = features.new_zeros(len(offsets), h, w)
    rows, columns = source_grid((h, w), radius)
    left = radius - 1
    with torch.no_grad():
        source = features[:, :rows, left : left + columns]
        for weight, (dy, dx) in zip(weights, offsets, strict=True):
            partner = features[:, dy : dy + rows, left + dx : left + dx + columns]
            weight[:rows, left : left + columns] = (source - partner).abs_().mean(0).mul_(-beta).exp_()
    return Affinity(offsets, weights)


def affinitynet_radius(size: tuple[int, int], radius: int) -> int:
    """README, difference 21: the radius, reduced where the short side of the map (h, w) is below 2 * radius + 1."""
    short = min(size)
    return radius if short >= 2 * radius + 1 else (short - 1) // 2


def largest_on_paths(edges_nhw: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Largest value on the path of every pair (n, d, s), in the order of `paths` and of `source_indices`, and its flat position, int32.

    Of equal values the first on the path counts, seen from the destination.
    """
    n, h, w = edges_nhw.shape
    (rows, columns), left = source_grid((h, w), radius), max(radius - 1, 0)
    largest = edges_nhw.new_empty(n, len(paths(radius)), rows, columns)
    places = torch.empty(largest.shape, dtype=torch.int32, device=largest.device)
    place, larger = edges_nhw.new_empty(2, n, rows, columns)
    for number, path in enumerate(paths(radius)):
        found, steps = largest[:, number], edges_nhw.new_tensor(flat(path.cells, w))
        for i, (dy, dx) in enumerate(path.cells):
            cell = edges_nhw[:, dy : dy + rows, left + dx : left + dx + columns]
            if i == 0:
                found.copy_(cell)
                place.copy_(steps[i].expand_as(place))
                continue
            # With 0 and 1 as its weights lerp is a choice, exact and ten times faster than masks.
            torch.gt(cell, found, out=larger)
            place.lerp_(steps[i], larger)
            torch.maximum(found, cell, out=found)
        places[:, number] = place
    sources = torch.from_numpy(source_indices((h, w), radius)).to(largest.device, torch.int32)
    return largest.flatten(2), places.flatten(2).add_(sources)


def walk(maps_chw: Maps, affinity: Affinity, times: int) -> Maps:
    """`times` steps: each pixel gets the sum over its partners of affinity times value, divided by the sum of its affinities.

    maps_chw (c, h, w), float32 or float64, on any device; the result is of the same kind. The maps times the transition matrix to the
    power `times` (2^t for t squarings). Raises ValueError for maps of another size than the affinities'.

    It walks in float64: neighbours are so alike that float32 rounds them the same way in every step, and is off by 2e-4 after 256.
    """
    maps = as_tensor(maps_chw)
    if maps.dim() != 3 or tuple(maps.shape[1:]) != affinity.size:
        raise ValueError(f"maps of the shape {tuple(maps.shape)} can't walk over affinities of {affinity.size}")
    if times < 0:
        raise ValueError(f"a walk of {times} steps")
    if not maps.numel() or not times:
        return maps_chw.copy() if isinstance(maps_chw, np.ndarray) else maps_chw.clone()
    with torch.no_grad():
        out = _walk(maps.double(), affinity.offsets, affinity.weights_dhw.to(maps.device), times).to(maps.dtype)
    return out.cpu().numpy() if isinstance(maps_chw, np.ndarray) else out


def _walk(maps: Tensor, offsets: tuple[Offset, ...], weights: Tensor, times: int) -> Tensor:
    """In flat rows with as many zeros between them as the farthest partner is away: partners lie at one distance whatever the pixel."""
    (c, h, w), reach = maps.shape, max((max(abs(dy), abs(dx)) for dy, dx in offsets), default=0)
    width = w + reach
    margin, length = reach * width + reach, h * width
    distances = flat(offsets, width).tolist()
    flat_weights = F.pad(F.pad(weights.double(), (0, reach)).flatten(1), (margin, margin))
    flat_weights[flat_weights < FAINT] = 0
    raised = maps + FLOOR * maps.abs().amax((1, 2), keepdim=True)
    values = F.pad(F.pad(raised, (0, reach)).flatten(1), (margin, margin))
    total = maps.new_ones(length)
    for weight, distance in zip(flat_weights, distances, strict=True):
        total += weight[margin : margin + length] + weight[margin - distance : margin - distance + length]
    steps = _steps_gathered if maps.is_cuda else _steps
    out = steps(values, flat_weights, distances, margin, total, times)
    return out.reshape(c, h, width)[:, :, :w] - (raised - maps)


def _steps(values: Tensor, weights: Tensor, distances: list[int], margin: int, total: Tensor, times: int) -> Tensor:
    """One product a direction and way, over a tile of the flat map after the other, so that a tile's sums stay in the cache."""
    length = len(total)
    buffers = values, torch.zeros_like(values)

    def tile(now: Tensor, after: Tensor, begin: int) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]], Tensor]:
        first, last = margin + begin, margin + min(begin + TILE, length)
        pairs = []
        for weight, d in zip(weights, distances, strict=True):  # the partner ahead, and the one that this pixel is ahead of
            pairs += [(weight[first:last], now[:, first + d : last + d]), (weight[first - d : last - d], now[:, first - d : last - d])]
        return after[:, first:last], now[:, first:last], pairs, total[first - margin : last - margin]

    # All views are made before: on a small map making them would take longer than the arithmetic.
    plans = [[tile(now, after, begin) for begin in range(0, length, TILE)] for now, after in (buffers, buffers[::-1])]
    for step in range(times):
        for out, own, pairs, divisor in plans[step % 2]:
            out.copy_(own)
            for affinity, partner in pairs:
                out.addcmul_(affinity, partner)
            out /= divisor
    return buffers[times % 2][:, margin : margin + length]


def _steps_gathered(values: Tensor, weights: Tensor, distances: list[int], margin: int, total: Tensor, times: int) -> Tensor:
    """All directions in one product: a GPU is slow to begin one."""
    length = len(total)
    here = torch.arange(margin, margin + length, device=values.device)
    away = torch.tensor(distances, dtype=torch.int64, device=values.device)[:, None]  # of no direction it would be float
    partners = torch.cat([here + away, here - away])
    backward = [weight[margin - d : margin - d + length] for weight, d in zip(weights, distances, strict=True)]
    both = torch.cat([weights[:, here], *(b[None] for b in backward)])
    for _ in range(times):
        out = values.clone()
        out[:, here] = (values[:, here] + (values[:, partners] * both).sum(1)) / total
        values = out
    return values[:, here]


def as_tensor(values: np.ndarray | Tensor) -> Tensor:
    """Numbers that are floating point, as a tensor that shares their memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(values)) if isinstance(values, np.ndarray) else values.detach()
    if not tensor.is_floating_point():
        raise TypeError(f"numbers of the kind {tensor.dtype} can't walk: give float32 or float64")
    return tensor
