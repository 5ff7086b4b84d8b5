"""From scored maps to the two things that are made of them: the mask that is scored, and the labels that a segmenter is trained on."""

from __future__ import annotations

import numpy as np

from seedbed.refine.confidence import class_values
from seedbed.seeds import label_map, strongest
from seedbed.types import IGNORE


def normalized(scores_nhw: np.ndarray, floor: float = 1e-5) -> np.ndarray:
    """Walked maps (n, h, w) divided by one maximum over all classes, as IRN's label making has it (golden/README, irn.npz `sem_*`).

    Where nothing is above `floor` (an empty walk), zeros: the picture is background.
    """
    top = float(scores_nhw.max()) if scores_nhw.size else 0.0
    return scores_nhw / np.float32(top) if top > floor else np.zeros_like(scores_nhw)


def mask(scores_nhw: np.ndarray, classes: np.ndarray, background: float, image_id: str = "") -> np.ndarray:
    """(h, w) uint8, nothing ignored: the strongest class (n,) where its score exceeds the constant background score, else 0."""
    return label_map(scores_nhw, classes, background, image_id)


def training_labels(scores_nhw: np.ndarray, classes: np.ndarray, foreground: float, background: float, image_id: str = "") -> np.ndarray:
    """(h, w) uint8: the strongest class above `foreground`, 0 below `background`, IGNORE between them.

    RIB, appendix (Lee et al. 2021): 0.3 and 0.2 on the map after the random walk.
    """
    score, winner = strongest(scores_nhw, image_id)
    if not len(scores_nhw):
        return np.zeros(score.shape, np.uint8)
    values = np.asarray(classes, np.uint8) + np.uint8(1)
    kind = scores_nhw.dtype.type
    unsure = np.where(score < kind(background), np.uint8(0), np.uint8(IGNORE))
    return np.where(score > kind(foreground), values[winner], unsure)


def argmax_with_background(scores_nhw: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(h, w) uint8 of scores (n + 1, h, w) whose first plane is the background's; of equal ones the first wins."""
    return class_values(classes)[scores_nhw.argmax(axis=0)]


def ignore_disagreement(labels_hw: np.ndarray, salient_hw: np.ndarray) -> np.ndarray:
    """Labels with IGNORE where they disagree with a (h, w) bool saliency map: an object that is not salient, background that is.

    Sec. 4.1, Lee et al. 2021 (RIB-Sal).
    """
    object_there = (labels_hw > 0) & (labels_hw != IGNORE)
    return np.where((object_there & ~salient_hw) | ((labels_hw == 0) & salient_hw), np.uint8(IGNORE), labels_hw)


def fill(labels_hw: np.ndarray, prediction_hw: np.ndarray) -> np.ndarray:
    """Labels whose ignored pixels are those of the first segmenter's prediction (RIB's re-training, appendix)."""
    if labels_hw.shape != prediction_hw.shape:
        raise ValueError(f"a prediction of {prediction_hw.shape} can't fill labels of {labels_hw.shape}")
    return np.where(labels_hw == IGNORE, prediction_hw, labels_hw)


def shares(mask_hw: np.ndarray, labels_hw: np.ndarray, seed_hw: np.ndarray) -> tuple[float, float, float, float]:
    """Shares of the pixels: labelled object, labelled background, ignored; and those that the mask has otherwise than the seed."""
    ignored = float((labels_hw == IGNORE).mean())
    background = float((labels_hw == 0).mean())
    objects = float(((labels_hw != 0) & (labels_hw != IGNORE)).mean())
    return objects, background, ignored, float((mask_hw != seed_hw).mean())
