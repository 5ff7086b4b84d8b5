"""The random walk of IRN beside a dense one (`tests/refine/plain_random_walk.py`).

    python benchmarks/random_walk.py [--json FILE] [--quick] [--pairs 5] [--squarings 8] [--squared] [--full] [--only PART]

Maps of two classes at stride 4: 94 x 125 is a picture of 500 x 375. Radius 5, beta 10 and 2^8 steps as in IRN and RIB; boundaries are made,
thin and strong ones in weak clutter. Both ways must give the same maps. The dense way of row `random walk` multiplies the maps 2^8 times by
the matrix; the official codes square the matrix 8 times, which takes some ten minutes on one core: row `squared matrix`, with --squared.
The last rows are ours alone: a picture of 1,000 x 1,000 pixels at stride 4 and, with --full, maps of 1,000 x 1,000; their `reference` is
the memory of a dense float32 matrix, and more than 8 GB is an error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "refine")]

import plain_random_walk as plain  # noqa: E402
from _pairs import main, measured, pair  # noqa: E402

from seedbed.refine.random_walk import irn_affinity, walk  # noqa: E402

RADIUS, BETA, CLASSES = 5, 10, 2
TOLERANCE = 2e-4


def made(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Boundaries (h, w) and maps (c, h, w): ellipses with thin strong outlines in weak clutter."""
    rng = np.random.default_rng(size)
    y, x = np.mgrid[: size[0], : size[1]]
    edge, maps = 0.15 * rng.random(size), np.zeros((CLASSES, *size))
    for index in range(CLASSES):
        cy, cx, ry, rx = rng.uniform(0.2, 0.8, 2).tolist() + rng.uniform(0.15, 0.35, 2).tolist()
        distance = np.hypot((y / size[0] - cy) / ry, (x / size[1] - cx) / rx)
        edge = np.maximum(edge, 0.95 * np.exp(-(((distance - 1) * 15) ** 2)))
        maps[index] = np.exp(-((2 * distance) ** 2))
    return edge.astype(np.float32), maps.astype(np.float32)


def walk_row(work: str, size: tuple[int, int], squarings: int, repeats: int, squared: bool) -> dict[str, Any]:
    edge, maps = made(size)
    found: dict[str, np.ndarray] = {}

    def ours() -> None:
        found["ours"] = walk(maps, irn_affinity(edge, RADIUS, BETA), 2**squarings)

    def reference() -> None:
        matrix = plain.irn_matrix(edge, RADIUS)
        found["plain"] = plain.walk(maps, matrix, BETA, squarings) if squared else plain.walk_by_products(maps, matrix, BETA, 2**squarings)

    ours()  # the dense way needs no warming up, and takes long
    row = pair(work, ours, reference, repeats=repeats, warm=False, memory=True)
    np.testing.assert_allclose(found["ours"], found["plain"], rtol=0, atol=TOLERANCE)
    return row


def large_row(work: str, side: int, squarings: int) -> dict[str, Any]:
    """Memory, MB: ours beside the bytes of one dense float32 matrix."""
    edge, maps = made((side, side))
    seconds, memory = measured(lambda: walk(maps, irn_affinity(edge, RADIUS, BETA), 2**squarings), memory=True)
    dense = 4 * side**4 / 2**20
    ratio = dense / memory
    row = {"work": work, "ours": memory, "reference": dense, "unit": "MB", "ratio": ratio, "low": ratio, "high": ratio}
    if memory >= 8 << 10:
        raise SystemExit(f"{work} took {memory:.0f} MB, not less than 8 GB")
    return {**row, "memory_ratio": memory / dense, "seconds": seconds}


def rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    size = (24, 32) if args.quick else (94, 125)
    ways = [("random walk", args.pairs, False), *([("squared matrix", 1, True)] if args.squared or args.quick else [])]
    for name, pairs, squared in ways:
        work = f"{name} {size[0]} x {size[1]}"
        if args.only in work:
            yield walk_row(work, size, args.squarings, pairs, squared)
    for work, side in (("walk of 1000 px at stride 4", 250), *([("walk of maps 1000 x 1000", 1000)] if args.full else [])):
        if args.only in work:
            yield large_row(work, side, args.squarings)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", type=int, default=5, help="timed pairs (default 5)")
    parser.add_argument("--squarings", type=int, default=8, help="t of 2^t steps (default 8)")
    parser.add_argument("--squared", action="store_true", help="the dense matrix squared, too")
    parser.add_argument("--full", action="store_true", help="maps of 1,000 x 1,000 too")


if __name__ == "__main__":
    main(rows, options)
