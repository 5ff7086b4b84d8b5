"""What is shown of a sweep: its table in the paper's shape, the differences from the reference row, the trials with their settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from seedbed.report.published import doubts
from seedbed.report.result import SweepRow, SweepTable
from seedbed.report.summary import METRICS, Kind, Value


@dataclass(frozen=True)
class Column:
    head: str
    cells: Sequence[str]
    rank: int = 0
    """Where there is no room the column of the highest rank goes first; 0: it stays."""
    brief: Sequence[str] | None = None
    """Shorter cells, taken before any column goes."""
    kept: bool = False
    """Shortened early by its rank, but never left out."""


def sweep_columns(sweep: SweepTable) -> list[Column]:
    """Ours and the paper's for each metric; the paired difference where there is one metric alone; what became of the trial."""
    rows = sweep.rows
    printed = any(row.printed for row in rows)
    found = [Column("", [_label(sweep, row) for row in rows])]
    for i, metric in enumerate(sweep.metrics):
        name = METRICS.get(metric, metric)
        values = [row.values.get(metric) for row in rows]
        found.append(Column(f"{name}, ours" if printed else name, [number(v, 2) for v in values], 10 * i, _bare(values, 2) if i else None))
        if printed:
            values = [row.printed.get(metric) for row in rows]
            found.append(Column("paper", [number(v, 1) for v in values], 10 * i + 5, _bare(values, 1)))
    if len(sweep.metrics) == 1 and any(row.paired for row in rows):
        found += _difference(sweep, sweep.metrics[0], "− reference", 3)
    states = [", ".join(filter(None, (pictures_said(sweep, row), row.state))) for row in rows]
    brief = [", ".join(filter(None, (pictures_said(sweep, row), row.state if _notable(row) else ""))) for row in rows]
    return [*found, Column("", states, 99, brief, kept=True)]


def difference_columns(sweep: SweepTable) -> list[Column]:
    """Of a table with several metrics: the paired difference of each, for the rows that have one; else nothing."""
    rows = [row for row in sweep.rows if row.paired]
    if len(sweep.metrics) < 2 or not rows:
        return []
    mine = replace(sweep, rows=rows)
    found = [Column("", [_label(mine, row) for row in rows])]
    for i, metric in enumerate(sweep.metrics):
        found += _difference(mine, metric, METRICS.get(metric, metric), 10 * i)
    counts = [_paired_pictures(row) for row in rows]
    return [*found, Column("pictures", [f"{n:,}" for n in counts], 0 if len({*counts, sweep.pictures}) > 1 else 90)]


def difference_title(sweep: SweepTable) -> str:
    return f"Differences from {sweep.reference}, paired over the pictures: {sweep.stage} on {sweep.split}, points"


def kinds(rows: Sequence[SweepRow]) -> list[Kind]:
    """How each row is set."""
    return ["without network" if row.kind == "without network" else "method" if row.values else "failed" for row in rows]


def sweep_notes(sweep: SweepTable) -> list[str]:
    """What belongs beneath the table: its own notes, pictures that are missing, and what is doubtful in the printed values."""
    found = list(sweep.notes)
    if any(pictures_said(sweep, row) for row in sweep.rows):
        found.append(
            f"Not of all {sweep.pictures:,} pictures, where the row says so: differences are over the pictures that both rows have."
        )
    if any(row.printed for row in sweep.rows):
        named = re.findall(r"(?:rib|hfpl)_table\w+", sweep.source)
        found += [line for lines in doubts((), dict.fromkeys(named)).values() for line in lines]
    return list(dict.fromkeys(found))


def fitting(columns: Sequence[Column], width: int) -> tuple[list[Column], list[str]]:
    """As many of the columns as have room, and the headings of those that have none; a label that is too long even then is cut."""
    found, left_out = list(columns), []
    by_rank = sorted(columns, key=lambda column: -column.rank)
    for column in by_rank:
        if column.brief is not None and _wide(found) > width:
            found[found.index(column)] = replace(column, cells=column.brief, brief=None)
    for column in sorted(found, key=lambda column: -column.rank):
        if column.rank and not column.kept and _wide(found) > width:
            at = found.index(column)
            beside = found[at - 1].head.partition(",")[0]
            left_out.append({"paper": f"{beside} of the paper", "95 % interval": f"interval of {beside}"}.get(column.head, column.head))
            del found[at]
    found = [column for column in found if column.head or any(column.cells)]
    if (over := _wide(found) - width) > 0:
        room = max(12, max(map(len, found[0].cells)) - over)
        found[0] = replace(found[0], cells=[c if len(c) <= room else c[: room - 1] + "…" for c in found[0].cells])
    return found, left_out[::-1]


def _wide(columns: Sequence[Column]) -> int:
    return sum(max(map(len, (column.head, *column.cells))) + 2 for column in columns)


def _label(sweep: SweepTable, row: SweepRow) -> str:
    return row.label + (" *" if row.label == (row.reference or sweep.reference) else "")


def number(value: tuple[float, float | None] | None, digits: int) -> str:
    return "" if value is None else Value(*value).text(digits=digits)


def _bare(values: Sequence[tuple[float, float | None] | None], digits: int) -> list[str]:
    return ["" if value is None else Value(value[0]).text(digits=digits) for value in values]


def _difference(sweep: SweepTable, metric: str, head: str, rank: int) -> list[Column]:
    apart, interval = [], []
    for row in sweep.rows:
        found = row.paired.get(metric)
        signed = [Value(found[name]).text(sign=True) for name in ("difference", "low", "high")] if found else ["", "", ""]
        apart.append(signed[0])
        interval.append(f"{signed[1]} to {signed[2]}" if found else "")
    return [Column(head, apart, rank), Column("95 % interval", interval, rank + 1)]


def _paired_pictures(row: SweepRow) -> int:
    return int(next((d["pictures"] for d in row.paired.values() if "pictures" in d), 0))


def pictures_said(sweep: SweepTable, row: SweepRow) -> str:
    """`8 of 10 pictures` where the row lost some; over how many it is paired where the reference lost some."""
    most, mine = sweep.pictures, sorted(set(row.pictures))
    lost = f"{' to '.join(f'{n:,}' for n in (mine[0], mine[-1])[: len(mine)])} of {most:,} pictures" if mine and mine[0] < most else ""
    both = _paired_pictures(row)
    return lost + (f"{', ' if lost else ''}paired over {both:,}" if both and both != (mine[0] if mine else most) else "")


def _notable(row: SweepRow) -> bool:
    return row.state.startswith(("failed", "not run", "stopped"))


def sweep_tables(sweep: SweepTable) -> list[dict[str, Any]]:
    """For the page: the paper's shape and the differences, open; every trial with its setting and what it set aside, to be opened."""
    title = f"{sweep.title}: {sweep.stage} on {sweep.split}, percent"
    found = [
        {**_as_table(title, sweep_columns(sweep)), "open": True, "kinds": kinds(sweep.rows)},
        {**_as_table(difference_title(sweep), difference_columns(sweep)), "open": True},
    ]
    names = list(dict.fromkeys(name for row in sweep.rows for name in row.setting))
    trials = []
    for row in sweep.rows:
        values = [number(row.values.get(m), 2) for m in sweep.metrics]
        if row.setting:
            seconds = "" if row.seconds is None else f"{row.seconds:.0f}"
            trials.append([row.label, *(plain(row.setting.get(name, "")) for name in names), *values, seconds])
    heads = ["trial", *names, *(METRICS.get(m, m) for m in sweep.metrics), "seconds"]
    found.append({"title": "Trials and their settings", "heads": heads, "rows": trials})
    aside = [[row.label, entry["id"], entry["reason"]] for row in sweep.rows for entry in row.set_aside]
    found.append({"title": "Pictures that trials set aside", "heads": ["trial", "picture", "reason"], "rows": aside})
    curves = [row for row in sweep.rows if row.curve]
    if curves:
        longest = max(len(row.curve) for row in curves)
        lines = [[k, *(f"{row.curve[k]:.2f}" if k < len(row.curve) else "" for row in curves)] for k in range(longest)]
        found.append({"title": "mIoU over the steps k", "heads": ["k", *(row.label for row in curves)], "rows": lines})
    return [table for table in found if table["rows"]]


def _as_table(title: str, columns: Sequence[Column]) -> dict[str, Any]:
    heads = ["trial", *(column.head or "state" for column in columns[1:])]
    return {"title": title, "heads": heads, "rows": [list(cells) for cells in zip(*(c.cells for c in columns), strict=True)]}


def plain(value: Any) -> str:
    """A setting's value in words."""
    if isinstance(value, list | tuple):
        return " + ".join(map(plain, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
