"""`Sweep`: an experiment that is repeated with other settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from seedbed.config import bounded, setting
from seedbed.pipeline import WORDS, Experiment, ShapesExperiment
from seedbed.types import UserError


@dataclass(frozen=True)
class Sweep(Experiment):
    """The base experiment, and what is varied. None of these fields changes a trial's result: they choose the trials."""

    table: str = setting("", key=False)
    """Table or figure of the paper whose grid, stage and split are run; an unknown name lists them."""
    search: Literal["grid", "random", "optuna"] = setting("grid", key=False)
    """grid: every trial of the table, or of a space of choices; random, optuna: --trials draws from --space."""
    trials: int = bounded(0, 0, 100_000, key=False)
    """Trials of a search; of a grid only the first so many. 0: the whole grid."""
    space: tuple[str, ...] = setting((), key=False)
    """What is varied: rib.tau=0.2:0.6 (a range), rib.lr=1e-6:1e-4:log, rib.pooling=gap,gndrp (a choice), or a JSON object of the same."""
    stop: Literal["none", "asha"] = setting("none", key=False)
    """asha: end a trial early whose score over a growing share of the pictures falls behind (random and optuna)."""
    concurrency: int = bounded(0, 0, 4096, key=False)
    """Trials at once; 0: as many as there are CPUs, and on a GPU as many as its memory holds by what the first trial took."""

    def check_together(self, prefix: str) -> None:
        super().check_together(prefix)
        if self.search == "grid" and self.table and self.space:
            raise UserError("a table has its own grid", field="--space", remedy="leave --space or --table out, or say --search random")
        if self.search == "grid" and not self.table and not self.space:
            raise UserError(
                "nothing is varied", field="--table", remedy="name a table of the paper, or say --space rib.tau=0.3,0.4 or --search random"
            )
        if self.search != "grid" and self.trials < 1:
            raise UserError(f"--search {self.search} needs a number of trials", field="--trials", remedy="say --trials 20")
        if self.search == "grid" and self.stop == "asha":
            raise UserError("a grid is run to its end", field="--stop", remedy="leave --stop out, or say --search random --trials 20")
        if self.search == "optuna" and self.run.executor == "local":
            raise UserError("--search optuna runs on Ray alone", field="--search", remedy="say --run.executor ray, or --search random")
        if self.stop == "asha" and self.run.executor == "local":
            raise UserError("--stop asha runs on Ray alone", field="--stop", remedy="say --run.executor ray, or leave --stop out")


@dataclass(frozen=True)
class ShapesSweep(Sweep, ShapesExperiment):
    """A sweep on the embedded shapes set."""


def absolute(sweep: Sweep) -> Sweep:
    """Paths as another process finds them."""
    changes: dict[str, Any] = {"out": str(sweep.folder())}
    if sweep.data.store and "://" not in sweep.data.store:
        changes["data.store"] = str(Path(sweep.data.store).absolute())
    for name, value in sweep.flat().items():
        if name.endswith(("weights", "saliency")) and value and value not in WORDS and Path(str(value)).exists():
            changes[name] = str(Path(value).absolute())
    return sweep.replace(**changes)
