"""The figure of a sweep: over the steps k, over the table's axis, over every varied setting of a search, or a bar for each row."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from seedbed.report.drawing import THEME, Draw, Figure
from seedbed.report.result import SweepRow, SweepTable
from seedbed.report.summary import METRICS
from seedbed.report.sweep import number, pictures_said, plain

COLORS = ("rib", "third", "fourth", "cam")
MARKERS = ("o", "s", "^", "D")
CHARACTER = 5.3
"""Points that a character of a legend is wide."""
FEW = 6
"""Values on a scale by decades that have a mark each, and characters that they have at most."""
ACROSS = 3
"""Varied settings of a search side by side."""
WIDE = 31
"""Characters of a label beside a bar before it goes on in the next line."""


def sweep_figure(sweep: SweepTable) -> Figure | None:
    """None where no trial has a score."""
    metric = next((m for m in (sweep.figure_metric, *sweep.metrics) if any(m in row.values for row in sweep.rows)), "")
    rows = [row for row in sweep.rows if metric in row.values and row.kind != "without network"]
    if not any(row.setting for row in rows):
        return None
    names = list(dict.fromkeys(name for row in rows for name in row.setting))
    two_panels = len(_panels(rows, metric)) > 1
    if sweep.over_k and any(row.curve for row in rows):
        two_panels = False  # the paper prints no value for each step
        draw, size = _steps(rows, metric), (5.6, 3.6)
    elif sweep.search:
        draw, size = _scatter(rows, metric, names), (6.4, 0.4 + 2.5 * -(-len(names) // ACROSS))
    elif sweep.axis and len({x for row in rows if (x := place(row, sweep.axis)) is not None}) > 1:
        draw, size = _axis(rows, metric, sweep.axis, sweep.axis_name or sweep.axis), (6.4, 3.4)
    else:
        lines = sum(_folded(row.label).count("\n") + 1 for row in rows)
        draw, size = _bars(rows, metric), (6.4, 1.0 + 0.26 * len(rows) + 0.18 * lines)
    words = "; ".join(f"{row.label}: {number(row.values[metric], 2)}" for row in rows)
    ours = f"{METRICS.get(metric, metric)} of the {sweep.stage} on {sweep.split}."
    beside = " On the right the paper's values, on a scale of their own: compare the shapes." if two_panels else ""
    if fewer := [f"{row.label} ({said})" for row in rows if (said := pictures_said(sweep, row))]:
        beside += f" Not of all pictures: {', '.join(fewer[:4])}{f' and {len(fewer) - 4} more' if len(fewer) > 4 else ''}."
    return Figure("sweep", sweep.title, ours + beside, f"{sweep.title}. {words}.", size, draw)


def place(row: SweepRow, axis: str) -> Any:
    """Where a row stands along the axis; None for one that lies across it."""
    return row.x if row.x is not None else row.setting.get(axis)


def _folded(label: str) -> str:
    return textwrap.fill(label, WIDE, break_long_words=False)


def _legend(canvas: Any, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Above the drawing, as many names side by side as have room; a name that is wider than the drawing goes on in the next line."""
    room = 72 * float(canvas.get_figwidth()) - 12
    folded = [textwrap.fill(label, int(room / CHARACTER) - 6, break_long_words=False) for label in labels]
    widest = max(CHARACTER * len(line) + 32 for label in folded for line in label.split("\n"))
    canvas.legend(handles, folded, loc="outside upper left", ncols=max(1, min(3, int(room // widest))), frameon=False)


def _color(i: int) -> str:
    return THEME[COLORS[i % len(COLORS)]]


Pick = Callable[[SweepRow], tuple[float, float | None] | None]


def _panels(rows: Sequence[SweepRow], metric: str) -> list[tuple[str, Pick]]:
    """Ours, and the paper's where it prints more than one trial: on two scales, since the networks are seldom the same."""
    panels: list[tuple[str, Pick]] = [("ours", lambda row: row.values.get(metric))]
    if sum(metric in row.printed for row in rows if row.setting) > 1:
        panels.append(("paper", lambda row: row.printed.get(metric)))
    return panels


def _base_line(axes: Any, rows: Sequence[SweepRow], pick: Pick) -> None:
    for row in rows:
        if not row.setting and row.x is None and (value := pick(row)) is not None:
            axes.axhline(value[0], color=THEME["cam"], linewidth=1.2, linestyle=(0, (4, 2)))
            axes.annotate(
                f"{row.label} {value[0]:.1f}", (1, value[0]), (-2, -11), xycoords=("axes fraction", "data"), textcoords="offset points",
                ha="right", color=THEME["cam"],
            )  # fmt: skip


def _steps(rows: Sequence[SweepRow], metric: str) -> Draw:
    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        for i, row in enumerate(r for r in rows if r.curve):
            axes.plot(range(len(row.curve)), row.curve, color=_color(i), marker=MARKERS[i % 4], markersize=4, label=row.label)
        _base_line(axes, rows, _panels(rows, metric)[0][1])
        axes.margins(y=0.15)
        axes.set_xlabel("k, steps added up in the map")
        axes.set_ylabel("mIoU, %")
        axes.xaxis.get_major_locator().set_params(integer=True)
        _legend(canvas, *axes.get_legend_handles_labels())

    return draw


def _axis(rows: Sequence[SweepRow], metric: str, axis: str, axis_name: str) -> Draw:
    """A line for each curve or combination of the other settings; rows that have no place along the axis are lines across."""
    groups: dict[str, list[SweepRow]] = {}
    for row in rows:
        if place(row, axis) is not None:
            others = {k: v for k, v in row.setting.items() if k not in (axis, "rib.companions")}
            name = row.group or ", ".join(f"{k.rpartition('.')[2]} {plain(v)}" for k, v in others.items())
            groups.setdefault(name, []).append(row)
    panels = _panels(rows, metric)
    places = [place(row, axis) for mine in groups.values() for row in mine]

    def draw(canvas: Any) -> None:
        for axes, (title, pick) in zip(canvas.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for i, (name, mine) in enumerate(groups.items()):
                found = sorted((place(r, axis), *value) for r in mine if (value := pick(r)) is not None)
                x, y, spread = [v[0] for v in found], [v[1] for v in found], [v[2] or 0.0 for v in found]
                axes.errorbar(x, y, spread, color=_color(i), marker=MARKERS[i % 4], markersize=6, capsize=3, label=name or None)
            across = [r for r in rows if r.setting and place(r, axis) is None]
            for i, row in enumerate(across):
                if (value := pick(row)) is not None:
                    axes.axhline(value[0], color=_color(i + len(groups)), linewidth=1.4, label=row.label)
            _base_line(axes, rows, pick)
            axes.margins(x=0.08, y=0.18)
            _decades(axes, places)
            axes.set_xlabel(axis_name)
            axes.set_title(title if len(panels) > 1 else "", fontsize=10, loc="left")
        canvas.axes[0].set_ylabel(f"{METRICS.get(metric, metric)}, %")
        handles, labels = canvas.axes[0].get_legend_handles_labels()
        if len(labels) > 1:
            _legend(canvas, handles, labels)

    return draw


def _decades(axes: Any, places: Sequence[Any]) -> None:
    """A scale by decades where equal steps would lie in a heap."""
    numbers = [v for v in places if isinstance(v, int | float) and v > 0]
    if len(numbers) == len(places) and max(numbers) > 30 * min(numbers):
        axes.set_xscale("log")
        if len(set(numbers)) <= FEW and all(len(plain(v)) <= FEW for v in numbers):
            axes.set_xticks(sorted(set(numbers)))
        axes.xaxis.set_major_formatter(lambda value, _: plain(float(value)).replace("e-0", "e-"))
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.tick_params(which="minor", length=0)


def _bars(rows: Sequence[SweepRow], metric: str) -> Draw:
    panels = _panels(rows, metric)

    def draw(canvas: Any) -> None:
        where = list(range(len(rows), 0, -1))
        for axes, (title, pick) in zip(canvas.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
            values = {y: value for y, row in zip(where, rows, strict=True) if (value := pick(row)) is not None}
            for y, (mean, std) in values.items():
                color = THEME["rib"] if rows[where.index(y)].setting else THEME["cam"]
                axes.barh(y, mean, 0.62, color=color, xerr=std, ecolor=THEME["ink"])
                axes.annotate(f"{mean:.1f}", (mean + (std or 0.0), y), (4, -3), textcoords="offset points", color=THEME["soft"])
            means = [mean for mean, _ in values.values()]
            room = max(max(means) - min(means), 1.0)
            axes.set_xlim(max(0.0, min(means) - room), max(means) + 0.5 * room)  # bars that begin at 0 would all look alike
            axes.set_yticks(where, [_folded(row.label) for row in rows])
            axes.set_xlabel(f"{METRICS.get(metric, metric)}, %")
            axes.set_title(title if len(panels) > 1 else "", fontsize=10, loc="left")
            axes.grid(False, axis="y")

    return draw


def _scatter(rows: Sequence[SweepRow], metric: str, names: Sequence[str]) -> Draw:
    """A small figure for each varied setting."""
    trials = [row for row in rows if row.setting]

    def draw(canvas: Any) -> None:
        down = -(-len(names) // ACROSS)
        many = canvas.subplots(down, min(ACROSS, len(names)), sharey=True, squeeze=False)
        for i, axes in enumerate(many.flat):
            if i >= len(names):
                axes.set_visible(False)
                continue
            mine = [(row.setting[names[i]], row.values[metric][0]) for row in trials if names[i] in row.setting]
            x = [v if isinstance(v, int | float) else plain(v) for v, _ in mine]
            axes.plot(x, [v for _, v in mine], "o", color=_color(i), markersize=5)
            axes.margins(x=0.1, y=0.1)
            _decades(axes, x)
            axes.set_xlabel(names[i])
        for axes in many[:, 0]:
            axes.set_ylabel(f"{METRICS.get(metric, metric)}, %")

    return draw
