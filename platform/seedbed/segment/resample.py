"""Resizing as OpenCV computes it, of a window only: what a crop leaves out is not made.

A resize is separable: along each axis every output position reads some input positions (`Taps`). Coordinates are those of OpenCV,
(i + 0.5) * step - 0.5, with positions beyond the border replaced by the nearest inside.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image

CUBIC = -0.75


@dataclass(frozen=True)
class Taps:
    """Along one axis: for each of n output positions k input positions and their weights."""

    index: np.ndarray
    """(n, k) int64, ascending both ways."""
    weight: np.ndarray
    """(n, k) float32."""

    def window(self, start: int, stop: int) -> Taps:
        return Taps(self.index[start:stop], self.weight[start:stop])


@functools.lru_cache(maxsize=256)
def linear(inputs: int, outputs: int, step: float | None = None) -> Taps:
    """Two taps. step: input positions an output position; None: the ratio of the sizes."""
    at, fraction = _places(inputs, outputs, step)
    fraction = np.where((at < 0) | (at >= inputs - 1), np.float32(0), fraction)
    at = np.clip(at, 0, inputs - 1)
    index = np.stack([at, np.minimum(at + 1, inputs - 1)], 1)
    return Taps(index, np.stack([1 - fraction, fraction], 1).astype(np.float32))


@functools.lru_cache(maxsize=256)
def cubic(inputs: int, outputs: int, step: float | None = None) -> Taps:
    """Four taps of the cubic kernel with A = -0.75."""
    at, x = _places(inputs, outputs, step)
    a, one = np.float32(CUBIC), np.float32(1)
    first = ((a * (x + 1) - 5 * a) * (x + 1) + 8 * a) * (x + 1) - 4 * a
    second = ((a + 2) * x - (a + 3)) * x * x + one
    third = ((a + 2) * (1 - x) - (a + 3)) * (1 - x) * (1 - x) + one
    weight = np.stack([first, second, third, one - first - second - third], 1).astype(np.float32)
    return Taps(np.clip(at[:, None] + np.arange(-1, 3), 0, inputs - 1), weight)


def nearest(inputs: int, outputs: int, step: float | None = None) -> np.ndarray:
    """(n,) int64: the input position floor(i * step) of each output position, without a shift by half a pixel."""
    step = inputs / outputs if step is None else step
    return np.minimum(np.floor(np.arange(outputs) * step).astype(np.int64), inputs - 1)


@functools.lru_cache(maxsize=256)
def pillow_nearest(inputs: int, outputs: int) -> np.ndarray:
    """(n,) int64: what Pillow's nearest resizing reads. Its position is accumulated in floating point, so it is asked."""
    ramp = Image.fromarray(np.arange(inputs, dtype=np.int32)[None])
    return np.asarray(ramp.resize((outputs, 1), Image.Resampling.NEAREST))[0].astype(np.int64)


def sampled(pixels: np.ndarray, rows: Taps, columns: Taps) -> np.ndarray:
    """(h, w, c) to (rows, columns, c) float32: columns first, as OpenCV does. One channel lies behind the other in memory."""
    (top, bottom), (left, right) = ((int(t.index[0, 0]), int(t.index[-1, -1]) + 1) for t in (rows, columns))
    planes = pixels[top:bottom, left:right].transpose(2, 0, 1).astype(np.float32, order="C")
    wide = _weighted(planes, columns.index - left, columns.weight, 2)
    return _weighted(wide, rows.index - top, rows.weight[:, :, None], 1).transpose(1, 2, 0)


def _weighted(planes: np.ndarray, index: np.ndarray, weight: np.ndarray, axis: int) -> np.ndarray:
    """The taps of one axis, added in their order."""
    total = planes.take(index[:, 0], axis)
    total *= weight[:, 0]
    for k in range(1, index.shape[1]):
        part = planes.take(index[:, k], axis)
        part *= weight[:, k]
        total += part
    return total


def sampled_bytes(pixels: np.ndarray, rows: Taps, columns: Taps) -> np.ndarray:
    """(h, w, c) uint8 to (rows, columns, c) uint8, rounded half to even and clipped."""
    return np.clip(np.rint(sampled(pixels, rows, columns)), 0, 255).astype(np.uint8)


def _places(inputs: int, outputs: int, step: float | None) -> tuple[np.ndarray, np.ndarray]:
    """The input position below each output position, and how far beyond it, float32 (rounded once)."""
    step = inputs / outputs if step is None else step
    place = (np.arange(outputs) + 0.5) * step - 0.5
    below = np.floor(place)
    return below.astype(np.int64), (place - below).astype(np.float32)
