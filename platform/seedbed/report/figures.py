"""The report's figures, drawn with matplotlib: over the threshold, over k, per repetition, per class, and how the runs ended."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from seedbed.report.drawing import THEME, Figure, color_of
from seedbed.report.result import StudyResult
from seedbed.report.summary import Table, method_name, per_class, tables
from seedbed.report.sweep_figure import sweep_figure

REASONS = {
    "margin": "margin reached", "area": "area guard", "steps": "all steps run", "companions": "companions ran out",
}  # fmt: skip
HATCHES = {"margin": "", "area": "////", "steps": "", "companions": "xxxx"}
MARKERS = ("o", "s", "^", "D")


def figures(study: StudyResult) -> list[Figure]:
    """All figures for which the study has values."""
    first = next(iter(tables(study)), None)
    found = [_threshold(study, first), _over_k(study, first), _repetitions(first)]
    if study.sweep is not None:
        found.append(sweep_figure(study.sweep))
    if first is not None:
        found += [_per_class(study, first, "IoU", "J (IoU)"), _per_class(study, first, "F", "F (contours)")]
    found += [_ends(method, ends) for method, ends in study.ends.items()]
    return [figure for figure in found if figure is not None]


def _threshold(study: StudyResult, table: Table | None) -> Figure | None:
    if not study.curves:
        return None
    bests = {m: max(zip(c["mIoU"], c["thresholds"], strict=True)) for m, c in study.curves.items()}

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        for i, (method, curve) in enumerate(study.curves.items()):
            x, y, color = list(curve["thresholds"]), list(curve["mIoU"]), color_of(method)
            if "std" in curve:
                low, high = [v - s for v, s in zip(y, curve["std"], strict=True)], [v + s for v, s in zip(y, curve["std"], strict=True)]
                axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
            best, at = bests[method]
            label = f"{method_name(method)}, best {best:.1f} at {at:.2f}"
            axes.plot(x, y, color=color, marker=MARKERS[i % 4], markevery=[x.index(at)], markersize=7, label=label)
        axes.margins(x=0.02, y=0.08)
        _bare_lines(axes, table)
        axes.set_xlabel("threshold on the normalized map")
        axes.set_ylabel("mIoU, %")
        canvas.legend(loc="outside upper left", ncols=2, frameon=False)

    words = "; ".join(f"{method_name(m)}: best {best:.1f}% at {at:.2f}" for m, (best, at) in bests.items())
    caption = "mIoU of the seeds over the threshold, counted on the scored split. A flat top forgives a badly chosen threshold."
    return Figure("threshold", "Seed quality over the threshold", caption, f"Threshold curves. {words}.", (5.0, 3.3), draw)


def _bare_lines(axes: Any, table: Table | None) -> None:
    """Rows without a network as dotted lines, where they lie within reach of the curves."""
    low, high = axes.get_ylim()
    for row in table.rows if table else ():
        if row.kind == "without network" and "mIoU" in row.values and low - 0.5 * (high - low) < row.values["mIoU"].mean < high:
            value = row.values["mIoU"].mean
            axes.axhline(value, color=THEME["soft"], linewidth=1, linestyle=(0, (1, 2)))
            axes.annotate(
                f"{row.label} {value:.1f}",
                (1, value),
                (-2, 3),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                color=THEME["soft"],
            )


def _over_k(study: StudyResult, table: Table | None) -> Figure | None:
    if not any(study.over_k.values()):
        return None
    cam = next((r.values["mIoU"].mean for r in table.rows if r.label == "CAM" and "mIoU" in r.values), None) if table else None

    def draw(canvas: Any) -> None:
        above, below = canvas.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        for i, (method, points) in enumerate(study.over_k.items()):
            k, color = [p["k"] for p in points], color_of(method)
            y = [p["mIoU"] for p in points]
            if points and all("std" in p for p in points):
                above.fill_between(
                    k, [p["mIoU"] - p["std"] for p in points], [p["mIoU"] + p["std"] for p in points], color=color, alpha=0.15, linewidth=0
                )
            above.plot(k, y, color=color, marker=MARKERS[i % 4], markersize=4.5, label=method_name(method))
            below.plot(k, [p["threshold"] for p in points], color=color, marker=MARKERS[i % 4], markersize=3.5)
            _at(above, method_name(method), k[-1], y[-1], color, (0, 8), "right")
        if cam is not None:
            above.axhline(cam, color=THEME["cam"], linewidth=1.2, linestyle=(0, (4, 2)))
            _at(above, f"CAM {cam:.1f}", max(p["k"] for ps in study.over_k.values() for p in ps), cam, THEME["cam"], (0, -11), "right")
        above.margins(y=0.18)
        above.set_ylabel("mIoU, %")
        below.set_ylabel("best\nthreshold")
        below.margins(y=0.3)
        below.set_xlabel("k, steps added up in the map")
        below.xaxis.get_major_locator().set_params(integer=True)

    ends = "; ".join(
        f"{method_name(m)}: {ps[0]['mIoU']:.1f}% at k = {ps[0]['k']:.0f}, {ps[-1]['mIoU']:.1f}% at k = {ps[-1]['k']:.0f}"
        for m, ps in study.over_k.items()
        if ps
    )
    caption = "mIoU of the cumulative map over the steps, each k at its own best threshold, shown beneath."
    return Figure("over_k", "Seed quality over the steps k", caption, f"mIoU over k. {ends}.", (5.0, 3.6), draw)


def _at(axes: Any, text: str, x: float, y: float, color: str, offset: tuple[int, int], align: str) -> None:
    axes.annotate(text, (x, y), offset, textcoords="offset points", ha=align, color=color)


def _repetitions(table: Table | None) -> Figure | None:
    """Every repetition as a line from CAM to the method: a spread that is paired looks paired."""
    rows = [r for r in table.rows if r.kind == "method" and len(r.values["mIoU"].runs) > 1] if table else []
    if len(rows) < 2:
        return None
    seeds = [s for s in rows[0].values["mIoU"].runs if all(s in r.values["mIoU"].runs for r in rows)]

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        for seed in seeds:
            axes.plot(range(len(rows)), [r.values["mIoU"].runs[seed] for r in rows], color=THEME["soft"], linewidth=1)
        for i, row in enumerate(rows):
            color = color_of(row.method)
            axes.plot([i] * len(seeds), [row.values["mIoU"].runs[s] for s in seeds], MARKERS[i % 4], color=color, markersize=6)
            axes.plot([i - 0.13, i + 0.13], [row.values["mIoU"].mean] * 2, color=color, linewidth=2.5)
        low, high = axes.get_ylim()
        for seed, y in _apart({s: rows[-1].values["mIoU"].runs[s] for s in seeds}, 0.07 * (high - low)).items():
            axes.annotate(f"seed {seed}", (len(rows) - 1, y), (9, -3), textcoords="offset points", color=THEME["soft"])
        axes.set_xticks(range(len(rows)), [r.label for r in rows])
        axes.set_xlim(-0.4, len(rows) - 0.5 + 0.12 * len(rows))
        axes.set_ylabel("mIoU, %")
        axes.grid(False, axis="x")

    words = "; ".join(f"{r.label} {r.values['mIoU'].text()}%" for r in rows)
    caption = f"{len(seeds)} repetitions, each a line; the bars are the means."
    return Figure("repetitions", "Repetitions", caption, f"mIoU of each repetition. {words}.", (5.0, 3.3), draw)


def _apart(places: Mapping[Any, float], gap: float) -> dict[Any, float]:
    """Where labels stand that must not cover one another: as near to their values as the gap allows."""
    out: dict[Any, float] = {}
    for name, value in sorted(places.items(), key=lambda item: item[1]):
        out[name] = max([value, *(before + gap for before in out.values())])
    shift = sum(out[name] - value for name, value in places.items()) / len(places)
    return {name: value - shift for name, value in out.items()}


def _per_class(study: StudyResult, table: Table, metric: str, title: str) -> Figure | None:
    values = per_class(study, metric, table.stage, table.split)
    if not values:
        return None
    methods = list(dict.fromkeys(m for v in values.values() for m in v))
    gain = {name: v.get(methods[-1], 0.0) - v.get(methods[0], 0.0) for name, v in values.items()}
    by_iou = per_class(study, "IoU", table.stage, table.split)  # one order for both figures
    names = sorted(values, key=lambda n: by_iou.get(n, {}).get(methods[-1], 0.0) - by_iou.get(n, {}).get(methods[0], 0.0))
    thick = 0.8 / len(methods)

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        for i, method in enumerate(methods):
            where = [j + 0.4 - thick * (i + 0.5) for j in range(len(names))]
            axes.barh(where, [values[n].get(method, 0.0) for n in names], thick * 0.86, color=color_of(method), label=method_name(method))
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_xlabel(f"{title}, %")
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        canvas.legend(loc="outside upper left", ncols=4, frameon=False)

    best, worst = max(gain, key=lambda n: gain[n]), min(gain, key=lambda n: gain[n])
    words = f"{method_name(methods[-1])} gains most on {best} ({gain[best]:+.1f} points), least on {worst} ({gain[worst]:+.1f})"
    order = f"in the order of what {method_name(methods[-1])} gains in J over {method_name(methods[0])}"
    caption = f"{title} of every class, mean over the repetitions; {order}."
    height = 1.0 + max(0.26, 0.17 * len(methods)) * len(names)
    return Figure(f"classes_{metric.lower()}", f"Classes: {title}", caption, f"Bars per class. {words}.", (5.0, height), draw)


def _ends(method: str, ends: Mapping[str, Mapping[int, int]]) -> Figure | None:
    ends = {reason: {int(k): int(n) for k, n in counts.items()} for reason, counts in ends.items() if sum(counts.values())}
    if not ends:
        return None
    total = sum(sum(counts.values()) for counts in ends.values())
    last = max(k for counts in ends.values() for k in counts)
    order = [r for r in REASONS if r in ends] + [r for r in ends if r not in REASONS]

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        floor = [0] * last
        for reason in order:
            heights = [ends[reason].get(k + 1, 0) for k in range(last)]
            color = THEME.get(reason, THEME["third"])
            label = f"{REASONS.get(reason, reason)} ({sum(heights):,})"
            axes.bar(
                range(1, last + 1),
                heights,
                0.78,
                bottom=floor,
                color=color,
                hatch=HATCHES.get(reason),
                edgecolor=THEME["sheet"],
                linewidth=0,
                label=label,
            )
            floor = [a + b for a, b in zip(floor, heights, strict=True)]
        for k, height in enumerate(floor):
            if height:
                _at(axes, f"{height:,}", k + 1, height, THEME["soft"], (0, 3), "center")
        axes.set_xticks(range(1, last + 1)) if last <= 12 else None
        axes.set_xlabel("steps entered")
        axes.set_ylabel("pictures")
        axes.grid(False, axis="x")
        canvas.legend(loc="outside upper left", ncols=2, frameon=False)

    shares = ", ".join(f"{REASONS.get(r, r)} {sum(ends[r].values()) / total:.0%}" for r in order)
    caption = f"How the {total:,} runs of {method_name(method)} ended, over the steps they had entered: {shares}."
    return Figure(f"ends_{_slug(method)}", f"Ends of the runs, {method_name(method)}", caption, caption, (5.0, 3.6), draw)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
