"""Contour quality F: how much of the predicted contours lies near the true ones and the reverse.

The set score of HFPL (its official code, after the DAVIS benchmark): matches are added up over the whole set, per class, before precision
and recall are formed. The measure of a single mask, as DAVIS has it, is `boundary_f`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from seedbed.metrics.region import check_pair, check_values, mean_over, ratio, runs
from seedbed.types import IGNORE

COLUMNS = ("truth_matched", "prediction_matched", "truth_boundary", "prediction_boundary")
"""What is counted per class, in boundary pixels."""


class Contour:
    """Boundary pixels and matches of every class but the background, added up over pictures: counts (c, 4) int64, columns as COLUMNS.

    A true IGNORE counts as background, as in the official code: an object's contour to a void ring is a contour.
    """

    def __init__(self, num_classes: int, tolerance: float = 0.008, counts: np.ndarray | None = None) -> None:
        """num_classes without background; tolerance as in `radius`."""
        shape = (num_classes, len(COLUMNS))
        if counts is not None and counts.shape != shape:
            raise ValueError(f"counts of {num_classes} classes have the shape {shape}, not {counts.shape}")
        self.num_classes, self.tolerance = num_classes, tolerance
        self.counts = np.zeros(shape, np.int64) if counts is None else counts.astype(np.int64)

    def add(self, truth: np.ndarray, prediction: np.ndarray, image_id: str = "") -> Self:
        """Count one picture: two (h, w) label maps. Errors as in Confusion."""
        check_pair(truth, prediction, image_id)
        (true, predicted), _ = runs(truth, prediction)
        check_values(true, self.num_classes, image_id)
        reach = radius(self.tolerance, truth.shape)
        for value in np.union1d(true, predicted):
            if 1 <= value <= self.num_classes and value != IGNORE:
                self.counts[value - 1] += matches(truth == value, prediction == value, reach)
        return self

    def merge(self, other: Contour) -> Self:
        """Add another's counts to these."""
        if (other.num_classes, other.tolerance) != (self.num_classes, self.tolerance):
            raise ValueError("counts of other classes or another tolerance cannot be added")
        self.counts += other.counts
        return self

    def __add__(self, other: Contour) -> Contour:
        return Contour(self.num_classes, self.tolerance, self.counts).merge(other)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Contour) and self.tolerance == other.tolerance and np.array_equal(self.counts, other.counts)

    __hash__ = None  # type: ignore[assignment]

    def f(self, counted: np.ndarray | None = None) -> tuple[np.ndarray, float]:
        """Per class (c,) with NaN where left out, and the mean over the others; in 0..1.

        counted: (c,) bool, `Confusion.counted(absent)[1:]`, so that J and F are means over the same classes; None: all, as HFPL.
        A class without a contour in truth and prediction scores 1, in one of them alone 0.
        """
        keep = np.ones(self.num_classes, bool) if counted is None else np.asarray(counted, bool)
        values = np.where(keep, contour_f(self.counts), np.nan)
        return values, float(mean_over(values, keep))

    def to_record(self) -> dict[str, np.ndarray]:
        """The counts of the classes that have any, for storage beside a picture."""
        present = np.flatnonzero(self.counts.any(1))
        return {"class": present.astype(np.int16), **{name: self.counts[present, column] for column, name in enumerate(COLUMNS)}}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], num_classes: int, tolerance: float = 0.008) -> Contour:
        """The inverse of `to_record`; sequences of any kind are taken."""
        contour = cls(num_classes, tolerance)
        columns = np.stack([np.asarray(record[name], np.int64) for name in COLUMNS], axis=1)
        np.add.at(contour.counts, np.asarray(record["class"], np.int64), columns)
        return contour


def contour_f(counts: np.ndarray) -> np.ndarray:
    """F of counts (..., 4) as COLUMNS: harmonic mean of matched shares; 1 where neither side has a boundary, 0 where one alone has."""
    truth_matched, prediction_matched, truth, prediction = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    precision, recall = np.nan_to_num(ratio(prediction_matched, prediction)), np.nan_to_num(ratio(truth_matched, truth))
    f = np.nan_to_num(ratio(2 * precision * recall, precision + recall))
    return np.where((truth == 0) & (prediction == 0), 1.0, f)


def boundary_f(prediction: np.ndarray, truth: np.ndarray, void: np.ndarray | None = None, tolerance: float = 0.008) -> float:
    """DAVIS's measure of one pair of (h, w) masks, in 0..1; void pixels are taken out of both masks first."""
    if void is not None:
        prediction, truth = prediction & ~void, truth & ~void
    return float(contour_f(matches(truth, prediction, radius(tolerance, truth.shape))))


def radius(tolerance: float, shape: tuple[int, ...]) -> float:
    """How far apart, in pixels, two boundary pixels may lie: a tolerance below 1 is a share of the diagonal, rounded up; else pixels."""
    return tolerance if tolerance >= 1 else math.ceil(tolerance * float(np.linalg.norm(shape)))


def boundary(mask: np.ndarray) -> np.ndarray:
    """(h, w) bool: pixels that differ from their right, lower or lower-right neighbor; beyond the picture there is none to differ from."""
    edge = np.zeros(mask.shape, bool)
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return edge


def dilate(mask: np.ndarray, reach: float) -> np.ndarray:
    """(h, w) bool: pixels within Euclidean distance `reach` of the mask. Row by row: a disk is a stack of runs."""
    grown = np.zeros(mask.shape, bool)
    for dy in range(-min(int(reach), mask.shape[0] - 1), min(int(reach), mask.shape[0] - 1) + 1):
        half = int(math.sqrt(reach * reach - dy * dy))
        row = mask[max(dy, 0) : mask.shape[0] + min(dy, 0)]
        wide = row.copy()
        for dx in range(1, min(half, mask.shape[1] - 1) + 1):
            wide[:, dx:] |= row[:, :-dx]
            wide[:, :-dx] |= row[:, dx:]
        grown[max(-dy, 0) : mask.shape[0] + min(-dy, 0)] |= wide
    return grown


def matches(truth: np.ndarray, prediction: np.ndarray, reach: float) -> np.ndarray:
    """(4,) int64 as COLUMNS, of two (h, w) masks."""
    true, predicted = boundary(truth), boundary(prediction)
    near_true, near_predicted = dilate(true, reach), dilate(predicted, reach)
    return np.array([(true & near_predicted).sum(), (predicted & near_true).sum(), true.sum(), predicted.sum()])
