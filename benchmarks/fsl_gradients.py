"""The gradients of the three gates of the feature similarity loss, Eq. (19) to (23) of HFPL, as a picture for docs/addons.md.

python benchmarks/fsl_gradients.py [--out docs/images/fsl_gradients.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seedbed.addons.fsl import max_normalised
from seedbed.addons.isl import binomial_posterior
from seedbed.addons.pairs import gate
from seedbed.report.drawing import THEME, Figure

PARTNERS = (0.0, 4.0)
HIGHEST = 4.0
"""Largest score of the rest of the map."""

GATES = {"s": ("raw score s", "fourth", "--"), "b": ("binomial b", "third", "-."), "r": ("map over its maximum r", "rib", "-")}


def gradient(kind: str, scores: Tensor, partner: float) -> Tensor:
    """Of g by the first of two scores; one map of three positions for every score: it, its partner, and the largest of the rest."""
    maps = torch.stack([scores, torch.full_like(scores, partner), torch.full_like(scores, HIGHEST)], 1)[:, None, None].requires_grad_()
    y = {"s": lambda: maps, "b": lambda: binomial_posterior(maps), "r": lambda: max_normalised(maps, "paper")}[kind]()
    gate(y[..., 0], y[..., 1]).sum().backward()
    assert maps.grad is not None
    return maps.grad[:, 0, 0, 0]


def draw(canvas: Any) -> None:
    scores = torch.linspace(-6, 10, 641)
    panels = canvas.subplots(1, len(PARTNERS), sharey=True)
    for axes, partner in zip(panels, PARTNERS, strict=True):
        for kind, (label, color, line) in GATES.items():
            axes.plot(scores, gradient(kind, scores, partner), line, color=THEME[color], label=label if partner == PARTNERS[0] else None)
        axes.axvline(partner, color=THEME["soft"], linewidth=1, linestyle=(0, (1, 2)))
        axes.annotate("partner", (partner, -0.45), (4, 0), textcoords="offset points", color=THEME["soft"])
        axes.set_ylim(-0.5, 0.5)
        axes.set_xlabel(f"score of a position; its partner's is {partner:g}")
    panels[0].set_ylabel("gradient of the gate")
    canvas.legend(loc="outside upper left", ncols=3, frameon=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images/fsl_gradients.png"))
    args = parser.parse_args()
    args.out.write_bytes(Figure("fsl_gradients", "", "", "", (7.5, 3.0), draw).drawn().png)
