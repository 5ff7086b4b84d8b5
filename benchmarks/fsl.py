"""The feature similarity loss beside the matrices of all pairs (`tests/addons/plain_fsl.py`): forward and backward, time and memory.

    python benchmarks/fsl.py [--json FILE] [--quick] [--pairs 5] [--only PART]

56 x 56 are SEAM's maps at a crop of 448; batch 8 with 21 channels, of which a picture has the background and two classes, in made colors;
and with all 21 filled, as the multinomial original has them.
Both ways must give the same loss and gradient. The last row is ours alone: 128 x 128, where one matrix of all pairs of the batch would
take 8.6 GB, which is its `reference`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "addons")]

import torch  # noqa: E402
from _pairs import main, measured, pair  # noqa: E402
from plain_fsl import plain_fsl  # noqa: E402
from torch import Tensor  # noqa: E402

from seedbed.addons.fsl import feature_similarity_loss  # noqa: E402

BATCH, CHANNELS, PRESENT = 8, 21, 3
MU, SIGMA, GUARD = 2.5, 5.0, 1e-5


def made(side: int, present: int = PRESENT) -> tuple[Tensor, Tensor]:
    """Judgements (n, c, h, w), of which few channels are there, and colors (n, 3, h, w): smooth, with noise."""
    generator = torch.Generator().manual_seed(side)

    def smooth(channels: int, size: int) -> Tensor:
        coarse = torch.rand(BATCH, channels, size, size, generator=generator)
        return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic", align_corners=True).clamp(0, 1)

    y = torch.zeros(BATCH, CHANNELS, side, side)
    y[:, 1:present] = smooth(present - 1, 5)
    y[:, 0] = 1 - y.amax(1)
    noise = 0.02 * torch.randn(BATCH, 3, side, side, generator=generator)
    return y, (smooth(3, 12) + noise).clamp(0, 1)


def stepped(loss: Callable[..., Tensor], y: Tensor, x: Tensor) -> tuple[float, Tensor]:
    leaf = y.clone().requires_grad_()
    value = loss(leaf, x, MU, SIGMA, GUARD)
    value.backward()
    assert leaf.grad is not None
    return float(value.detach()), leaf.grad


def compared(work: str, side: int, present: int, repeats: int) -> dict[str, Any]:
    y, x = made(side, present)
    found: dict[str, tuple[float, Tensor]] = {}

    def ours() -> None:
        found["ours"] = stepped(feature_similarity_loss, y, x)

    def reference() -> None:
        found["plain"] = stepped(plain_fsl, y, x)

    row = pair(work, ours, reference, repeats=repeats, memory=True)
    (value, gradient), (expected, slope) = found["ours"], found["plain"]
    off = (gradient - slope).abs().max() / slope.abs().max()
    if abs(value - expected) > 1e-4 * abs(expected) or off > 1e-3:
        raise SystemExit(f"the losses are {value} and {expected}, their gradients {float(off):.1e} apart")
    return row


def alone(side: int) -> dict[str, Any]:
    """Memory, MB: ours beside one float32 matrix of all pairs of the batch."""
    y, x = made(side)
    seconds, memory = measured(lambda: stepped(feature_similarity_loss, y, x), memory=True)
    dense = 4 * BATCH * side**4 / 2**20
    row = {"work": f"fsl {side} x {side} memory", "ours": memory, "reference": dense, "unit": "MB"}
    return {
        **row,
        "ratio": dense / memory,
        "low": dense / memory,
        "high": dense / memory,
        "memory_ratio": memory / dense,
        "seconds": seconds,
    }


def rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    side = 20 if args.quick else 56
    for present, filled in ((PRESENT, ""), (CHANNELS, ", all channels filled")):
        if args.only in (work := f"fsl {side} x {side} batch {BATCH}{filled}"):
            yield compared(work, side, present, 1 if args.quick else args.pairs)
    side = 32 if args.quick else 128
    if args.only in f"fsl {side} x {side} memory":
        yield alone(side)


if __name__ == "__main__":
    main(rows, lambda parser: parser.add_argument("--pairs", type=int, default=5, help="timed pairs (default 5)"))
