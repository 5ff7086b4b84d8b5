"""Rows of scores.json, and the protocol record that every one of them carries."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from seedbed.config import digest
from seedbed.metrics.contour import Contour
from seedbed.metrics.region import Absent, Confusion
from seedbed.seeds import Threshold
from seedbed.types import UserError

Row = dict[str, Any]
"""One value of scores.json: stage, method, split, seed, metric, value (percent), protocol; of a sweep also setting."""


ORDER = ("mIoU", "F", "J_and_F", "precision", "recall", "F1", "mAP")
"""Metrics in the order of tables; those of single classes follow."""


def protocol_record(
    *,
    dataset: str,
    split: str,
    images: int,
    subset: bool,
    initial_weights: str,
    scales: Sequence[float],
    flip: bool,
    crf: str | None,
    threshold: Threshold | None,
    label_source: str | None,
    oracle_labels: bool,
    contour_tolerance: float,
    absent_classes: Absent,
    settings_key: str,
    git: str,
    **more: Any,
) -> dict[str, Any]:
    """What a score is worth: all that PROTOCOL asks to be told beside a value. `classes` is added by `score_rows`, which knows them.

    crf: a name of its settings, None without one. threshold: None where nothing is thresholded (a segmentation).
    oracle_labels: ground-truth class labels of the scored split were used and the split is not trained on.
    more: further plain values, e.g. network=False for rows that need none, seeds_vary="rib".
    """
    return {
        "dataset": dataset,
        "split": split,
        "images": images,
        "subset": subset,
        "initial_weights": initial_weights,
        "scales": [float(s) for s in scales],
        "flip": flip,
        "crf": crf,
        "threshold": {"value": None, "source": "fixed"} if threshold is None else threshold.to_record(),
        "labels": {"source": label_source, "oracle": oracle_labels},
        "contour_tolerance": contour_tolerance,
        "absent_classes": absent_classes,
        "settings_key": settings_key,
        "git": git,
        **more,
    }


def score_rows(
    confusion: Confusion,
    contour: Contour | None,
    *,
    stage: str,
    method: str,
    split: str,
    seed: int | str,
    protocol: Mapping[str, Any],
    names: Sequence[str],
    setting: Mapping[str, Any] | None = None,
) -> list[Row]:
    """The rows of one set of label maps: J, F, J&F, precision, recall, F1, and IoU and F of every class that counts.

    names: the classes without background. A class that is left out has no row; without a contour there are no rows of F.
    The rule for absent classes is the protocol's; J and F are means over the same classes.
    """
    absent = protocol["absent_classes"]
    counted = confusion.counted(absent)
    if not confusion.counts.any():
        raise UserError(
            f"nothing to score: no labeled pixel in {split}", field="--data.score-split", remedy="score a split whose pictures have masks"
        )
    every = ["background", *names]
    ious, j = confusion.iou(absent)
    precision, recall, f1 = confusion.precision_recall_f1(absent)
    values = {"mIoU": j, "precision": precision, "recall": recall, "F1": f1}
    values |= {f"IoU:{name}": value for name, value in zip(every, ious, strict=True)}
    if contour is not None:
        contours, f = contour.f(counted[1:])
        values |= {"F": f, "J_and_F": (j + f) / 2}
        values |= {f"F:{name}": value for name, value in zip(names, contours, strict=True)}
    record = {**protocol, "classes": [name for name, there in zip(every, counted, strict=True) if there]}
    row = {"stage": stage, "method": method, "split": split, "seed": seed}
    varied = {"setting": dict(setting)} if setting else {}
    ordered = sorted(values, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    return [{**row, "metric": m, "value": 100 * float(values[m]), "protocol": record, **varied} for m in ordered if not np.isnan(values[m])]


def repetition_rows(rows: Iterable[Row]) -> list[Row]:
    """Rows with seed "mean" and "std" (sample standard deviation) of every value that was measured with two seeds or more.

    Where the protocols of the seeds differ (thresholds that are the best of each), the record holds a list in the order of its `seeds`.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if isinstance(row["seed"], int):
            groups.setdefault(_identity(row), []).append(row)
    out: list[Row] = []
    for group in groups.values():
        if len(group) < 2:
            continue
        group.sort(key=lambda row: row["seed"])
        values = [row["value"] for row in group]
        protocol = {**_common([row["protocol"] for row in group]), "seeds": [row["seed"] for row in group]}
        for name, value in (("mean", statistics.fmean(values)), ("std", statistics.stdev(values))):
            out.append({**group[0], "seed": name, "value": value, "protocol": protocol})
    return out


def _identity(row: Row) -> str:
    return digest([row["stage"], row["method"], row["split"], row["metric"], row.get("setting") or {}])


def _common(records: Sequence[Any]) -> Any:
    """One record for several: equal values as they are, dictionaries key by key, all else as the list of the values."""
    if all(record == records[0] for record in records):
        return records[0]
    if all(isinstance(record, Mapping) for record in records):
        names = dict.fromkeys(name for record in records for name in record)
        return {name: _common([record.get(name) for record in records]) for name in names}
    return list(records)


def metric_name(row: Mapping[str, Any]) -> str:
    """A row's name as a metric of MLflow: seed/train/mIoU, seed/train/IoU/<class>."""
    return f"{row['stage']}/{row['split']}/{row['metric'].replace(':', '/')}"


def mean_metrics(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Rows as metrics of MLflow, the mean over random seeds."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(metric_name(row), []).append(row["value"])
    return {name: float(np.mean(values)) for name, values in found.items()}
