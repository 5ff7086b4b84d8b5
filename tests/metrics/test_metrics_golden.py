"""Scores against the numbers of the official implementations. Imports only what a bare machine has."""

from __future__ import annotations

import numpy as np
import pytest

from seedbed.metrics.contour import COLUMNS, Contour, boundary, boundary_f
from seedbed.metrics.region import Confusion, jaccard
from seedbed.types import IGNORE

pytestmark = pytest.mark.golden


def test_golden_confusion(golden) -> None:
    case = golden("confusion")
    classes = len(case["confusion"]) - 1
    region = Confusion(classes)
    for i in range(len(case["ids"])):
        region += Confusion(classes).add(case[f"gt_{i}"], case[f"pred_{i}"], str(case["ids"][i]))
    np.testing.assert_array_equal(region.counts[:, :-1], case["confusion"])
    assert not region.counts[:, -1].any()

    ious, mean = region.iou("skip")
    np.testing.assert_allclose(ious, case["iou"], rtol=0, atol=1e-9)
    assert mean == pytest.approx(float(case["miou_nan"]), abs=1e-9)
    np.testing.assert_allclose(region.precision(), case["precision"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(region.recall(), case["recall"], rtol=0, atol=1e-9)
    counted = region.counted("skip")
    for name, part in (("fp_rate", region.true), ("fn_rate", region.predicted)):
        rate = np.where(counted, 1 - part / np.maximum(region.union, 1), np.nan)
        np.testing.assert_allclose(rate, case[name], rtol=0, atol=1e-9)


def test_golden_confusion_with_absent_classes_as_zero(golden) -> None:
    case = golden("confusion")
    region = Confusion(len(case["confusion"]) - 1)
    for i in range(len(case["ids"])):
        region.add(case[f"gt_{i}"], case[f"pred_{i}"])
    hits, predicted, true, union = region.hits, region.predicted, region.true, region.union
    for name, counts in (("TP", hits), ("P", predicted), ("T", true)):
        np.testing.assert_array_equal(counts, case[f"eval_{name}"])
    ious, mean = region.iou("zero")
    np.testing.assert_allclose(ious, case["eval_iou"], rtol=0, atol=1e-9)
    assert mean == pytest.approx(float(case["eval_miou"]), abs=1e-9)
    quotients = {
        "T_TP": (true, hits),
        "P_TP": (predicted, hits),
        "FP_ALL": (predicted - hits, union),
        "FN_ALL": (true - hits, union),
    }
    for name, (part, whole) in quotients.items():
        np.testing.assert_allclose(part / (whole + 1e-10), case[f"eval_{name}"], rtol=1e-9, atol=1e-9)


def test_golden_set_score(golden) -> None:
    case = golden("contour")
    classes, tolerance = int(case["num_classes"]), float(case["bound_th"])
    names = ("fg_matches", "gt_matches", "n_fg", "n_gt")  # there "fg" is the truth and "gt" the prediction
    total = Contour(classes, tolerance)
    for i in range(len(case["ids"])):
        one = Contour(classes, tolerance).add(case[f"gt_{i}"], case[f"pred_{i}"], str(case["ids"][i]))
        for column, name in enumerate(names):
            np.testing.assert_array_equal(one.counts[:, column], case[f"per_image_{name}"][i], err_msg=COLUMNS[column])
        total = total + one
    for column, name in enumerate(names):
        np.testing.assert_allclose(total.counts[:, column] / 100000, case[name], rtol=0, atol=1e-9)
    values, mean = total.f()
    np.testing.assert_allclose(values, case["class_F"], rtol=0, atol=1e-9)
    assert mean == pytest.approx(float(case["mean_F"]), abs=1e-9)


def test_golden_single_masks(golden) -> None:
    case = golden("contour")
    tolerance = float(case["bound_th"])
    for row, (pair, value) in enumerate(case["binary_pairs"]):
        truth, prediction = case[f"gt_{pair}"] == value, case[f"pred_{pair}"] == value
        void = case[f"gt_{pair}"] == IGNORE
        assert boundary_f(prediction, truth, tolerance=tolerance) == pytest.approx(case["davis_f"][row], abs=1e-9)
        assert boundary_f(prediction, truth, void, tolerance) == pytest.approx(case["davis_f_void"][row], abs=1e-9)
        assert jaccard(prediction, truth) == pytest.approx(case["davis_j"][row], abs=1e-9)
        assert [boundary(prediction).sum(), boundary(truth).sum()] == case["boundary_counts_pred_gt"][row].tolist()


def test_golden_tolerances_and_edge_cases(golden) -> None:
    case = golden("contour")
    truth = case["gt_0"]
    lowest = truth == truth[(truth > 0) & (truth != IGNORE)].min()
    np.testing.assert_array_equal(boundary(lowest), case["boundary_0_gt"] > 0)
    for tolerance, value in zip(case["davis_f_bound_th"], case["davis_f_bound_th_value"], strict=True):
        assert boundary_f(case["pred_0"] > 0, lowest, tolerance=float(tolerance)) == pytest.approx(value, abs=1e-9)
    nothing = np.zeros_like(lowest)
    assert boundary_f(nothing, nothing) == float(case["davis_f_both_empty"])
    assert [boundary_f(lowest, nothing), boundary_f(nothing, lowest)] == case["davis_f_one_empty"].tolist()
