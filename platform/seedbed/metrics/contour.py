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

_Box = tuple[int, tuple[slice, slice]]

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
        (true, predicted), starts, lengths = runs(truth, prediction)
        check_values(true, self.num_classes, image_id)
        reach = radius(self.tolerance, truth.shape)
        row, first = np.divmod(starts, max(truth.shape[1], 1))
        for value, box in _boxes(true, predicted, row, first, first + lengths - 1, self.num_classes):
            self.counts[value - 1] += matches(truth[box] == value, prediction[box] == value, reach)
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
    return float(contour_f(np.array(matches(truth, prediction, radius(tolerance, truth.shape)))))


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


def matches(truth: np.ndarray, prediction: np.ndarray, reach: float) -> tuple[int, int, int, int]:
    """As COLUMNS, of two (h, w) bool masks: a boundary pixel matches if the other mask has one within Euclidean distance `reach`."""
    margin = min(math.ceil(reach), truth.shape[1])
    true, stride = pack(boundary(truth), margin)
    predicted, _ = pack(boundary(prediction), margin)
    if not true or not predicted:
        return 0, 0, true.bit_count(), predicted.bit_count()
    near_true, near_predicted = (grow(bits, reach, stride, truth.shape) for bits in (true, predicted))
    return (true & near_predicted).bit_count(), (predicted & near_true).bit_count(), true.bit_count(), predicted.bit_count()


def pack(mask: np.ndarray, margin: int) -> tuple[int, int]:
    """A (h, w) bool mask as one integer, a bit a pixel and the last pixel the lowest, and the bits of a row, its empty margin included.

    Of all ways to move a mask about, shifting an integer is the quickest by far; the margin keeps what leaves a row out of the next one.
    """
    height, width = mask.shape
    stride = -(-(width + margin) // 8) * 8
    rows = np.zeros((height, stride), bool)
    rows[:, :width] = mask
    return int.from_bytes(np.packbits(rows).tobytes(), "big"), stride


def grow(bits: int, reach: float, stride: int, shape: tuple[int, ...]) -> int:
    """A packed mask dilated by a disk: bits within Euclidean distance `reach`, and rubbish in the margins and beyond the last row.

    A disk is a stack of rows: from its pole to its middle the mask is widened and laid over itself, that many rows up and down.
    """
    wide, half, grown = bits, 0, 0
    for dy in range(min(int(reach), shape[0] - 1), -1, -1):
        while half < min(int(math.sqrt(reach * reach - dy * dy)), shape[1] - 1):
            half += 1
            wide |= (bits << half) | (bits >> half)
        grown |= (wide << dy * stride) | (wide >> dy * stride)
    return grown


def _boxes(true: np.ndarray, predicted: np.ndarray, row: np.ndarray, first: np.ndarray, last: np.ndarray, num_classes: int) -> list[_Box]:
    """Class value and the smallest part of the picture that holds every pixel of it, in truth or prediction, and its boundary.

    All from the runs of the two maps: their values, row, first and last column. One pixel more on each side: a boundary pixel lies up to
    one to the upper left of its mask, and the mask ends below and right only where that can be seen.
    """
    values = np.concatenate([true, predicted])
    present = np.flatnonzero(np.bincount(values[(values >= 1) & (values <= num_classes)]))
    found = []
    for value in map(int, present):
        mine = np.flatnonzero((true == value) | (predicted == value))
        top, bottom = int(row[mine[0]]), int(row[mine[-1]])
        left, right = int(first[mine].min()), int(last[mine].max())
        found.append((value, (slice(max(top - 1, 0), bottom + 2), slice(max(left - 1, 0), right + 2))))
    return found
