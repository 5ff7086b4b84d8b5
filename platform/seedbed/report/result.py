"""What a finished study hands to the tables and the report. Plain values: reading them needs no network, no store and no pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Panel:
    """One picture as the report shows it: picture | maps | seeds | pseudo-label | prediction | truth."""

    id: str
    picture: np.ndarray
    """(h, w, 3) uint8, RGB."""
    truth: np.ndarray | None = None
    """(h, w) label map of the scored kind; None where the picture has no mask."""
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Caption -> (h, w) float in 0..1, the largest over the labelled classes; in the order shown: {"CAM": ..., "RIB k=0": ...}."""
    seeds: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Caption -> (h, w) label map at the method's threshold: {"CAM": ..., "RIB": ...}."""
    later: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Caption -> (h, w) label map of the stages after the seeds: {"RIB mask": ..., "labels": ..., "prediction": ...}."""


@dataclass(frozen=True)
class StageSummary:
    """One artefact of the study."""

    name: str
    """The stage's name, with the method and seed where there are several: `maps rib 0`."""
    key: str
    count: int
    """Records it holds."""
    computed: int
    """Records that this call computed itself; the rest it found."""
    seconds: float
    set_aside: Sequence[Mapping[str, str]] = ()
    """{"id", "reason"} of every picture that was set aside."""
    digest: str = ""


@dataclass(frozen=True)
class SweepRow:
    """A row of a sweep's table: a trial, or a row of the base."""

    label: str
    method: str
    values: Mapping[str, tuple[float, float | None]] = field(default_factory=dict)
    """Metric -> mean over the random seeds, and standard deviation where there are several; empty where the trial failed."""
    printed: Mapping[str, tuple[float, float | None]] = field(default_factory=dict)
    """The same as the paper prints it."""
    paired: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Metric -> against the reference row: difference, low, high (points), pictures."""
    pictures: Sequence[int] = ()
    """Pictures that the score of each random seed counts."""
    setting: Mapping[str, Any] = field(default_factory=dict)
    reference: str = ""
    """Label of the row that it is compared with, or its own."""
    x: float | None = None
    """Place along the figure's axis, where the setting does not say it."""
    group: str = ""
    """Curve of the figure that the row is a point of; empty: its other settings say it."""
    curve: Sequence[float] = ()
    """mIoU of the cumulative map of every step k."""
    state: str = ""
    """base; without network; of a trial: run now, found, cut, stopped, failed."""
    seconds: float | None = None
    set_aside: Sequence[Mapping[str, str]] = ()
    """{"id", "reason"} of every picture that this trial lost and the base did not."""

    @property
    def kind(self) -> str:
        """trial, base or without network."""
        return self.state if self.state in ("base", "without network") else "trial"


@dataclass(frozen=True)
class SweepTable:
    """What a sweep shows: a table in the paper's shape, with the paper's numbers beside ours."""

    name: str
    title: str
    stage: str
    split: str
    metrics: Sequence[str]
    rows: Sequence[SweepRow]
    reference: str = ""
    """Label of the row that the others are compared with."""
    axis: str = ""
    axis_name: str = ""
    figure_metric: str = ""
    over_k: bool = False
    search: bool = False
    source: str = ""
    notes: Sequence[str] = ()

    @property
    def pictures(self) -> int:
        """The most that any row's score counts."""
        return max((n for row in self.rows for n in row.pictures), default=0)


@dataclass(frozen=True)
class StudyResult:
    """All that the tables and the report show."""

    experiment: Any
    """The settings of all stages; only `flat()` and `name` are read, and only where they are there."""
    rows: Sequence[Mapping[str, Any]]
    """Rows of scores.json (INTERFACE.md)."""
    curves: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    """Method -> {"thresholds": [...], "mIoU": [...]}, percent; "std" may stand beside (several random seeds)."""
    over_k: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    """Method -> per step {"k", "mIoU", "threshold"}; "std" may stand beside."""
    ends: Mapping[str, Mapping[str, Mapping[int, int]]] = field(default_factory=dict)
    """Method -> reason (margin, area, steps, companions) -> steps entered -> number of pictures."""
    coverage: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Method -> share in percent of the training labels' pixels: object, background, ignored; of the mask's: changed against the seed."""
    panels: Sequence[Panel] = ()
    stages: Sequence[StageSummary] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """The content of run.json."""
    paper_rows: Sequence[Mapping[str, Any]] = ()
    """Rows of the papers' tables, columns of `papers/*.csv`."""
    classes: Sequence[str] = ()
    """Class names without background."""
    palette: Sequence[Sequence[int]] = ()
    """RGB of every label value, background first."""
    warnings: Sequence[str] = ()
    paired: Sequence[Mapping[str, Any]] = ()
    """Paired differences as in scores.json: first, second, metric, difference, low, high, level, pictures, better, worse."""
    sweep: SweepTable | None = None
    """Of a sweep: its trials. `rows` are then those of the base alone."""
