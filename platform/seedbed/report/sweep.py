"""What is shown of a sweep: its table in the paper's shape, and its figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from seedbed.report.drawing import THEME, Draw, Figure
from seedbed.report.result import SweepRow, SweepTable
from seedbed.report.summary import METRICS, Kind, Value

COLORS = ("rib", "third", "fourth", "cam")
MARKERS = ("o", "s", "^", "D")


def sweep_cells(sweep: SweepTable) -> tuple[list[str], list[tuple[Kind, list[str]]]]:
    """Headings, and for every row its kind and cells: ours, the paper's, the paired difference with its interval, the state."""
    printed = any(row.printed for row in sweep.rows)
    paired = any(row.paired for row in sweep.rows)
    heads = [""]
    for metric in sweep.metrics:
        name = METRICS.get(metric, metric)
        heads += [f"{name}, ours", *(["paper"] if printed else [])]
    heads += [*(["− reference", "95 % interval"] if paired else []), ""]
    rows: list[tuple[Kind, list[str]]] = []
    for row in sweep.rows:
        cells = [row.label + (" *" if row.label == sweep.reference else "")]
        for metric in sweep.metrics:
            cells.append(number(row.values.get(metric), 2))
            if printed:
                cells.append(number(row.printed.get(metric), 1))
        if paired:
            cells += difference(row)
        kind: Kind = "method" if row.values else "failed"
        rows.append(("without network" if row.state == "base" and kind == "method" else kind, [*cells, row.state]))
    return heads, rows


def number(value: tuple[float, float | None] | None, digits: int) -> str:
    return "" if value is None else Value(*value).text(digits=digits)


def difference(row: SweepRow) -> list[str]:
    if row.paired is None:
        return ["", ""]
    signed = [Value(row.paired[name]).text(sign=True) for name in ("difference", "low", "high")]
    return [signed[0], f"{signed[1]} to {signed[2]}"]


def sweep_tables(sweep: SweepTable) -> list[dict[str, Any]]:
    """For the page: the paper's shape, and every trial with its setting."""
    heads, rows = sweep_cells(sweep)
    title = f"{sweep.title}: {sweep.stage} on {sweep.split}, percent"
    shape: dict[str, Any] = {"title": title, "heads": ["trial", *heads[1:-1], "state"], "rows": [cells for _, cells in rows]}
    names = list(dict.fromkeys(name for row in sweep.rows for name in row.setting))
    trials = []
    for row in sweep.rows:
        values = [number(row.values.get(m), 2) for m in sweep.metrics]
        if row.setting:
            seconds = "" if row.seconds is None else f"{row.seconds:.0f}"
            trials.append([row.label, *(_plain(row.setting.get(name, "")) for name in names), *values, seconds])
    found = [shape, {"title": "Trials and their settings", "heads": ["trial", *names, *sweep.metrics, "seconds"], "rows": trials}]
    curves = [row for row in sweep.rows if row.curve]
    if curves:
        longest = max(len(row.curve) for row in curves)
        lines = [[k, *(f"{row.curve[k]:.2f}" if k < len(row.curve) else "" for row in curves)] for k in range(longest)]
        found.append({"title": "mIoU over the steps k", "heads": ["k", *(row.label for row in curves)], "rows": lines})
    return [table for table in found if table["rows"]]


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def sweep_figure(sweep: SweepTable) -> Figure | None:
    """Over k, over the table's axis, over every varied setting of a search, or a bar for each row."""
    metric = sweep.metrics[0]
    rows = [row for row in sweep.rows if metric in row.values]
    if not any(row.setting for row in rows):
        return None
    if sweep.over_k and any(row.curve for row in rows):
        draw, size = _steps(rows, metric), (5.6, 3.6)
    elif sweep.search:
        draw, size = _scatter(rows, metric), (6.4, 3.2)
    elif sweep.axis and len({row.setting.get(sweep.axis) for row in rows if row.setting} - {None}) > 1:
        draw, size = _axis(rows, metric, sweep.axis), (6.4, 3.2)
    else:
        draw, size = _bars(rows, metric), (6.4, 1.0 + 0.42 * len(rows))
    words = "; ".join(f"{row.label}: {number(row.values[metric], 2)}" for row in rows)
    ours = f"{METRICS.get(metric, metric)} of the {sweep.stage} on {sweep.split}."
    beside = " On the right the paper's values, on a scale of their own: compare the shapes." if len(_panels(rows, metric)) > 1 else ""
    return Figure("sweep", sweep.title, ours + beside, f"{sweep.title}. {words}.", size, draw)


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
        if not row.setting and (value := pick(row)) is not None:
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
        canvas.legend(loc="outside upper left", ncols=3, frameon=False)

    return draw


def _axis(rows: Sequence[SweepRow], metric: str, axis: str) -> Draw:
    """A line for each combination of the other settings; rows without the axis' setting are lines across."""
    groups: dict[str, list[SweepRow]] = {}
    for row in rows:
        if axis in row.setting:
            others = {k: v for k, v in row.setting.items() if k not in (axis, "rib.companions")}
            name = ", ".join(f"{k.rpartition('.')[2]} {_plain(v)}" for k, v in others.items())
            groups.setdefault(name, []).append(row)
    panels = _panels(rows, metric)

    def draw(canvas: Any) -> None:
        for axes, (title, pick) in zip(canvas.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for i, (name, mine) in enumerate(groups.items()):
                found = sorted((r.setting[axis], *value) for r in mine if (value := pick(r)) is not None)
                x, y, spread = [v[0] for v in found], [v[1] for v in found], [v[2] or 0.0 for v in found]
                axes.errorbar(x, y, spread, color=_color(i), marker=MARKERS[i % 4], markersize=6, capsize=3, label=name or None)
            across = [r for r in rows if r.setting and axis not in r.setting]
            for i, row in enumerate(across):
                if (value := pick(row)) is not None:
                    axes.axhline(value[0], color=_color(i + len(groups)), linewidth=1.4, label=row.label)
            _base_line(axes, rows, pick)
            axes.margins(x=0.08, y=0.18)
            axes.set_xlabel(axis)
            axes.set_title(title, fontsize=10, loc="left")
        canvas.axes[0].set_ylabel(f"{METRICS.get(metric, metric)}, %")
        if len(handles := canvas.axes[0].get_legend_handles_labels()[0]):
            canvas.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False)

    return draw


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
            axes.set_yticks(where, [row.label for row in rows])
            axes.set_xlabel(f"{METRICS.get(metric, metric)}, %")
            axes.set_title(title, fontsize=10, loc="left")
            axes.grid(False, axis="y")

    return draw


def _scatter(rows: Sequence[SweepRow], metric: str) -> Draw:
    """A small figure for each varied setting."""
    trials = [row for row in rows if row.setting]
    names = list(dict.fromkeys(name for row in trials for name in row.setting))

    def draw(canvas: Any) -> None:
        many = canvas.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for i, (axes, name) in enumerate(zip(many, names, strict=True)):
            mine = [(row.setting[name], row.values[metric][0]) for row in trials if name in row.setting]
            x = [str(v) if not isinstance(v, int | float) else v for v, _ in mine]
            axes.plot(x, [v for _, v in mine], "o", color=_color(i), markersize=5)
            numbers = [v for v in x if isinstance(v, int | float) and v > 0]
            if len(numbers) == len(x) and max(numbers) > 30 * min(numbers):
                axes.set_xscale("log")
            axes.set_xlabel(name)
        many[0].set_ylabel(f"{METRICS.get(metric, metric)}, %")

    return draw
