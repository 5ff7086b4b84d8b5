"""The threshold sweep written down as the official scripts do it: for every threshold a whole label map, and its confusion matrix.

What `seedbed.seeds.sweep` is compared with, for values (tests) and for time (benchmarks).
"""

from __future__ import annotations

import numpy as np


def label_map(cam_nhw: np.ndarray, classes: np.ndarray, threshold: float) -> np.ndarray:
    """Argmax over [a constant background, maps], written into one array of the maps' own precision: the first of equal ones wins."""
    stacked = np.pad(cam_nhw, ((1, 0), (0, 0), (0, 0)), constant_values=threshold)
    return np.pad(classes + 1, (1, 0))[stacked.argmax(0)]


def confusions(cam_nhw: np.ndarray, classes: np.ndarray, truth: np.ndarray, thresholds: np.ndarray, num_classes: int) -> np.ndarray:
    """(t, c + 1, c + 1) counts of true and predicted class; true 255 left out."""
    size = num_classes + 1
    keep = truth != 255
    true = truth[keep].astype(np.int64) * size
    out = np.zeros((len(thresholds), size, size), np.int64)
    for row, threshold in zip(out, thresholds, strict=True):
        row += np.bincount(true + label_map(cam_nhw, classes, threshold)[keep], minlength=size * size).reshape(size, size)
    return out
