from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from seedbed.metrics.classification import average_precision

RANKINGS = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        arrays(np.float64, (n, 2), elements=st.integers(0, 5).map(float)), arrays(np.uint8, (n, 2), elements=st.integers(0, 1))
    )
)


def by_definition(scores: np.ndarray, labels: np.ndarray) -> float:
    """Precision at every threshold times the recall that it adds."""
    area, recall = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        taken = scores >= threshold
        now = labels[taken].sum() / labels.sum()
        area += (now - recall) * labels[taken].mean()
        recall = now
    return area


@given(RANKINGS)
def test_area_by_definition(ranking: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = ranking
    values, mean = average_precision(scores, labels)
    expected = [by_definition(scores[:, i], labels[:, i]) if labels[:, i].any() else np.nan for i in range(2)]
    np.testing.assert_allclose(values, expected)
    np.testing.assert_allclose(mean, np.nanmean(expected) if labels.any() else np.nan)


@given(RANKINGS, st.randoms(use_true_random=False))
def test_order_of_pictures_and_scale_of_scores_do_not_matter(ranking, random) -> None:
    scores, labels = ranking
    order = list(range(len(scores)))
    random.shuffle(order)
    np.testing.assert_allclose(average_precision(scores[order] * 3 - 7, labels[order])[0], average_precision(scores, labels)[0])


def test_by_hand() -> None:
    labels = np.array([[1, 1, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0]])
    scores = np.array([[3, 9, 1, 0], [2, 8, 2, 0], [1, 7, 3, 0]], float)
    values, mean = average_precision(scores, labels)
    assert values.tolist() == [pytest.approx((1 + 2 / 3) / 2), 1.0, pytest.approx(np.nan, nan_ok=True), pytest.approx(1 / 3)]
    assert mean == pytest.approx((5 / 6 + 1 + 1 / 3) / 3), "a class that never occurs is not counted"


def test_bad_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        average_precision(np.array([[np.nan]]), np.array([[1]]))
    with pytest.raises(ValueError, match="pictures, classes"):
        average_precision(np.zeros((2, 3)), np.zeros((3, 2)))
