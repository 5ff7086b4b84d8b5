"""Paired differences of a sweep: every row against the reference, on the same pictures, for every metric of the table."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedbed.artefacts import Stage
from seedbed.metrics.paired import Counts, PairedDifference, counts_by_picture, paired_over_seeds
from seedbed.stages import Study
from seedbed.sweeps.tables import Line, SweepResult

if TYPE_CHECKING:
    from seedbed.sweeps.drive import Driver

PAIRED = ("mIoU", "F", "J_and_F")
"""Metrics that the pictures' counts give."""


@dataclass(frozen=True)
class Difference:
    line: Line
    reference: Line
    metrics: dict[str, PairedDifference]

    def records(self, stage: str, split: str) -> list[dict[str, Any]]:
        """As scores.json has it, an entry for each metric."""
        sides = {"first": self.reference, "second": self.line}
        named = {name: {"label": side.label, "setting": side.setting or {}} for name, side in sides.items()}
        return [{**named, "stage": stage, "split": split, "metric": m, **d.to_record()} for m, d in self.metrics.items()]


def split_of(driver: Driver, base: Study) -> str:
    """Where the sweep is scored."""
    if driver.table.split:
        return driver.table.split
    return next(iter(base.keys.segmented_ids)) if driver.table.stage == "segmentation" else driver.base.data.score_split


def reference_lines(result: SweepResult) -> list[Line]:
    """The paper's own setting, one of each group of rows; of a search the base."""
    lines = [line for line in result.table.lines if line.default] or [line for line in result.table.lines if line.setting is None]
    return list({line.group: line for line in reversed(lines)}.values())[::-1]


def differences(driver: Driver, base: Study, result: SweepResult) -> list[Difference]:
    """The same pictures, drawn again and again; the mean over the random seeds."""
    scoring, classes = driver.base.scoring, len(base.store.info.classes)
    metrics = [metric for metric in result.table.metrics if metric in PAIRED]

    def counts(line: Line) -> list[dict[str, Counts]]:
        folders = _counted(driver, base, result, line)
        return [counts_by_picture(folder, classes, scoring.tolerance) for folder in folders if folder.exists()]

    found = []
    for reference in reference_lines(result) if metrics else ():
        first = counts(reference)
        for line in result.table.lines:
            second = counts(line) if line is not reference and line.group == reference.group and first else []
            runs = list(zip(first, second, strict=True)) if len(first) == len(second) else []
            if runs and set.intersection(*(set(side) for run in runs for side in run)):
                of = paired_over_seeds(runs, absent=scoring.absent(base.subset), metrics=metrics)
                found.append(Difference(line, reference, {m: d for m, d in of.items() if math.isfinite(d.difference)}))
    return found


def _counted(driver: Driver, base: Study, result: SweepResult, line: Line) -> list[Path]:
    """Of each random seed the artefact with the counts of every picture."""
    if (trial := result.trial_of(line)) is not None:
        scored = (result.records.get(trial.key) or {}).get("scored") or {}
        return [driver.sweep.folder() / "stages" / name / key for name, key in scored.values()]
    stage = driver.table.stage
    if line.method not in (base.methods if stage == "seed" else base.going(stage)):
        return []
    made: dict[str, Callable[[str, int], Stage]] = {
        "seed": base.seeds_stage,
        "mask": base.scored_stage,
        "segmentation": partial(base.predictions_stage, split=split_of(driver, base)),
    }
    return [made[stage](line.method, seed).folder for seed in base.seeds]
