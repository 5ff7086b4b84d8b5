"""From rows of scores.json to what is said about them: tables with mean, spread and paired differences, the headline, and every caveat.

Terminal and report show the same things, so both read them from here.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from seedbed.report.published import PaperRow, paper_rows
from seedbed.report.result import StudyResult

METRICS = {"mIoU": "mIoU", "F": "F", "J_and_F": "J&F", "precision": "precision", "recall": "recall", "F1": "F1"}
"""Metric of scores.json -> heading."""

STAGES = {"seed": "Seeds", "crf": "Seeds after the CRF", "mask": "Pseudo-labels", "segmentation": "Segmentations"}
"""Stage of scores.json -> heading, in order."""

WITHOUT_NETWORK = {"whole_picture": "whole picture", "centred_box": "centered box", "centered_box": "centered box"}

COMPANIONS_LIMIT = 0.05
"""Share of runs that may end because companions run out before it is warned about (PROTOCOL.md)."""


Kind = Literal["method", "difference", "without network", "paper", "failed"]


@dataclass(frozen=True)
class Value:
    """A metric over the repetitions."""

    mean: float
    std: float | None = None
    runs: Mapping[Any, float] = field(default_factory=dict)
    """Random seed -> value."""

    def text(self, *, spread: bool = True, sign: bool = False, digits: int = 2) -> str:
        number = f"{self.mean:{'+' if sign else ''}.{digits}f}".replace("-", "−")
        return f"{number} ± {self.std:.{digits}f}" if spread and self.std is not None else number


@dataclass(frozen=True)
class Row:
    label: str
    kind: Kind
    values: Mapping[str, Value]
    threshold: str = ""
    oracle: bool = False
    """The threshold was chosen by the masks it is scored on."""
    protocol: str = ""
    """In short, without the threshold's value."""
    method: str = ""
    place: str = ""
    """Where a paper prints it."""


@dataclass(frozen=True)
class Table:
    stage: str
    split: str
    rows: Sequence[Row]

    @property
    def title(self) -> str:
        return f"{STAGES.get(self.stage, self.stage)} on {self.split}"

    def protocols(self) -> dict[str, str]:
        """Protocol in short -> the letter that stands for it."""
        seen = dict.fromkeys(row.protocol for row in self.rows if row.protocol)
        return {text: "abcdefghijklmnopqrstuvwxyz"[i % 26] for i, text in enumerate(seen)}


def method_name(method: str) -> str:
    """As papers write it: CAM, RIB, SEAM+ISL; the rows without a network in plain words."""
    plain = method.replace("-", "_").replace(" ", "_").lower()
    return WITHOUT_NETWORK.get(plain, method.upper())


def without_network(method: str) -> bool:
    return method_name(method) in WITHOUT_NETWORK.values()


def tables(study: StudyResult) -> list[Table]:
    """One table per scored stage and split, in the order of the stages."""
    places = dict.fromkeys((str(r["stage"]), str(r["split"])) for r in study.rows if r["metric"] in METRICS)
    order = list(STAGES)
    dataset = dataset_of(study)
    papers = paper_rows(study.paper_rows, dataset)
    return [
        Table(stage, split, _rows(study, stage, split, [p for p in papers if p.stage == stage and p.split in (split, "")]))
        for stage, split in sorted(places, key=lambda p: order.index(p[0]) if p[0] in order else len(order))
    ]


def classifier_line(study: StudyResult) -> str | None:
    """`classifier: mAP 97.3 ± 0.2% on val, 445 images`, where it was validated."""
    rows = [r for r in study.rows if r["metric"] == "mAP"]
    value = _value(rows, "mAP", spread=True) if rows else None
    if value is None:
        return None
    images = (rows[0].get("protocol") or {}).get("images")
    return f"classifier: mAP {value.text()}% on {rows[0]['split']}" + (f", {images:,} images" if isinstance(images, int) else "")


def coverage_line(study: StudyResult) -> str | None:
    """`pseudo-labels: 21.4% object, 60.1% background, 18.5% ignored; the mask differs from the seed on 9.0%`."""
    for shares in study.coverage.values():
        parts = ", ".join(f"{shares[name]:.1f}% {name}" for name in ("object", "background", "ignored"))
        return f"pseudo-labels: {parts}; the mask differs from the seed on {shares['changed']:.1f}%"
    return None


def _rows(study: StudyResult, stage: str, split: str, papers: Sequence[PaperRow]) -> list[Row]:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in study.rows:
        if (row["stage"], row["split"]) == (stage, split):
            varied = ", ".join(f"{k.partition('.')[2] or k} {v}" for k, v in (row.get("setting") or {}).items())
            groups.setdefault((str(row["method"]), varied), []).append(row)
    rows = [_row(method, varied, group) for (method, varied), group in groups.items()]
    ours = sorted((r for r in rows if r.kind == "method"), key=lambda r: r.method.lower().partition("+")[0] != "cam")
    first = next((r for r in ours if r.method.lower().partition("+")[0] == "cam"), None)
    apart = [difference(r, first) for r in ours if first is not None and r is not first]
    return [*ours, *apart, *(r for r in rows if r.kind == "without network"), *map(_paper_row, papers)]


def _row(method: str, varied: str, group: Sequence[Mapping[str, Any]]) -> Row:
    # Rows of mean and std list what differs between the seeds; the seeds' own rows say it singly.
    single = [r for r in group if isinstance(r["seed"], int)] or list(group)
    records = [r.get("protocol") or {} for r in single if r["metric"] == "mIoU"] or [single[0].get("protocol") or {}]
    thresholds = [r.get("threshold") or {} for r in records]
    bare = without_network(method)
    return Row(
        label=method_name(method) + (f" ({varied})" if varied else ""),
        kind="without network" if bare else "method",
        values={metric: value for metric in METRICS if (value := _value(group, metric, spread=not bare)) is not None},
        threshold="" if bare else _threshold(thresholds),
        oracle=not bare and any(t.get("source") == "oracle" for t in thresholds),
        protocol=short_protocol(records[0], network=not bare),
        method=method,
    )


def _value(group: Sequence[Mapping[str, Any]], metric: str, *, spread: bool) -> Value | None:
    """Mean and sample standard deviation; a row that no random seed reaches has no spread to speak of."""
    by_seed = {r["seed"]: float(r["value"]) for r in group if r["metric"] == metric}
    runs = {seed: value for seed, value in by_seed.items() if seed not in ("mean", "std")}
    if len(runs) > 1:
        return Value(statistics.fmean(runs.values()), statistics.stdev(runs.values()) if spread else None, runs)
    if runs:
        return Value(next(iter(runs.values())), None, runs)
    return Value(by_seed["mean"], by_seed.get("std"), {}) if "mean" in by_seed else None


def difference(row: Row, base: Row) -> Row:
    """Paired by random seed where both have the same ones, so that the spread is that of the difference."""
    values: dict[str, Value] = {}
    for metric in row.values.keys() & base.values.keys():
        a, b = row.values[metric], base.values[metric]
        runs = {seed: a.runs[seed] - b.runs[seed] for seed in a.runs if seed in b.runs}
        if runs and set(runs) == set(a.runs) == set(b.runs):
            values[metric] = Value(statistics.fmean(runs.values()), statistics.stdev(runs.values()) if len(runs) > 1 else None, runs)
        else:
            values[metric] = Value(a.mean - b.mean)
    return Row(f"{row.label} − {base.label}", "difference", values, method=row.method)


def _paper_row(paper: PaperRow) -> Row:
    values = {metric: Value(value, std) for metric, (value, std) in paper.values.items()}
    return Row(paper.label, "paper", values, protocol=f"{paper.place}: {paper.protocol}", method=paper.method, place=paper.place)


def _threshold(thresholds: Sequence[Mapping[str, Any]]) -> str:
    """`0.31`, or over several repetitions `0.28–0.31`."""
    values = sorted({float(v) for t in thresholds for v in _listed(t.get("value"))})
    if not values:
        return ""
    return f"{values[0]:.2f}" if len(values) == 1 else f"{values[0]:.2f}–{values[-1]:.2f}"


def _listed(value: Any) -> Sequence[Any]:
    return [] if value is None else value if isinstance(value, list | tuple) else [value]


def thresholds(study: StudyResult) -> list[tuple[str, float, str]]:
    """(label, threshold, method) of the first repetition, which the panels show, at the first scored stage."""
    first: dict[str, tuple[str, float, str]] = {}
    for row in study.rows:
        value = ((row.get("protocol") or {}).get("threshold") or {}).get("value")
        if (
            row["metric"] == "mIoU"
            and not without_network(str(row["method"]))
            and isinstance(value, int | float)
            and not row.get("setting")
        ):
            first.setdefault(str(row["method"]), (method_name(str(row["method"])), float(value), str(row["method"])))
    return list(first.values())


def short_protocol(record: Mapping[str, Any], *, network: bool = True) -> str:
    """A protocol record in one line, the threshold's value left to its own column."""
    if not record:
        return ""
    classes, parts = record.get("classes"), [scored_on(record)]
    source = (record.get("threshold") or {}).get("source")
    if network and source and (record.get("threshold") or {}).get("value") is not None:
        parts.append(f"threshold {source}")
    if record.get("absent_classes"):
        counted = f" ({len(classes)} counted)" if isinstance(classes, list | tuple) else ""
        parts.append(f"absent classes {record['absent_classes']}{counted}")
    if network:
        parts.append(f"weights {weights_name(record)}")
        if record.get("initial_weights_trained_on") in ("masks", *(["unknown"] if "segmenter" in record else [])):
            parts.append(f"those trained on {str(record['initial_weights_trained_on']).upper()}")
        for name, of in (("weights_of_maps", "the maps"), ("refinement_weights", "the refinement")):
            if record.get(f"{name}_trained_on") == "masks":
                parts.append(f"those of {of} trained on MASKS")
        if record.get("saliency"):
            parts.append("saliency maps used")
        if record.get("crf") not in (None, False, "none", ""):
            parts.append(f"CRF {record['crf']}")
    if (record.get("labels") or {}).get("oracle"):
        parts.append("class labels oracle")
    return "; ".join(parts)


def scored_on(record: Mapping[str, Any]) -> str:
    """`voc2012 train, 437 images (subset)`."""
    images = record.get("images")
    text = f"{record.get('dataset', '')} {record.get('split', '')}".strip() + (f", {images:,} images" if isinstance(images, int) else "")
    return text + (" (subset)" if record.get("subset") else "")


def weights_name(record: Mapping[str, Any]) -> str:
    text = str(record.get("initial_weights", "not stated"))
    return "none (from scratch)" if from_scratch(record) else text


def from_scratch(record: Mapping[str, Any]) -> bool:
    if "from_scratch" in record:
        return bool(record["from_scratch"])
    text = str(record.get("initial_weights", "")).lower()
    return text.startswith(("none", "random")) or "scratch" in text


def dataset_of(study: StudyResult) -> str:
    return next((str(r["protocol"]["dataset"]) for r in study.rows if (r.get("protocol") or {}).get("dataset")), "")


def per_class(study: StudyResult, metric: str, stage: str, split: str) -> dict[str, dict[str, float]]:
    """Class -> method -> mean over the repetitions, in the order of the classes; metric: IoU or F. Only methods with a network."""
    runs: dict[str, dict[str, list[float]]] = {}
    for row in study.rows:
        kind, _, name = str(row["metric"]).partition(":")
        fits = (kind, row["stage"], row["split"]) == (metric, stage, split) and name and not row.get("setting")
        if fits and row["seed"] not in ("mean", "std") and not without_network(str(row["method"])):
            runs.setdefault(name, {}).setdefault(str(row["method"]), []).append(float(row["value"]))
    order = {name: i for i, name in enumerate(("background", *study.classes))}
    names = sorted(runs, key=lambda n: order.get(n, len(order)))
    return {name: {method: statistics.fmean(values) for method, values in runs[name].items()} for name in names}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        out.update(flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return out
