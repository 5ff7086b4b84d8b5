"""What is scored and what is trained on are two label maps; both follow from the scores alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from seedbed.refine import pseudo_labels
from seedbed.types import IGNORE

SCORES = arrays(np.float32, (2, 5, 4), elements=st.floats(0, 1, width=32))
CLASSES = np.array([3, 7])


@given(SCORES, st.floats(0, 1), st.floats(0, 1))
def test_labels_are_the_mask_where_both_are_sure(scores: np.ndarray, a: float, b: float) -> None:
    background, foreground = sorted((a, b))
    labels = pseudo_labels.training_labels(scores, CLASSES, foreground, background)
    assert set(np.unique(labels)) <= {0, 4, 8, IGNORE}
    for threshold in (background, foreground):
        mask = pseudo_labels.mask(scores, CLASSES, threshold)
        sure = labels != IGNORE
        assert (labels[sure & (scores.max(0) != np.float32(threshold))] == mask[sure & (scores.max(0) != np.float32(threshold))]).all()
    if background == foreground:
        assert ((labels == IGNORE) <= (scores.max(0) == np.float32(background))).all()


@given(SCORES)
def test_wider_apart_ignores_more(scores: np.ndarray) -> None:
    narrow = pseudo_labels.training_labels(scores, CLASSES, 0.3, 0.2) == IGNORE
    wide = pseudo_labels.training_labels(scores, CLASSES, 0.5, 0.1) == IGNORE
    assert (narrow <= wide).all()


def test_rule_of_the_appendix() -> None:
    scores = np.array([[[0.1, 0.25, 0.31, 0.0]], [[0.05, 0.1, 0.2, 0.9]]], np.float32)
    assert pseudo_labels.training_labels(scores, CLASSES, 0.3, 0.2).tolist() == [[0, IGNORE, 4, 8]]
    assert pseudo_labels.mask(scores, CLASSES, 0.27).tolist() == [[0, 0, 4, 8]]


def test_a_walk_that_found_nothing_is_background() -> None:
    walked = np.zeros((2, 3, 3), np.float32)
    assert not pseudo_labels.normalized(walked).any()
    assert not pseudo_labels.mask(pseudo_labels.normalized(walked), CLASSES, 0.27).any()


def test_one_maximum_over_all_classes() -> None:
    walked = np.array([[[4.0, 1.0]], [[2.0, 0.0]]], np.float32)
    assert pseudo_labels.normalized(walked).tolist() == [[[1.0, 0.25]], [[0.5, 0.0]]]


def test_saliency_ignores_what_disagrees() -> None:
    labels = np.array([[0, 0, 4, 4, IGNORE]], np.uint8)
    salient = np.array([[False, True, True, False, True]])
    assert pseudo_labels.ignore_disagreement(labels, salient).tolist() == [[0, IGNORE, 4, IGNORE, IGNORE]]


def test_fill_touches_ignored_pixels_only() -> None:
    labels = np.array([[0, IGNORE, 4]], np.uint8)
    assert pseudo_labels.fill(labels, np.array([[8, 8, 8]], np.uint8)).tolist() == [[0, 8, 4]]
    with pytest.raises(ValueError, match="can't fill"):
        pseudo_labels.fill(labels, np.zeros((2, 3), np.uint8))


@given(arrays(np.uint8, (4, 5), elements=st.sampled_from([0, 4, 8])), arrays(np.uint8, (4, 5), elements=st.sampled_from([0, 4, IGNORE])))
def test_shares_add_up(mask: np.ndarray, labels: np.ndarray) -> None:
    *parts, moved = pseudo_labels.shares(mask, labels, mask)
    assert sum(parts) == pytest.approx(1) and all(p >= 0 for p in parts) and moved == 0


def test_background_plane_comes_first() -> None:
    scores = np.array([[[0.5, 0.1]], [[0.2, 0.6]], [[0.5, 0.2]]], np.float32)
    assert pseudo_labels.argmax_with_background(scores, CLASSES).tolist() == [[0, 4]]
