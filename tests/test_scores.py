"""Rows of scores.json and their protocol record, as the interface describes them."""

from __future__ import annotations

import json
import statistics

import numpy as np
import pytest

from seedbed.metrics.contour import Contour
from seedbed.metrics.region import Confusion
from seedbed.scores import protocol_record, repetition_rows, score_rows
from seedbed.seeds import Threshold
from seedbed.types import UserError

NAMES = ("cat", "cow", "dog")
KEYS = {
    "dataset", "split", "images", "subset", "initial_weights", "scales", "flip", "crf", "threshold", "labels", "contour_tolerance",
    "absent_classes", "classes", "settings_key", "git",
}  # fmt: skip


def record(**changes):
    values = {
        "dataset": "voc2012",
        "split": "train",
        "images": 2,
        "subset": True,
        "initial_weights": "none",
        "scales": (1.0, 0.5),
        "flip": True,
        "crf": None,
        "threshold": Threshold(0.31, "oracle", "train"),
        "label_source": "main",
        "oracle_labels": False,
        "contour_tolerance": 0.008,
        "absent_classes": "truth",
        "settings_key": "abc",
        "git": "def",
    }
    return protocol_record(**{**values, **changes})


def counts(shift: int = 2) -> tuple[Confusion, Contour]:
    truth = np.zeros((20, 30), np.uint8)
    truth[4:14, 5:18] = 1
    prediction = np.roll(truth, shift, 1)
    prediction[16:, 25:] = 2  # a class that is not there
    return Confusion(3).add(truth, prediction), Contour(3, 1).add(truth, prediction)


def rows_of(method: str = "rib", seed: int = 0, shift: int = 2, **changes):
    return score_rows(*counts(shift), stage="seed", method=method, split="train", seed=seed, protocol=record(**changes), names=NAMES)


def test_rows_are_those_of_the_interface() -> None:
    rows = rows_of()
    by_metric = {row["metric"]: row["value"] for row in rows}
    assert list(by_metric) == ["mIoU", "F", "J_and_F", "precision", "recall", "F1", "IoU:background", "IoU:cat", "F:cat"]
    assert all(set(row) == {"stage", "method", "split", "seed", "metric", "value", "protocol"} for row in rows)
    region, contour = counts()
    assert by_metric["mIoU"] == pytest.approx(100 * region.iou("truth")[1])
    assert by_metric["IoU:cat"] == pytest.approx(100 * region.iou("truth")[0][1])
    assert by_metric["F"] == by_metric["F:cat"] == pytest.approx(100 * contour.f()[0][0])
    assert by_metric["J_and_F"] == pytest.approx((by_metric["mIoU"] + by_metric["F"]) / 2)
    p, r, f1 = region.precision_recall_f1("truth")
    assert (by_metric["precision"], by_metric["recall"], by_metric["F1"]) == pytest.approx((100 * p, 100 * r, 100 * f1))
    json.dumps(rows, allow_nan=False)


def test_the_protocol_has_every_key_and_names_the_classes_that_count() -> None:
    protocol = rows_of()[0]["protocol"]
    assert set(protocol) == KEYS
    assert protocol["threshold"] == {"value": 0.31, "source": "oracle", "split": "train", "edge": False}
    assert protocol["labels"] == {"source": "main", "oracle": False} and protocol["scales"] == [1.0, 0.5]
    assert protocol["classes"] == ["background", "cat"]
    assert rows_of(absent_classes="skip")[0]["protocol"]["classes"] == ["background", "cat", "cow"]
    assert rows_of(absent_classes="zero")[0]["protocol"]["classes"] == ["background", *NAMES]
    assert record(threshold=None)["threshold"] == {"value": None, "source": "fixed"} and record(network=False)["network"] is False


def test_j_and_f_are_means_over_the_classes_of_the_record() -> None:
    for rule in ("skip", "zero", "truth"):
        rows = rows_of(absent_classes=rule)
        value = {row["metric"]: row["value"] for row in rows}
        classes = rows[0]["protocol"]["classes"]
        assert value["mIoU"] == pytest.approx(statistics.fmean(value[f"IoU:{name}"] for name in classes))
        assert value["F"] == pytest.approx(statistics.fmean(value[f"F:{name}"] for name in classes[1:]))
    assert value_of(rows_of(absent_classes="zero"), "F:dog") == 100 and value_of(rows_of(absent_classes="zero"), "IoU:dog") == 0


def value_of(rows, metric: str, seed: object = 0) -> float:
    return next(row["value"] for row in rows if row["metric"] == metric and row["seed"] == seed)


def test_without_contours_there_are_no_rows_of_f() -> None:
    rows = score_rows(counts()[0], None, stage="mask", method="rib", split="train", seed=0, protocol=record(), names=NAMES)
    assert {row["metric"] for row in rows} == {"mIoU", "precision", "recall", "F1", "IoU:background", "IoU:cat"}


def test_a_sweep_says_what_was_varied() -> None:
    varied = {"rib.tau": 0.3}
    rows = score_rows(*counts(), stage="seed", method="rib", split="train", seed=0, protocol=record(), names=NAMES, setting=varied)
    assert all(row["setting"] == varied for row in rows)


def test_nothing_to_score() -> None:
    with pytest.raises(UserError, match="no labeled pixel in train"):
        score_rows(Confusion(3), Contour(3), stage="seed", method="rib", split="train", seed=0, protocol=record(), names=NAMES)


def test_mean_and_sample_deviation_over_seeds() -> None:
    rows = []
    for seed, shift in enumerate((1, 2, 4)):
        rows += rows_of(seed=seed, shift=shift, threshold=Threshold(0.3 + seed / 100, "oracle", "train"))
    rows += rows_of("cam", 0)
    repeated = repetition_rows(rows)
    singles = [value_of(rows, "mIoU", seed) for seed in range(3)]
    assert value_of(repeated, "mIoU", "mean") == pytest.approx(statistics.fmean(singles))
    assert value_of(repeated, "mIoU", "std") == pytest.approx(statistics.stdev(singles))
    assert {row["method"] for row in repeated} == {"rib"}, "one seed has no deviation"
    protocol = repeated[0]["protocol"]
    assert protocol["seeds"] == [0, 1, 2] and protocol["threshold"]["value"] == [0.3, 0.31, 0.32]
    assert protocol["threshold"]["source"] == "oracle" and protocol["dataset"] == "voc2012"
    assert repetition_rows(repeated) == [], "means are not averaged again"


def test_settings_of_a_sweep_are_not_averaged_together() -> None:
    rows = [{**row, "setting": {"rib.tau": tau}, "seed": seed} for tau in (0.3, 0.4) for seed in (0, 1) for row in rows_of()[:1]]
    assert [(r["setting"]["rib.tau"], r["seed"]) for r in repetition_rows(rows)] == [
        (0.3, "mean"),
        (0.3, "std"),
        (0.4, "mean"),
        (0.4, "std"),
    ]
