from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from seedbed.metrics.region import Confusion, harmonic_mean, jaccard
from seedbed.types import IGNORE, UserError

CLASSES = 3
TRUTH = st.sampled_from([0, 1, 2, 3, IGNORE])
PREDICTION = st.sampled_from([0, 1, 2, 3, 4, 200, IGNORE])


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    return draw(arrays(np.uint8, shape, elements=TRUTH)), draw(arrays(np.uint8, shape, elements=PREDICTION))


def counted_singly(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    counts = np.zeros((CLASSES + 1, CLASSES + 2), np.int64)
    for t, p in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        if t != IGNORE:
            counts[t, p if p <= CLASSES else CLASSES + 1] += 1
    return counts


@given(pairs())
def test_counts_are_those_of_the_single_pixels(pair: tuple[np.ndarray, np.ndarray]) -> None:
    assert np.array_equal(Confusion(CLASSES).add(*pair).counts, counted_singly(*pair))


@given(st.lists(pairs(), min_size=3, max_size=3))
def test_sums_do_not_depend_on_order_or_grouping(three: list[tuple[np.ndarray, np.ndarray]]) -> None:
    a, b, c = (Confusion(CLASSES).add(*pair) for pair in three)
    one_after_another = Confusion(CLASSES)
    for pair in reversed(three):
        one_after_another.add(*pair)
    assert (a + b) + c == a + (b + c) == c + a + b == one_after_another
    assert a == Confusion(CLASSES).add(*three[0]), "adding changed what was added"


@given(pairs())
def test_a_record_brings_everything_back(pair: tuple[np.ndarray, np.ndarray]) -> None:
    region = Confusion(CLASSES).add(*pair)
    record = region.to_record()
    assert Confusion.from_record(record, CLASSES) == region
    assert Confusion.from_record({name: values.tolist() for name, values in record.items()}, CLASSES) == region
    assert len(record["pixels"]) == np.count_nonzero(region.counts)


@given(pairs(), st.permutations(range(CLASSES + 1)))
def test_where_pixels_lie_and_what_classes_are_called_changes_nothing(pair, order: list[int]) -> None:
    truth, prediction = pair
    region = Confusion(CLASSES).add(truth, prediction)
    assert region == Confusion(CLASSES).add(truth[::-1, ::-1], prediction[::-1, ::-1]) == Confusion(CLASSES).add(truth.T, prediction.T)
    names = np.arange(256, dtype=np.uint8)
    names[: CLASSES + 1] = order
    renamed = Confusion(CLASSES).add(names[truth], names[prediction])
    np.testing.assert_allclose(renamed.iou("skip")[0][order], region.iou("skip")[0])


@given(pairs(), st.integers(0, 255))
def test_what_is_predicted_on_void_pixels_does_not_count(pair, value: int) -> None:
    truth, prediction = pair
    changed = np.where(truth == IGNORE, value, prediction).astype(np.uint8)
    assert Confusion(CLASSES).add(truth, changed) == Confusion(CLASSES).add(truth, prediction)


@pytest.mark.parametrize("value", [IGNORE, CLASSES + 1, 200])
def test_a_prediction_that_is_no_class_is_an_error_of_the_true_class(value: int) -> None:
    truth = np.array([[1, 1, 1, 1]], np.uint8)
    prediction = np.array([[1, 1, value, value]], np.uint8)
    region = Confusion(CLASSES).add(truth, prediction)
    assert region.iou("truth")[1] == 0.5 and region.recall()[1] == 0.5 and region.precision()[1] == 1.0


def test_absent_classes_by_hand() -> None:
    truth = np.array([[0, 0, 0, 1]], np.uint8)
    prediction = np.array([[0, 0, 2, 1]], np.uint8)  # background 2/3, class 1 whole, class 2 predicted in vain, class 3 nowhere
    region = Confusion(3).add(truth, prediction)
    expected = {
        "skip": ([2 / 3, 1, 0, np.nan], (2 / 3 + 1) / 3),
        "zero": ([2 / 3, 1, 0, 0], (2 / 3 + 1) / 4),
        "truth": ([2 / 3, 1, np.nan, np.nan], (2 / 3 + 1) / 2),
    }
    for rule, (ious, mean) in expected.items():
        np.testing.assert_allclose(region.iou(rule)[0], ious)
        assert region.iou(rule)[1] == pytest.approx(mean)
    precision, recall, f1 = region.precision_recall_f1("skip")
    assert (precision, recall) == (pytest.approx(2 / 3), pytest.approx((2 / 3 + 1) / 3))
    assert f1 == pytest.approx(2 * precision * recall / (precision + recall))
    with pytest.raises(ValueError, match="skip"):
        region.iou("all")


def test_f1_is_the_harmonic_mean_of_the_averages() -> None:
    """As RIB's Table 6 prints them: 66.0 and 66.4 give 66.2, 67.3 and 78.9 give 72.6; the mean of single F1 values would be another."""
    assert round(harmonic_mean(66.0, 66.4), 1) == 66.2 and round(harmonic_mean(67.3, 78.9), 1) == 72.6
    region = Confusion(1, np.array([[90, 10, 0], [0, 10, 0]]))
    precision, recall, f1 = region.precision_recall_f1()
    assert (precision, recall) == (pytest.approx(0.75), pytest.approx(0.95))
    single = [2 * p * r / (p + r) for p, r in zip(region.precision(), region.recall(), strict=True)]
    assert f1 == pytest.approx(2 * 0.75 * 0.95 / 1.7) and abs(f1 - np.mean(single)) > 0.02


def test_a_truth_that_is_all_void_counts_nothing() -> None:
    region = Confusion(CLASSES).add(np.full((4, 5), IGNORE, np.uint8), np.ones((4, 5), np.uint8))
    assert not region.counts.any() and np.isnan(region.iou("skip")[1]) and np.isnan(region.iou("truth")[1])
    assert all(np.isnan(region.precision_recall_f1("skip")))


def test_another_size_is_an_error_that_names_the_picture() -> None:
    with pytest.raises(UserError, match=r"2007_000033.* 5 x 4.* 4 x 5"):
        Confusion(CLASSES).add(np.zeros((5, 4), np.uint8), np.zeros((4, 5), np.uint8), "2007_000033")


@pytest.mark.parametrize("value", [CLASSES + 1, 254, -1, 256])
def test_a_true_value_that_is_no_class_is_an_error(value: int) -> None:
    truth = np.array([[0, value]], np.int32)
    with pytest.raises(UserError, match=rf"2007_000033.* {value}\b"):
        Confusion(CLASSES).add(truth, np.zeros((1, 2), np.uint8), "2007_000033")


def test_maps_of_scores_are_refused() -> None:
    with pytest.raises(TypeError, match="float32"):
        Confusion(CLASSES).add(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.float32))


def test_counts_of_other_classes_cannot_be_added() -> None:
    with pytest.raises(ValueError, match="cannot be added"):
        Confusion(3).merge(Confusion(4))
    with pytest.raises(ValueError, match="shape"):
        Confusion(3, np.zeros((4, 4)))


def test_counts_pass_32_bits() -> None:
    region = Confusion(1, np.array([[2**40, 0, 0], [0, 2**40, 1]]))
    assert region.iou()[0][1] == 2**40 / (2**40 + 1) and (region + region).counts[0, 0] == 2**41


def test_jaccard_of_single_masks() -> None:
    a, b = np.array([[True, True, False]]), np.array([[False, True, True]])
    nothing = np.zeros_like(a)
    assert jaccard(a, b) == pytest.approx(1 / 3) and jaccard(a, nothing) == 0.0 and jaccard(nothing, nothing) == 1.0
    assert jaccard(a, b, void=np.array([[True, False, False]])) == 0.5
