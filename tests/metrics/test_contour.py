from __future__ import annotations

import math

import numpy as np
import plain_contour
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from seedbed.metrics.contour import Contour, boundary, contour_f, grow, matches, pack, radius
from seedbed.metrics.region import Confusion
from seedbed.types import IGNORE, UserError

CLASSES = 3
SHAPES = st.tuples(st.integers(1, 14), st.integers(1, 14))
MASKS = SHAPES.flatmap(lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape)))
PREDICTION = st.sampled_from([0, 1, 2, 3, 9, IGNORE])
TRUTH = st.sampled_from([0, 1, 2, 3, IGNORE])
PAIRS = SHAPES.flatmap(lambda shape: st.tuples(arrays(np.uint8, shape, elements=TRUTH), arrays(np.uint8, shape, elements=PREDICTION)))
REACHES = st.one_of(st.integers(1, 30).map(float), st.floats(1, 9))


def blobs(rng: np.random.Generator, shape: tuple[int, int], values: list[int]) -> np.ndarray:
    """A label map of discs, some over the picture's edge."""
    labels = np.zeros(shape, np.uint8)
    y, x = np.mgrid[: shape[0], : shape[1]]
    for value in values:
        cy, cx, r = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(3, max(shape) / 3)
        labels[(y - cy) ** 2 + (x - cx) ** 2 < r * r] = value
    return labels


# --- against the plain way -------------------------------------------------------------------------


@given(MASKS, REACHES)
def test_a_dilation_is_all_within_euclidean_distance(masks: tuple[np.ndarray, np.ndarray], reach: float) -> None:
    mask = masks[0]
    bits, stride = pack(mask, min(math.ceil(reach), mask.shape[1]))
    kept = grow(bits, reach, stride, mask.shape) & (1 << mask.shape[0] * stride) - 1
    length = mask.shape[0] * stride // 8
    unpacked = np.unpackbits(np.frombuffer(kept.to_bytes(length, "big"), np.uint8)).reshape(-1, stride)[:, : mask.shape[1]]
    y, x = np.nonzero(mask)
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]]
    near = ((rows[..., None] - y) ** 2 + (columns[..., None] - x) ** 2 <= reach * reach).any(-1)
    np.testing.assert_array_equal(unpacked > 0, near)


@given(MASKS, st.integers(1, 6))
def test_matches_of_masks_are_those_of_the_plain_way(masks: tuple[np.ndarray, np.ndarray], reach: int) -> None:
    truth, prediction = (mask.astype(np.uint8) for mask in masks)
    assert list(matches(*masks, reach)) == plain_contour.counts(truth, prediction, 1, reach)[0].tolist()
    np.testing.assert_array_equal(boundary(masks[0]), plain_contour.boundary(masks[0]))


@given(PAIRS, st.sampled_from([0.008, 0.05, 0.3, 1, 3, 40]))
def test_counts_are_those_of_the_plain_way_on_noise(pair: tuple[np.ndarray, np.ndarray], tolerance: float) -> None:
    np.testing.assert_array_equal(Contour(CLASSES, tolerance).add(*pair).counts, plain_contour.counts(*pair, CLASSES, tolerance))


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.tuples(st.integers(20, 90), st.integers(20, 90)))
def test_counts_are_those_of_the_plain_way_on_objects(seed: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    truth = blobs(rng, shape, [1, 2, IGNORE, 5])
    prediction = np.roll(truth, tuple(rng.integers(-4, 5, 2)), (0, 1)) if rng.random() < 0.7 else blobs(rng, shape, [1, 4])
    counts = Contour(5, 0.03).add(truth, prediction).counts
    np.testing.assert_array_equal(counts, plain_contour.counts(truth, prediction, 5, 0.03))
    np.testing.assert_allclose(contour_f(counts), plain_contour.f_scores(counts))


# --- sums, records, invariances --------------------------------------------------------------------


@given(st.lists(PAIRS, min_size=3, max_size=3))
def test_sums_do_not_depend_on_order_or_grouping(three: list[tuple[np.ndarray, np.ndarray]]) -> None:
    a, b, c = (Contour(CLASSES, 2).add(*pair) for pair in three)
    one_after_another = Contour(CLASSES, 2)
    for pair in reversed(three):
        one_after_another.add(*pair)
    assert (a + b) + c == a + (b + c) == c + a + b == one_after_another


@given(PAIRS)
def test_a_record_brings_everything_back(pair: tuple[np.ndarray, np.ndarray]) -> None:
    contour = Contour(CLASSES, 2).add(*pair)
    record = contour.to_record()
    assert Contour.from_record(record, CLASSES, 2) == contour
    assert Contour.from_record({name: values.tolist() for name, values in record.items()}, CLASSES, 2) == contour
    assert len(record["class"]) == contour.counts.any(1).sum()


@given(PAIRS)
def test_void_is_background_here(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, prediction = pair
    assert Contour(CLASSES).add(truth, prediction) == Contour(CLASSES).add(np.where(truth == IGNORE, 0, truth), prediction)


@given(PAIRS)
def test_a_prediction_that_is_no_class_has_no_contour_of_its_own(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, prediction = pair
    known = np.where(prediction <= CLASSES, prediction, 0)
    assert Contour(CLASSES).add(truth, prediction) == Contour(CLASSES).add(truth, known)


@given(PAIRS, st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_an_object_moved_with_its_truth_scores_the_same(pair: tuple[np.ndarray, np.ndarray], by: tuple[int, int]) -> None:
    framed = [np.pad(labels, 6) for labels in pair]
    moved = [np.roll(labels, by, (0, 1)) for labels in framed]
    assert Contour(CLASSES, 3).add(*framed) == Contour(CLASSES, 3).add(*moved)


@given(PAIRS)
def test_swapping_truth_and_prediction_keeps_f(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, prediction = (np.where(labels > CLASSES, 0, labels) for labels in pair)
    there, back = Contour(CLASSES, 2).add(truth, prediction), Contour(CLASSES, 2).add(prediction, truth)
    np.testing.assert_array_equal(there.counts, back.counts[:, [1, 0, 3, 2]])
    np.testing.assert_allclose(there.f()[0], back.f()[0])


@given(PAIRS)
def test_matches_never_exceed_boundaries_and_grow_with_the_tolerance(pair: tuple[np.ndarray, np.ndarray]) -> None:
    narrow, wide = (Contour(CLASSES, tolerance).add(*pair).counts for tolerance in (1, 4))
    assert (narrow[:, :2] <= wide[:, :2]).all() and (wide[:, :2] <= wide[:, 2:]).all()
    np.testing.assert_array_equal(narrow[:, 2:], wide[:, 2:])


# --- by hand ---------------------------------------------------------------------------------------


def test_f_by_hand() -> None:
    counts = np.array([[3, 2, 4, 4], [0, 0, 0, 0], [0, 0, 5, 0], [0, 0, 0, 5], [0, 0, 5, 5]])
    assert contour_f(counts).tolist() == [pytest.approx(2 * 0.5 * 0.75 / 1.25), 1.0, 0.0, 0.0, 0.0]


def test_the_boundary_of_one_pixel() -> None:
    mask = np.zeros((4, 4), bool)
    mask[1, 1] = True
    assert np.argwhere(boundary(mask)).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    corner = np.zeros((4, 4), bool)
    corner[-1, -1] = True
    assert np.argwhere(boundary(corner)).tolist() == [[2, 2], [2, 3], [3, 2]], "the last pixel never is a boundary"
    assert not boundary(np.ones((4, 4), bool)).any()


def test_radius() -> None:
    assert radius(0.008, (375, 500)) == 5 and radius(0.008, (376, 500)) == 6 and radius(1, (375, 500)) == 1 and radius(3.0, (9, 9)) == 3


def test_j_and_f_use_the_same_classes() -> None:
    """A class that is predicted on void pixels alone has a contour but no pixel that counts: J and F both leave it out."""
    truth = np.zeros((20, 20), np.uint8)
    truth[4:9, 4:9], truth[12:18, 12:18] = 1, IGNORE
    prediction = np.where(truth == IGNORE, 2, truth).astype(np.uint8)
    region, contour = Confusion(CLASSES).add(truth, prediction), Contour(CLASSES, 1).add(truth, prediction)
    assert region.counted("skip").tolist() == [True, True, False, False] and contour.counts[1].any()
    values, mean = contour.f(region.counted("skip")[1:])
    assert values[0] == mean == 1.0 and np.isnan(values[1:]).all()
    assert contour.f(region.counted("zero")[1:])[0].tolist() == [1.0, 0.0, 1.0]
    assert contour.f()[1] == pytest.approx(2 / 3)


def test_a_class_that_fills_the_picture_has_no_contour_to_miss() -> None:
    full = np.full((8, 9), 2, np.uint8)
    assert Contour(CLASSES).add(full, full).f()[0][1] == 1.0
    half = full.copy()
    half[:, 4:] = 0
    assert Contour(CLASSES).add(full, half).f()[0][1] == 0.0


def test_errors_name_the_picture() -> None:
    with pytest.raises(UserError, match="2007_000033"):
        Contour(CLASSES).add(np.zeros((5, 4), np.uint8), np.zeros((4, 5), np.uint8), "2007_000033")
    with pytest.raises(UserError, match="2007_000033"):
        Contour(CLASSES).add(np.full((5, 4), 4, np.uint8), np.zeros((5, 4), np.uint8), "2007_000033")
    with pytest.raises(ValueError, match="tolerance"):
        Contour(CLASSES, 0.008).merge(Contour(CLASSES, 0.01))
