"""A made-up training for the tests of the loop: seconds long, with everything that makes resumption hard.

Batch norm with statistics, dropout, momentum, two terms, uneven shares. Run as a script it trains in a folder: a process to be killed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seedbed import loop
from seedbed.optim import PolySGD
from seedbed.types import Batch, StepOutput, UserError


class Net(nn.Module):
    def __init__(self, plain: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.conv = nn.Conv2d(8, 12, 3, 1, 1, bias=False)
        self.norm = nn.Identity() if plain else nn.BatchNorm2d(12)
        self.drop = nn.Dropout(0.0 if plain else 0.2)
        self.classifier = nn.Conv2d(12, 4, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.drop(self.norm(self.conv(self.stem(x).relu())).relu()))


@dataclass
class TinyTask:
    seed: int = 3
    steps: int = 24
    batch_size: int = 6
    lr: float = 0.05
    pace: loop.Pace = field(default_factory=lambda: loop.Pace(log_every=4, checkpoint_every=3, checkpoint_seconds=1e9))
    delay: float = 0.0
    poison: int = -1
    """Step from which a term is not finite."""
    bug: bool = False
    hopeless: bool = False
    """A user's error at the start."""
    die_once: tuple[int, int, str] | None = None
    """Rank, step and a file: the worker is killed there unless the file exists."""
    die_always: int = -1
    """Step at which every worker is killed, every time."""
    left_out: str = ""
    plain: bool = False
    """Neither batch norm nor dropout."""
    set_aside: dict[str, str] = field(default_factory=dict)

    def open(self) -> None:
        if self.bug:
            raise TypeError("a bug")
        if self.hopeless:
            raise UserError("no pictures", remedy="bring some")

    def identity(self) -> str:
        return f"tiny {self.seed} {self.steps} {self.lr}"

    def build(self) -> nn.Module:
        return Net(self.plain)

    def optimizer(self, model: Net, steps: int) -> PolySGD:
        groups = [{"params": [*model.conv.parameters(), *model.norm.parameters()], "weight_decay": 1e-3}]
        groups.append({"params": list(model.classifier.parameters()), "lr": 10 * self.lr})
        return PolySGD(groups, self.lr, 1e-3, steps, momentum=0.9)

    def batch(self, step: int, rank: int, world: int) -> Batch:
        if self.delay:
            time.sleep(self.delay)
        if self.die_once and self.die_once[:2] == (rank, step) and not os.path.exists(self.die_once[2]):
            Path(self.die_once[2]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if step == self.die_always:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.left_out and step == 5:
            self.set_aside[self.left_out] = "can't be read"
        draw = torch.Generator().manual_seed(1000 * self.seed + step)
        images = torch.randn(self.batch_size, 3, 16, 16, generator=draw)
        labels = (images.mean((2, 3)).repeat(1, 2)[:, :4] > 0).float()
        rows = loop.share(self.batch_size, rank, world)
        return Batch(images[rows], labels[rows])

    def loss(self, model: nn.Module, batch: Batch, step: int) -> StepOutput:
        logits = model(batch.images_nchw)
        bce = nn.functional.multilabel_soft_margin_loss(logits.mean((2, 3)), batch.labels_nc)
        small = 1e-2 * logits.square().mean()
        return StepOutput({"bce": bce, "small": small * (float("nan") if 0 <= self.poison <= step else 1.0)}, logits)

    def validates(self, done: int) -> bool:
        return done % 12 == 0

    def validate(self, model: nn.Module, device: str, rank: int, world: int) -> Any:
        rows = self.batch(10_000, rank, world)
        return float(self.loss(model, Batch(rows.images_nchw.to(device), rows.labels_nc.to(device)), 0).losses["bce"])

    def judge(self, parts: Sequence[Any]) -> Mapping[str, float]:
        return {"val/loss": sum(parts) / len(parts)}

    def facts(self) -> Mapping[str, Any]:
        return {"initial_weights": "none"}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights.pt", weights_only=True)


def same_bits(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


if __name__ == "__main__":
    every = loop.Pace(log_every=4, checkpoint_every=1, checkpoint_seconds=1e9)
    loop.train(TinyTask(steps=int(sys.argv[2]), pace=every), Path(sys.argv[1]))
