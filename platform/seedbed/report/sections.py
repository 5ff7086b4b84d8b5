"""What the sections of the page show, as plain rows: repetitions, the values behind the figures, protocol records, settings, provenance."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from seedbed.progress import duration
from seedbed.report import summary
from seedbed.report.result import StudyResult
from seedbed.report.sweep import number, pictures_said, sweep_notes, sweep_tables

FIGURE_GROUPS = (
    (
        "curves", "Curves", "What the score does over the threshold and over the steps, and how the runs of the single pictures ended.",
        ("threshold", "over_k", "repetitions", "ends"),
    ),
    ("labels", "Labels", "What the segmenter is trained on.", ()),
    ("classes", "Classes", "Where the score comes from.", ("classes_iou", "classes_f")),
)  # fmt: skip


def repetitions(table: summary.Table) -> tuple[list[str], list[tuple[Any, list[str]]]] | None:
    """mIoU by random seed, a column per method and difference; None where nothing was repeated."""
    rows = [r for r in table.rows if r.kind in ("method", "difference") and "mIoU" in r.values]
    seeds = list(dict.fromkeys(s for r in rows for s in r.values["mIoU"].runs))
    if len(seeds) < 2:
        return None
    signed = [(r.values["mIoU"].runs, r.kind == "difference") for r in rows]
    lines = [(s, [summary.Value(runs[s]).text(sign=sign) if s in runs else "" for runs, sign in signed]) for s in seeds]
    return [r.label for r in rows], lines


def figure_groups(study: StudyResult, drawn: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, str, str, list[Any], list[Any]]]:
    data = {
        "curves": [*_curve_table(study), *_k_table(study), *_end_tables(study)],
        "labels": _label_tables(study),
        "classes": _class_tables(study),
    }
    for anchor, title, lead, names in FIGURE_GROUPS:
        mine = [figure for figure in drawn if figure["name"] in names or figure["name"].partition("_")[0] in names]
        yield anchor, title, lead, mine, data[anchor]


def sweep(study: StudyResult, drawn: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What a sweep's page begins with: its table, the notes to it, its figure, the trials."""
    if study.sweep is None or not (tables := sweep_tables(study.sweep)):
        return None
    base = " and ".join(row.label for row in study.sweep.rows if row.kind == "base")
    beside = " beside what the paper prints" if any(row.printed for row in study.sweep.rows) else ""
    lead = f"Every trial{beside}{f'; {base} is what they share, without a setting of its own' if base else ''}."
    metric = study.sweep.metrics[0]
    trials = [row for row in study.sweep.rows if row.kind == "trial" and metric in row.values]
    best = max(trials, key=lambda row: row.values[metric][0], default=None)
    reached = ""
    if best is not None:
        count = len({json.dumps(row.setting, sort_keys=True) for row in trials})  # a paper's table may name one trial twice
        reached = f"Best of {count} trials: “{best.label}”, {number(best.values[metric], 2)}% {summary.METRICS[metric]}"
        if fewer := pictures_said(study.sweep, best):
            reached += f" ({fewer})"
        if metric in best.paired:
            apart, low, high = (summary.Value(best.paired[metric][name]).text(sign=True) for name in ("difference", "low", "high"))
            reached += f"; {apart} points from “{best.reference or study.sweep.reference}” (95 % interval {low} to {high})"
        reached += "."
    return {
        "title": study.sweep.title,
        "lead": lead,
        "best": reached,
        "best_pictures": "" if best is None else pictures_said(study.sweep, best),
        "best_label": "" if best is None else best.label,
        "best_value": None if best is None else summary.Value(*best.values[metric]),
        "metric": summary.METRICS[metric],
        "open": [table for table in tables if table.get("open")],
        "closed": [table for table in tables if not table.get("open")],
        "notes": sweep_notes(study.sweep),
        "figures": [f for f in drawn if f["name"] == "sweep"],
    }


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> dict[str, Any]:
    return {"title": title, "heads": heads, "rows": [[f"{c:.2f}" if isinstance(c, float) else c for c in row] for row in rows]}


def _curve_table(study: StudyResult) -> list[dict[str, Any]]:
    at: dict[float, dict[str, float]] = {}
    for method, curve in study.curves.items():
        for threshold, value in zip(curve["thresholds"], curve["mIoU"], strict=True):
            at.setdefault(round(float(threshold), 6), {})[method] = float(value)
    heads = ["threshold", *(f"{summary.method_name(m)}, mIoU" for m in study.curves)]
    rows = ([t, *(values.get(m, "") for m in study.curves)] for t, values in sorted(at.items()))
    return [_table("mIoU at every threshold", heads, rows)] if at else []


def _k_table(study: StudyResult) -> list[dict[str, Any]]:
    return [
        _table(
            f"{summary.method_name(m)}: mIoU over k",
            ["k", "mIoU", "best threshold"],
            ([int(p["k"]), float(p["mIoU"]), float(p["threshold"])] for p in points),
        )
        for m, points in study.over_k.items()
        if points
    ]


def _class_tables(study: StudyResult) -> list[dict[str, Any]]:
    found = []
    for table in summary.tables(study):
        values = {metric: summary.per_class(study, metric, table.stage, table.split) for metric in ("IoU", "F")}
        names = list(dict.fromkeys(name for by_class in values.values() for name in by_class))
        methods = list(dict.fromkeys(m for by_class in values.values() for v in by_class.values() for m in v))
        columns = [(metric, method) for metric in ("IoU", "F") for method in methods]
        heads = ["class", *(f"{'J' if metric == 'IoU' else 'F'}, {summary.method_name(method)}" for metric, method in columns)]
        printed = printed_classes(study.paper_rows, table.stage, table.split)
        heads += [f"J, {label}" for label in printed]
        rows = [
            [
                name,
                *(values[metric].get(name, {}).get(method, "") for metric, method in columns),
                *(f"{by_class[name]:.1f}" if name in by_class else "" for by_class in printed.values()),
            ]
            for name in names
        ]
        if names:
            found.append(_table(f"{table.title}: every class", heads, rows))
    return found


def printed_classes(paper_rows: Iterable[Mapping[str, Any]], stage: str, split: str) -> dict[str, dict[str, float]]:
    """`RIB in Table S2` -> class -> IoU as printed, of rows that belong to this stage and split."""
    found: dict[str, dict[str, float]] = {}
    for row in paper_rows:
        if row.get("stage") == stage and row.get("split") == split and str(row["metric"]).startswith("IoU:"):
            number = str(row["table"]).partition("_table")[2].partition("_")[0]
            method = "IRN's CAM" if stage == "seed" and row["method"] == "IRN" else row["method"]
            found.setdefault(f"{method} in Table {number}", {})[str(row["metric"])[4:]] = float(row["value"])
    return found


def _label_tables(study: StudyResult) -> list[dict[str, Any]]:
    """Coverage of the training labels, and how much of the seeds the refinement changed."""
    if not study.coverage:
        return []
    heads = ["percent of the pixels", *(summary.method_name(m) for m in study.coverage)]
    names = {
        "object": "labelled object",
        "background": "labelled background",
        "ignored": "ignored",
        "changed": "mask differs from the seed at the same background score",
    }
    rows = [[text, *(float(shares[name]) for shares in study.coverage.values())] for name, text in names.items()]
    return [_table("Pseudo-labels: coverage and disagreement", heads, rows)]


def _end_tables(study: StudyResult) -> list[dict[str, Any]]:
    found = []
    for method, ends in study.ends.items():
        steps = sorted({int(k) for counts in ends.values() for k in counts})
        rows = [[k, *(next((int(n) for s, n in ends[r].items() if int(s) == k), 0) for r in ends)] for k in steps]
        if rows:
            found.append(_table(f"{summary.method_name(method)}: runs by steps entered", ["steps", *ends], rows))
    return found


def records(study: StudyResult, tables: Sequence[summary.Table]) -> list[tuple[str, list[str], list[tuple[str, list[tuple[str, int]]]]]]:
    """Per table of scores: a column per method, a row per field of the record; equal neighbors share one cell."""
    found = []
    for table in tables:
        mine = [
            r
            for r in study.rows
            if (r["stage"], r["split"], r["metric"]) == (table.stage, table.split, "mIoU") and r["seed"] not in ("mean", "std")
        ]
        methods = list(dict.fromkeys(str(r["method"]) for r in mine))
        by_method = {m: {r["seed"]: summary.flat(r.get("protocol") or {}) for r in mine if r["method"] == m} for m in methods}
        fields = dict.fromkeys(field for records in by_method.values() for record in records.values() for field in record)
        lines = []
        for field in fields:
            cells: list[tuple[str, int]] = []
            for m in methods:
                text = _over_seeds({seed: _plain(record.get(field, "")) for seed, record in by_method[m].items()})
                if cells and cells[-1][0] == text:
                    cells[-1] = (text, cells[-1][1] + 1)
                else:
                    cells.append((text, 1))
            lines.append((field, cells))
        if lines:
            found.append((f"{table.title}: protocol record", [summary.method_name(m) for m in methods], lines))
    return found


def _over_seeds(values: Mapping[Any, str]) -> str:
    if len(set(values.values())) <= 1:
        return next(iter(values.values()), "")
    return ", ".join(f"{value} (seed {seed})" for seed, value in values.items())


def _plain(value: Any) -> str:
    if value is None or value == "" or value == []:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) if not any(isinstance(v, Mapping) for v in value) else json.dumps(value, default=str)
    return str(value)


def settings(study: StudyResult, changed: Mapping[str, str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Dotted names grouped by their first part."""
    flat = study.experiment.flat() if hasattr(study.experiment, "flat") else summary.flat(study.provenance.get("settings") or {})
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, value in flat.items():
        groups.setdefault(name.partition(".")[0] if "." in name else "study", []).append((name, _plain(value)))
    return list(groups.items())


def changed(experiment: Any) -> dict[str, str]:
    """Settings that differ from the defaults of their class, with those."""
    try:
        default, flat = type(experiment)().flat(), experiment.flat()
    except (AttributeError, TypeError):
        return {}
    return {name: _plain(default[name]) for name, value in flat.items() if name in default and value != default[name]}


def provenance(study: StudyResult) -> list[tuple[str, list[tuple[str, str]]]]:
    """What run.json says, but for what has a section of its own."""
    alone, groups = [], []
    for name, value in study.provenance.items():
        if name in ("settings", "stages"):
            continue
        if isinstance(value, Mapping):
            groups.append((name, [(k, _plain(v)) for k, v in summary.flat(value).items() if k != "palette"]))
        else:
            alone.append(
                (
                    name,
                    duration(value)
                    if name == "seconds" and isinstance(value, int | float)
                    else " ".join(map(str, value))
                    if name == "command"
                    else _plain(value),
                )
            )
    return [("run", alone), *groups] if alone else groups
