"""Where maps can be trusted: the labels that the networks of IRN and AffinityNet are trained on."""

from __future__ import annotations

import numpy as np

from seedbed.refine.crf import DenseCrf, LabelCrfConfig, label_crf, score_crf, with_background
from seedbed.types import IGNORE

SILENT = 1e-5
"""Where every score is below it, there is no picture: the crop reaches beyond it."""


def class_values(classes: np.ndarray) -> np.ndarray:
    """(n + 1,) uint8: what a position in the list (background, labelled classes) is in a label map."""
    return np.concatenate([[0], np.asarray(classes, np.int64) + 1]).astype(np.uint8)


def crf_of_label_map(pixels: np.ndarray, labels_hw: np.ndarray, classes: np.ndarray, crf: LabelCrfConfig | None = None) -> np.ndarray:
    """(h, w) uint8: a label map of 0 and class indices + 1 after the label form of the random field, in which `classes` (n,) take part."""
    values = class_values(classes)  # a field knows labels 0 to n, not class indices
    return values[label_crf(pixels, np.searchsorted(values, labels_hw).astype(np.uint8), len(values), crf)]


def with_constant_background(maps_nhw: np.ndarray, threshold: float) -> np.ndarray:
    """(n, h, w) maps -> (h, w) uint8: position of the largest, 0 where none exceeds the threshold."""
    background = np.full((1, *maps_nhw.shape[1:]), threshold, maps_nhw.dtype)
    return np.concatenate([background, maps_nhw]).argmax(0).astype(np.uint8)


def confident(foreground_hw: np.ndarray, background_hw: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Two label maps of positions, the first with little foreground, the second with little background -> (h, w) uint8 (golden: ir_label).

    A class where the first says so, 0 where both say background, ignored elsewhere. `values`: as of `class_values`.
    """
    out = values[foreground_hw]
    out[(foreground_hw == 0) & (background_hw != 0)] = IGNORE
    return out


def irn_confidence(
    pixels: np.ndarray,
    high_res_nhw: np.ndarray,
    classes: np.ndarray,
    foreground: float,
    background: float,
    crf: LabelCrfConfig | None = None,
) -> np.ndarray:
    """IRN's confident labels (golden: ir_label): class index + 1, 0 background, IGNORE, (h, w) uint8.

    pixels (h, w, 3) uint8 RGB; high_res_nhw (n, h, w) float32 in [0, 1], of `classes` (n,). Each threshold, the background's constant
    score, gives a label map; a random field with the labels of this picture goes over both. No class: background, surely.
    """
    if not len(classes):
        return np.zeros(pixels.shape[:2], np.uint8)
    runs = (with_constant_background(high_res_nhw, threshold) for threshold in (foreground, background))
    refined = [label_crf(pixels, run, len(classes) + 1, crf) for run in runs]
    return confident(refined[0], refined[1], class_values(classes))


def affinity_scores(pixels: np.ndarray, maps_nhw: np.ndarray, low: float, high: float, crf: DenseCrf | None = None) -> np.ndarray:
    """(2, n + 1, h, w) float32: the random field's scores of PSA with the background's score to the power low, then high.

    pixels (h, w, 3) uint8 RGB; maps_nhw (n, h, w) float32 in [0, 1]. No class: background, surely.
    """
    if not len(maps_nhw):
        return np.ones((2, 1, *pixels.shape[:2]), np.float32)
    return np.stack([score_crf(pixels, with_background(maps_nhw, alpha), crf) for alpha in (low, high)])


def affinity_positions(scores_2nhw: np.ndarray) -> np.ndarray:
    """PSA's training labels (golden: affinitynet, `lab_*`), (h, w) uint8 positions in the list (background, labelled classes).

    scores_2nhw (2, n + 1, h, w): with much background, with little. A class where even the first says so, 0 where even the second says
    background, ignored elsewhere and where all scores are nothing.
    """
    first, second = scores_2nhw.argmax(1).astype(np.uint8)
    out = np.where(first == 0, IGNORE, first).astype(np.uint8)
    out[second == 0] = 0
    out[(scores_2nhw < SILENT).all((0, 1))] = IGNORE
    return out


def affinity_labels(scores_2nhw: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """What the scores of PSA say of each pixel by itself: class index + 1, 0 background, IGNORE, (h, w) uint8. `classes`: (n,)."""
    positions = affinity_positions(scores_2nhw)
    out = class_values(classes)[np.where(positions == IGNORE, 0, positions)]
    out[positions == IGNORE] = IGNORE
    return out
