"""The random walk written down as the README of the golden numbers tells it: dense matrices, squared t times.

What `seedbed.refine.random_walk` is compared with, for values (tests) and for time and memory (benchmarks). Needs (h * w)^2 numbers, twice.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def directions(radius: int) -> list[tuple[int, int]]:
    found = [(0, dx) for dx in range(1, radius)]
    return found + [(dy, dx) for dy in range(1, radius) for dx in range(1 - radius, radius) if dy**2 + dx**2 < radius**2]


def path(dy: int, dx: int) -> list[tuple[int, int]]:
    """Cells of the bounding box nearer than 1 to the line: |cross product| / length."""
    box = [(y, x) for y in range(dy + 1) for x in range(min(dx, 0), max(dx, 0) + 1)]
    return [(y, x) for y, x in box if abs(dy * x - dx * y) / np.hypot(dy, dx) < 1 - 1e-12]


def irn_matrix(edge: np.ndarray, radius: int) -> np.ndarray:
    """(h * w, h * w) affinities in the edges' precision; the edge map is padded with 1, and the padding taken out at the end."""
    h, w = edge.shape
    padded = np.pad(edge, ((0, radius), (radius, radius)), constant_values=1.0)
    height, width = padded.shape
    number = np.full(padded.shape, -1)
    number[:h, radius : radius + w] = np.arange(h * w).reshape(h, w)
    matrix = np.eye(h * w, dtype=edge.dtype)
    rows, left = height - (radius - 1), radius - 1
    columns = width - 2 * left
    for dy, dx in directions(radius):
        largest = np.max([padded[y : y + rows, left + x : left + x + columns] for y, x in path(dy, dx)], axis=0)
        source = number[:rows, left : left + columns].ravel()
        partner = number[dy : dy + rows, left + dx : left + dx + columns].ravel()
        inside = (source >= 0) & (partner >= 0)
        matrix[source[inside], partner[inside]] = 1 - largest.ravel()[inside]
        matrix[partner[inside], source[inside]] = 1 - largest.ravel()[inside]
    return matrix


def affinitynet_matrix(features: np.ndarray, radius: int) -> np.ndarray:
    _, h, w = features.shape
    if min(h, w) < 2 * radius + 1:
        radius = (min(h, w) - 1) // 2
    matrix = np.eye(h * w, dtype=features.dtype)
    for dy, dx in directions(radius):
        for y in range(h - radius + 1):
            for x in range(radius - 1, w - radius + 1):
                value = np.exp(-np.abs(features[:, y, x] - features[:, y + dy, x + dx]).mean())
                matrix[y * w + x, (y + dy) * w + x + dx] = matrix[(y + dy) * w + x + dx, y * w + x] = value
    return matrix


def transition(matrix: np.ndarray, beta: float, squarings: int) -> Tensor:
    found = torch.from_numpy(matrix) ** beta
    found /= found.sum(0)
    for _ in range(squarings):
        found = found @ found
    return found


def walk(maps: np.ndarray, matrix: np.ndarray, beta: float, squarings: int) -> np.ndarray:
    """(c, h, w) maps times the transition matrix to the power 2^squarings."""
    return (torch.from_numpy(maps).flatten(1) @ transition(matrix, beta, squarings)).numpy().reshape(maps.shape)


def walk_by_products(maps: np.ndarray, matrix: np.ndarray, beta: float, times: int) -> np.ndarray:
    """The same with the dense matrix multiplied to the maps `times` times, never squared."""
    step = transition(matrix, beta, 0)
    found = torch.from_numpy(maps).flatten(1)
    for _ in range(times):
        found = found @ step
    return found.numpy().reshape(maps.shape)
