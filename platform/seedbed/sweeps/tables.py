"""Tables of the papers as sweeps: which trials they hold, at which stage and on which split these are scored, and what was printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from seedbed import papers
from seedbed.pipeline import Experiment
from seedbed.sweeps.space import Setting
from seedbed.types import UserError

Printed = Mapping[str, tuple[float, float | None]]
"""Metric of scores.json -> value and standard deviation as printed."""

METRIC_OF = {"seed_mIoU": "mIoU", "J": "mIoU"}
"""A metric as the papers' files name it -> ours, where they differ."""


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    label: str
    """As the paper names it, with our values."""
    setting: Setting | None
    """What the trial changes; None: a row of the base itself."""
    method: str = ""
    """Of a row of the base: its method."""
    printed: Printed = field(default_factory=dict)
    default: bool = False
    """The paper's own setting: the others are compared with it."""
    x: float | None = None
    """Place along the figure's axis, where the setting does not say it."""
    curve: str = ""
    """Name of the figure's curve that the row is a point of; empty: its other settings name it."""
    group: str = ""
    """Rows are compared with the default row of their own group."""


@dataclass(frozen=True)
class PaperTable:
    """A sweep. `base` lays over the experiment what all trials share: it is run first, and its rows carry no setting."""

    name: str
    title: str
    lines: tuple[Line, ...]
    stage: str = "seed"
    """Stage whose score counts; the trials end with it."""
    split: str = ""
    """Split whose score counts; empty (of seeds and masks only, which have no other): the experiment's score split."""
    metrics: tuple[str, ...] = ("mIoU",)
    base: Setting = field(default_factory=dict)
    fixed: Setting = field(default_factory=dict)
    """What every trial is set to beside its own setting."""
    axis: str = ""
    """Setting along the figure's axis; empty: a bar for each row."""
    axis_name: str = ""
    """The axis in words; empty: the setting's name."""
    figure_metric: str = ""
    """Metric that the figure shows; empty: the first of the table."""
    over_k: bool = False
    """The figure shows the scores over the steps k of each trial."""
    source: str = ""
    """Where the paper prints it."""
    note: str = ""
    methods: tuple[str, ...] = ()
    """What it can be a table of; empty: any method, or its own among `fixed`."""

    @property
    def settings(self) -> list[Setting]:
        """Of the trials, each once, in order."""
        found: list[Setting] = []
        for line in self.lines:
            if line.setting is not None and line.setting not in found:
                found.append(line.setting)
        return found


@dataclass
class SweepResult:
    """What a sweep leaves: rows as in scores.json, and the trials' records by key."""

    table: PaperTable
    trials: list[Any]
    rows: list[dict[str, Any]]
    records: dict[str, dict[str, Any]]
    failed: dict[str, str]
    """Key -> why."""
    set_aside: bool = False
    computed: list[str] = field(default_factory=list)
    """Keys of the trials that this call ran."""

    def trial_of(self, line: Line) -> Any:
        """The trial of a row; None for a row of the base itself."""
        return None if line.setting is None else next(t for t in self.trials if dict(t.setting) == dict(line.setting))


TableOf = Callable[[Experiment], PaperTable]


def plain_name(name: str) -> str:
    """A table's name in whatever spelling -> letters and digits alone."""
    return "".join(c for c in name.lower() if c.isalnum())


def named(tables: Mapping[str, TableOf], name: str, base: Experiment) -> PaperTable:
    """The table by its name as printed: 5a, 5(a), Fig. 5; UserError lists those there are."""
    found = next((make for known, make in tables.items() if plain_name(known) == plain_name(name)), None)
    if found is None:
        raise UserError(f"there is no table {name!r} in this sweep", field="--table", remedy=f"choose one of {', '.join(tables)}")
    return found(base)


def printed(table: str, **where: str) -> Printed:
    """The paper's values of one row: `note` is the beginning of its note (its variant), the other columns are compared whole."""
    note = where.pop("note", "")
    rows = [r for r in papers.rows(table, **where) if f"{r['note']};".startswith(f"{note};") or not note]
    return {METRIC_OF.get(r["metric"], r["metric"]): (r["value"], r["std"]) for r in rows if isinstance(r["value"], float)}


def scaled(now: float, default: float, value: float) -> float:
    """The paper's value where the base has the paper's default, else the same multiple of what the base has."""
    if now == default:
        return value
    product = now * value / default
    return max(1, round(product)) if isinstance(default, int) else float(f"{product:.6g}")


def once(table: PaperTable) -> PaperTable:
    """Rows of equal settings (a grid scaled to small numbers) come once; they have then no printed value of their own."""
    lines: dict[str, Line] = {}
    for line in table.lines:
        same = str(line.method if line.setting is None else sorted(line.setting.items()))
        lines[same] = replace(lines[same], printed={}) if same in lines else line
    return replace(table, lines=tuple(lines.values()))
