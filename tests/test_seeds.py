"""Label maps, the sweep over thresholds in one pass, the choice of one, and the rows without a network."""

from __future__ import annotations

import numpy as np
import plain_sweep
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from seedbed.metrics.region import Confusion
from seedbed.seeds import (
    SeedConfig,
    SweepCounts,
    centred_box,
    choose_threshold,
    label_map,
    strongest,
    sweep,
    whole_picture,
)
from seedbed.types import IGNORE, UserError

CLASSES = 4
GRID = np.round(np.arange(0.1, 0.8, 0.1), 9)
LEVELS = st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.3, 0.5, 0.7, 0.70001, 1.0])  # many ties, with one another and with the thresholds


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maps, classes, truth."""
    h, w = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    classes = np.array(sorted(draw(st.sets(st.integers(0, CLASSES - 1)))), np.int64)
    cam = draw(arrays(np.float32, (len(classes), h, w), elements=LEVELS.map(lambda v: float(np.float32(v)))))
    truth = draw(arrays(np.uint8, (h, w), elements=st.sampled_from([*range(CLASSES + 1), IGNORE])))
    return cam, classes, truth


@given(cases(), st.sampled_from([*GRID.tolist(), 0.0, 0.25, 0.15]))
def test_label_map_is_the_argmax_over_background_and_classes(case, threshold: float) -> None:
    cam, classes, _ = case
    seed = label_map(cam, classes, threshold)
    assert seed.dtype == np.uint8
    np.testing.assert_array_equal(seed, plain_sweep.label_map(cam, classes, threshold))


@given(cases())
def test_the_sweep_is_the_loop_over_thresholds(case) -> None:
    cam, classes, truth = case
    counts = sweep(cam, classes, truth, GRID, CLASSES)
    plain = plain_sweep.confusions(cam, classes, truth, GRID, CLASSES)
    np.testing.assert_array_equal([counts.confusion(i).counts[:, :-1] for i in range(len(GRID))], plain)
    for index, threshold in enumerate(GRID):
        expected = Confusion(CLASSES).add(truth, label_map(cam, classes, threshold))
        assert counts.confusion(index) == expected
        for rule in ("skip", "zero", "truth"):
            ious, means = counts.ious(rule)
            np.testing.assert_allclose(ious[index], expected.iou(rule)[0])
            np.testing.assert_allclose(means[index], expected.iou(rule)[1])


@given(st.lists(cases(), min_size=3, max_size=3))
def test_sums_do_not_depend_on_order_or_grouping(three) -> None:
    a, b, c = (sweep(*case, GRID, CLASSES) for case in three)
    together = SweepCounts(GRID, CLASSES)
    for case in reversed(three):
        together.add(*case)
    assert (a + b) + c == a + (b + c) == c + a + b == together


@given(cases())
def test_a_record_brings_everything_back(case) -> None:
    counts = sweep(*case, GRID, CLASSES)
    record = counts.to_record()
    assert SweepCounts.from_record(record, GRID, CLASSES) == counts
    assert SweepCounts.from_record({name: values.tolist() for name, values in record.items()}, GRID, CLASSES) == counts


@given(cases(), st.integers(0, 9))
def test_maps_on_void_pixels_do_not_count(case, seed: int) -> None:
    cam, classes, truth = case
    noise = np.random.default_rng(seed).random(cam.shape, np.float32)
    assert sweep(np.where(truth == IGNORE, noise, cam), classes, truth, GRID, CLASSES) == sweep(cam, classes, truth, GRID, CLASSES)


@given(cases())
def test_a_higher_threshold_only_takes_away(case) -> None:
    cam, classes, _ = case
    low, high = label_map(cam, classes, 0.2), label_map(cam, classes, 0.5)
    assert ((high == low) | (high == 0)).all()


def test_background_wins_a_tie_in_the_precision_of_the_maps() -> None:
    cam = np.array([[[0.29, 0.3, 0.31]]], np.float32)
    assert float(cam[0, 0, 0]) != 0.29, "0.29 is another number in float32: compared there"
    for threshold, expected in ((0.29, [0, 1, 1]), (0.3, [0, 0, 1]), (0.31, [0, 0, 0])):
        assert label_map(cam, np.array([0]), threshold)[0].tolist() == expected
    assert label_map(np.full((2, 1, 1), 0.5, np.float32), np.array([1, 3]), 0.2).item() == 2, "of equal classes the first"


def test_a_picture_without_labels_is_background() -> None:
    truth = np.array([[0, 1]], np.uint8)
    nothing = np.zeros((0, 1, 2), np.float32)
    assert label_map(nothing, np.zeros(0, np.int64), 0.1).tolist() == [[0, 0]]
    assert sweep(nothing, np.zeros(0, np.int64), truth, GRID, CLASSES).confusion(0) == Confusion(CLASSES).add(truth, np.zeros_like(truth))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_maps_that_are_not_finite_are_named(value: float) -> None:
    cam = np.zeros((2, 3, 3), np.float32)
    cam[1, 1, 1] = value
    for call in (lambda: label_map(cam, np.array([0, 1]), 0.2, "2007_000033"), lambda: strongest(cam, "2007_000033")):
        with pytest.raises(UserError, match=r"2007_000033.*not finite"):
            call()


def test_bad_truth_is_named() -> None:
    cam = np.zeros((1, 2, 2), np.float32)
    for truth in (np.zeros((2, 3), np.uint8), np.full((2, 2), CLASSES + 1, np.uint8), np.full((2, 2), 300, np.int32)):
        with pytest.raises(UserError, match="2007_000033"):
            sweep(cam, np.array([0]), truth, GRID, CLASSES, "2007_000033")


def test_thresholds_ascend() -> None:
    for bad in ([], [0.2, 0.2], [0.3, 0.2]):
        with pytest.raises(ValueError, match="ascending"):
            SweepCounts(np.array(bad), CLASSES)
    with pytest.raises(ValueError, match="thresholds"):
        SweepCounts(GRID, CLASSES).merge(SweepCounts(GRID[1:], CLASSES))


# --- which threshold -------------------------------------------------------------------------------


def one_object(inside: float, outside: float) -> SweepCounts:
    """An object whose map is `inside` on it and `outside` around it: best between the two."""
    truth = np.zeros((6, 6), np.uint8)
    truth[2:4, 2:4] = 1
    cam = np.where(truth == 1, inside, outside).astype(np.float32)[None]
    return sweep(cam, np.array([0]), truth, GRID, CLASSES)


def test_the_best_threshold_is_the_lowest_of_equal_ones() -> None:
    best = one_object(0.55, 0.25).best("truth")
    assert (best.value, best.index, best.mean_iou, best.edge) == (0.3, 2, 1.0, False) and best.warning("CAM") is None


@pytest.mark.parametrize(("inside", "outside", "value"), [(0.95, 0.05, 0.1), (0.95, 0.65, 0.7)])
def test_the_edge_of_the_grid_is_warned_about(inside: float, outside: float, value: float) -> None:
    best = one_object(inside, outside).best("truth")
    assert best.edge and best.value == value and "edge" in str(best.warning("CAM")) and f"{value:g}" in str(best.warning("CAM"))


def test_nothing_to_choose_by() -> None:
    for rule in ("skip", "zero", "truth"):
        with pytest.raises(UserError, match="no labeled pixel"):
            SweepCounts(GRID, CLASSES).best(rule)


def test_where_a_threshold_comes_from() -> None:
    scored, other = one_object(0.55, 0.25), one_object(0.65, 0.45)
    oracle = choose_threshold(SeedConfig(), "truth", "train", scored)
    assert (oracle.value, oracle.source, oracle.split) == (0.3, "oracle", "train")
    held_out = choose_threshold(SeedConfig(threshold_source="held-out", held_out_split="val"), "truth", "train", scored, other)
    assert held_out.to_record() == {"value": 0.5, "source": "held-out", "split": "val", "edge": False}
    fixed = choose_threshold(SeedConfig().with_preset("irn"), "truth", "train", None)
    assert fixed.to_record() == {"value": 0.15, "source": "fixed"}, "a fixed threshold looks at no mask"
    with pytest.raises(UserError, match="train itself"):
        choose_threshold(SeedConfig(threshold_source="held-out", held_out_split="train"), "truth", "train", scored, other)
    with pytest.raises(ValueError, match="val"):
        choose_threshold(SeedConfig(threshold_source="held-out", held_out_split="val"), "truth", "train", scored)


@pytest.mark.parametrize(
    ("preset", "first", "last", "count"), [("rib", 0.20, 0.49, 30), ("seam", 0.0, 0.59, 60), ("rib-coco", 0.10, 0.50, 41)]
)
def test_grids_of_the_papers(preset: str, first: float, last: float, count: int) -> None:
    grid = SeedConfig().with_preset(preset).grid()
    assert grid.tolist() == [i / 100 for i in range(round(100 * first), round(100 * last) + 1)] and len(grid) == count


def test_grids_of_ones_own() -> None:
    assert SeedConfig(low=0.3, high=0.3).grid().tolist() == [0.3]
    assert SeedConfig(low=0.1, high=0.4, step=0.25).grid().tolist() == [0.1, 0.35]
    assert SeedConfig(low=0.0, high=1.0, step=0.001).grid().shape == (1001,)


def test_settings_out_of_place_are_named() -> None:
    for settings, word in (
        (SeedConfig(low=0.5, high=0.4), "--scoring.low"),
        (SeedConfig(threshold=1.5), "--scoring.threshold"),
        (SeedConfig(tolerance=0.0), "--scoring.tolerance"),
        (SeedConfig(step=0.0), "--scoring.step"),
        (SeedConfig(threshold_source="held-out"), "--scoring.held-out-split"),
        (SeedConfig(absent_classes="none"), "--scoring.absent-classes"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError) as error:
            settings.check("scoring.")
        assert error.value.field == word
    for preset in SeedConfig.PRESETS:
        SeedConfig().with_preset(preset).check("scoring.")


def test_absent_classes_on_a_subset() -> None:
    assert SeedConfig().absent(subset=True) == "truth" and SeedConfig().absent(subset=False) == "skip"
    assert SeedConfig(absent_classes="zero").absent(subset=True) == "zero"


def test_more_than_255_thresholds() -> None:
    grid = SeedConfig(low=0.0, high=1.0, step=0.001).grid()
    cam = np.linspace(0, 1, 400, dtype=np.float32).reshape(1, 20, 20)
    truth = (cam[0] > 0.5).astype(np.uint8)
    counts = sweep(cam, np.array([0]), truth, grid, CLASSES)
    assert counts.confusion(700) == Confusion(CLASSES).add(truth, label_map(cam, np.array([0]), grid[700]))


# --- rows without a network ------------------------------------------------------------------------


def test_the_whole_picture() -> None:
    assert (whole_picture(np.array([0, 0, 1, 1]), (4, 5)) == 3).all(), "of several classes the one of the lowest index"
    assert not whole_picture(np.zeros(4), (4, 5)).any()


@given(st.tuples(st.integers(8, 60), st.integers(8, 60)))
def test_the_box_is_centred_and_half_the_picture(shape: tuple[int, int]) -> None:
    box = centred_box(np.array([0, 1]), shape) == 2
    rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
    assert box.sum() == len(rows) * len(columns)
    assert box.mean() == pytest.approx(0.5, abs=0.75 * (1 / shape[0] + 1 / shape[1]))
    for found, size in ((rows, shape[0]), (columns, shape[1])):
        assert abs(found[0] - (size - 1 - found[-1])) <= 1
