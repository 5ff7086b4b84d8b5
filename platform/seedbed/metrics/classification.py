"""Average precision of image-level labels."""

from __future__ import annotations

import numpy as np


def average_precision(scores_nc: np.ndarray, labels_nc: np.ndarray) -> tuple[np.ndarray, float]:
    """Per class (c,) the area under its curve of precision over recall, NaN for a class without a positive, and the mean of the others.

    scores (n, c) rank the n pictures, labels (n, c) are 0 or 1. The area is the sum of precision times the step in recall, without
    interpolation; pictures of equal score come in together, so their order does not matter. In 0..1; the mean is NaN without any positive.
    """
    scores, labels = np.asarray(scores_nc, np.float64), np.asarray(labels_nc) > 0
    if scores.shape != labels.shape or scores.ndim != 2:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} are both (pictures, classes)")
    if not np.isfinite(scores).all():
        raise ValueError("scores are not finite")
    values = np.array([_of_class(scores[:, i], labels[:, i]) for i in range(scores.shape[1])])
    occurs = ~np.isnan(values)
    return values, float(values[occurs].mean()) if occurs.any() else float("nan")


def _of_class(scores: np.ndarray, positive: np.ndarray) -> float:
    total = int(positive.sum())
    if not total:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_of_equal = np.append(ranked[1:] != ranked[:-1], True)
    hits = np.cumsum(positive[order])[last_of_equal]
    seen = np.flatnonzero(last_of_equal) + 1
    return float(np.sum(np.diff(hits, prepend=0) / total * hits / seen))
