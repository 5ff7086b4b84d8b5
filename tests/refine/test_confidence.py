"""Labels that the refinements' networks are trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from seedbed.methods.maps import range_normalized
from seedbed.refine.confidence import (
    affinity_labels,
    affinity_positions,
    affinity_scores,
    class_values,
    confident,
    irn_confidence,
    with_constant_background,
)
from seedbed.refine.crf import label_crf
from seedbed.types import IGNORE


@pytest.mark.golden
@pytest.mark.parametrize("whose", ["rib", "irn"])
def test_irn_confidence(golden: Any, whose: str) -> None:
    pytest.importorskip("pydensecrf")
    case = golden("ir_label")
    pixels, keys, maps = case["image"], case["keys"], case["high_res"]
    pair = [float(case[f"{whose}_{end}_thres"]) for end in ("fg", "bg")]
    for end, threshold in zip(("fg", "bg"), pair, strict=True):
        before = with_constant_background(maps, threshold)
        np.testing.assert_array_equal(class_values(keys)[before], ids_of(case[f"{whose}_{end}_argmax"], keys))
        after = label_crf(pixels, before, len(keys) + 1)
        assert (class_values(keys)[after] == ids_of(case[f"{whose}_{end}_crf"], keys)).mean() >= 0.99
    ours = irn_confidence(pixels, maps, keys, *pair)
    assert ours.dtype == np.uint8
    assert (ours == case[f"{whose}_ir_label"]).mean() >= 0.99


def ids_of(labels: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The case stores positions or class ids: both as class ids."""
    return class_values(keys)[labels] if labels.max() <= len(keys) else labels


@pytest.mark.golden
@pytest.mark.parametrize("whose", ["rib", "irn"])
def test_confident_from_the_stored_fields(golden: Any, whose: str) -> None:
    case = golden("ir_label")
    values = class_values(case["keys"])
    runs = [np.searchsorted(values, ids_of(case[f"{whose}_{end}_crf"], case["keys"])) for end in ("fg", "bg")]
    np.testing.assert_array_equal(confident(*runs, values), case[f"{whose}_ir_label"])


@pytest.mark.golden
def test_range_normalized(golden: Any) -> None:
    case = golden("crf")
    before = case["sum_cam"].copy()
    np.testing.assert_allclose(range_normalized(case["sum_cam"]), case["norm_cam"], atol=1e-6)
    np.testing.assert_array_equal(before, case["sum_cam"])


def test_positions_by_hand() -> None:
    """One pixel a rule, in the order: class, class, background, undecided, beyond the picture."""
    much = np.array([[0.1, 0.2, 0.9, 0.9, 0], [0.8, 0.1, 0.1, 0.1, 0], [0.1, 0.7, 0, 0, 0]])
    little = np.array([[0.1, 0.1, 0.8, 0.2, 0], [0.8, 0.2, 0.2, 0.7, 0], [0.1, 0.7, 0, 0.1, 0]])
    scores = np.stack([much, little])[:, :, None].astype(np.float32)
    np.testing.assert_array_equal(affinity_positions(scores), [[1, 2, 0, IGNORE, IGNORE]])


def test_affinity_labels_are_class_ids() -> None:
    pytest.importorskip("pydensecrf")
    rng = np.random.default_rng(0)
    pixels = np.zeros((24, 30, 3), np.uint8)
    pixels[:, 15:] = 200
    pixels += rng.integers(0, 20, pixels.shape, dtype=np.uint8)
    maps = np.zeros((2, 24, 30), np.float32)
    maps[0, :, 18:] = 0.95
    maps[1, 2:6, 2:6] = 0.3
    scores = affinity_scores(pixels, maps, 4, 24)
    labels = affinity_labels(scores, np.array([3, 8]))
    assert set(np.unique(labels)) <= {0, 4, 9, IGNORE} and (labels[:, 20:] == 4).all()
    positions = affinity_positions(scores)
    np.testing.assert_array_equal(labels == IGNORE, positions == IGNORE)


def test_no_class_is_background() -> None:
    pixels, nothing, none = np.zeros((3, 4, 3), np.uint8), np.zeros((0, 3, 4), np.float32), np.zeros(0, np.int64)
    assert not irn_confidence(pixels, nothing, none, 0.35, 0.17).any()
    assert not affinity_labels(affinity_scores(pixels, nothing, 4, 24), none).any()


def test_one_pixel() -> None:
    pytest.importorskip("pydensecrf")
    pixels, one = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 1), 0.9, np.float32)
    assert irn_confidence(pixels, one, np.array([5]), 0.35, 0.17).shape == (1, 1)
    assert affinity_labels(affinity_scores(pixels, one, 4, 24), np.array([5])).tolist() == [[6]]
