"""A trial of several random seeds in parts, one for each, that run side by side as trials do."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from seedbed.local import NullTracker
from seedbed.sweeps.tables import PaperTable
from seedbed.sweeps.trials import Ledger, Trial, quiet_gpu, recorded_failure, run_trial, study_of


class Hears(Protocol):
    """What is told of each trial, in the driver, and by which table's score the trials are compared."""

    @property
    def table(self) -> PaperTable: ...

    def started(self, trial: Trial) -> None: ...

    def ended(self, trial: Trial, last: Mapping[str, Any] | None = None, crash: str = "") -> None: ...


def split(trials: Iterable[Trial]) -> list[Trial]:
    """Every trial of several random seeds as one part for each; maps that are cut out of another's are no work to share."""
    found: list[Trial] = []
    for trial in trials:
        seeds = trial.experiment.random_seeds
        found += [trial] if len(seeds) == 1 or trial.cut_from is not None else [replace(trial, part=seed) for seed in seeds]
    return found


def run_part(part: Trial) -> dict[str, Any]:
    """Runs one random seed of a trial in this process, and leaves no record but why it failed; returns what it took."""
    began = time.time()
    with recorded_failure(part), quiet_gpu(part.device) as memory:
        study, executor = study_of(part)
        study.collect(executor, NullTracker())
        computed = {s.key: s.computed for s in study.summaries}
    return {"seconds": time.time() - began, "computed": computed, "gpu_bytes": memory.get("bytes", 0), "gpu_total": memory.get("total", 0)}


class Gathered:
    """Hears of parts and tells of whole trials. When the last part of a trial has ended, all its stages are there: then it is recorded."""

    def __init__(self, watch: Hears, trials: Iterable[Trial]) -> None:
        self.watch = watch
        self.left: dict[str, set[int]] = {}
        self.took: dict[str, list[Mapping[str, Any]]] = {}
        self.crash: dict[str, str] = {}
        for trial in trials:
            if trial.part is not None:
                self.left.setdefault(trial.key, set()).add(trial.part)

    @property
    def table(self) -> PaperTable:
        return self.watch.table

    def started(self, trial: Trial) -> None:
        self.watch.started(replace(trial, part=None))

    def ended(self, trial: Trial, last: Mapping[str, Any] | None = None, crash: str = "") -> None:
        if trial.part is None:
            self.watch.ended(trial, last, crash)
            return
        key, whole = trial.key, replace(trial, part=None)
        self.left[key].discard(trial.part)
        self.took.setdefault(key, []).append((last or {}).get("part") or {})
        self.crash[key] = self.crash.get(key) or crash
        if self.left[key]:
            return
        if not self.crash[key] and Ledger(whole.experiment.folder()).failure(key) is None:
            with contextlib.suppress(Exception):  # it stands in the trial's own record; the others go on
                run_trial(whole, parts=self.took[key])
        self.watch.ended(whole, crash=self.crash[key])
