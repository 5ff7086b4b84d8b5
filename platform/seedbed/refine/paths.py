"""Pairs of pixels within a radius, and the pixels between them: what IRN and AffinityNet look at. Coordinates are (row, column)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

Offset = tuple[int, int]


@dataclass(frozen=True)
class Path:
    """A direction, and the cells on the way: from the destination to the source, which is (0, 0); both belong to it."""

    destination: Offset
    cells: tuple[Offset, ...]


def directions(radius: int) -> tuple[Offset, ...]:
    """Each unordered pair of pixels less than `radius` apart once, as destination minus source: to the right, then the rows below.

    README irn.npz: (0, 1 .. r-1), then rows 1 .. r-1 with every column where dy^2 + dx^2 < r^2. Empty below a radius of 2.
    """
    below = ((dy, dx) for dy in range(1, radius) for dx in range(1 - radius, radius) if dy * dy + dx * dx < radius * radius)
    return (*((0, dx) for dx in range(1, radius)), *below)


def cells_between(destination: Offset) -> tuple[Offset, ...]:
    """The cells of the bounding box of (0, 0) and a destination that lie less than 1 from the line through both; farthest first."""
    dy, dx = destination
    columns = range(min(dx, 0), max(dx, 0) + 1)
    near = [(y, x) for y in range(dy + 1) for x in columns if (dy * x - dx * y) ** 2 < dy * dy + dx * dx]
    return tuple(sorted(near, key=lambda cell: (-abs(cell[0]) - abs(cell[1]), cell[0])))


@functools.lru_cache(maxsize=16)
def paths(radius: int) -> tuple[Path, ...]:
    """The path of every direction; short ones first, of equal lengths in the order of `directions`."""
    return tuple(sorted((Path(d, cells_between(d)) for d in directions(radius)), key=lambda path: len(path.cells)))


def source_grid(size: tuple[int, int], radius: int) -> tuple[int, int]:
    """How many rows and columns of a map (h, w) have pixels whose every partner lies in it: rows 0 .. h-r, columns r-1 .. w-r."""
    reach = max(radius - 1, 0)
    return max(size[0] - reach, 0), max(size[1] - 2 * reach, 0)


def source_indices(size: tuple[int, int], radius: int) -> np.ndarray:
    """(s,) int64: flat positions of the sources of a map (h, w), in reading order."""
    rows, columns = source_grid(size, radius)
    return (np.arange(rows)[:, None] * size[1] + np.arange(columns) + max(radius - 1, 0)).ravel()


def flat(offsets: list[Offset] | tuple[Offset, ...], width: int) -> np.ndarray:
    """(n,) int64: offsets as distances in a map flattened row by row."""
    return np.array([dy * width + dx for dy, dx in offsets], np.int64)
