"""Region similarity J (mean intersection over union), precision, recall and F1, from one matrix of pixel counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

import numpy as np

from seedbed.types import IGNORE, UserError

Absent = Literal["skip", "zero", "truth"]
"""Classes that occur in neither truth nor prediction: left out (IRN, RIB), counted as 0 (SEAM, HFPL), or only the truth's classes count."""


class Confusion:
    """Pixel counts: rows are the true class 0..c, columns the predicted class 0..c and, last, "no class".

    A pixel whose truth is IGNORE is not counted. A predicted IGNORE, or any other value that is no class, is an error of its true class.
    """

    def __init__(self, num_classes: int, counts: np.ndarray | None = None) -> None:
        """num_classes without background; counts (c + 1, c + 2) int64, zero unless given."""
        shape = (num_classes + 1, num_classes + 2)
        if counts is not None and counts.shape != shape:
            raise ValueError(f"counts of {num_classes} classes have the shape {shape}, not {counts.shape}")
        self.num_classes = num_classes
        self.counts = np.zeros(shape, np.int64) if counts is None else counts.astype(np.int64)

    def add(self, truth: np.ndarray, prediction: np.ndarray, image_id: str = "") -> Self:
        """Count one picture: two (h, w) label maps. Another size or a true value that is no class raises UserError naming the picture."""
        check_pair(truth, prediction, image_id)
        (true, predicted), _, lengths = runs(truth, prediction)
        check_values(true, self.num_classes, image_id)
        keep = true != IGNORE
        columns = self.num_classes + 2
        column = np.where((predicted >= 0) & (predicted <= self.num_classes), predicted, self.num_classes + 1)
        code = true[keep].astype(np.int64) * columns + column[keep]
        self.counts += sum_by(code, lengths[keep], self.counts.size).reshape(self.counts.shape)
        return self

    def merge(self, other: Confusion) -> Self:
        """Add another's counts to these."""
        if other.num_classes != self.num_classes:
            raise ValueError(f"{other.num_classes} classes cannot be added to {self.num_classes}")
        self.counts += other.counts
        return self

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.num_classes, self.counts).merge(other)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Confusion) and np.array_equal(self.counts, other.counts)

    __hash__ = None  # type: ignore[assignment]

    @property
    def hits(self) -> np.ndarray:
        """(c + 1,) pixels of each class that were predicted as it."""
        return np.diagonal(self.counts).copy()

    @property
    def true(self) -> np.ndarray:
        """(c + 1,) pixels of each class."""
        return self.counts.sum(1)

    @property
    def predicted(self) -> np.ndarray:
        """(c + 1,) pixels predicted as each class."""
        return self.counts[:, :-1].sum(0)

    @property
    def union(self) -> np.ndarray:
        """(c + 1,) pixels of each class in truth or prediction."""
        return self.true + self.predicted - self.hits

    def counted(self, absent: Absent) -> np.ndarray:
        """(c + 1,) bool, the classes that enter every mean of a row, J's and F's alike."""
        return counted_classes(self.true, self.union, absent)

    def iou(self, absent: Absent = "skip") -> tuple[np.ndarray, float]:
        """Per class (c + 1,) with NaN where left out, and the mean over the others; in 0..1."""
        return _scored(self.hits, self.union, self.counted(absent))

    def precision(self) -> np.ndarray:
        """(c + 1,) hits over predicted pixels, NaN for a class that is never predicted."""
        return ratio(self.hits, self.predicted)

    def recall(self) -> np.ndarray:
        """(c + 1,) hits over true pixels, NaN for a class that never occurs."""
        return ratio(self.hits, self.true)

    def precision_recall_f1(self, absent: Absent = "skip") -> tuple[float, float, float]:
        """As RIB's Table 6: precision and recall averaged over the classes, F1 the harmonic mean of these two averages.

        The classes are those of `iou`; a counted class that is never predicted has precision 0 here, and one that never occurs recall 0.
        """
        counted = self.counted(absent)
        _, precision = _scored(self.hits, self.predicted, counted)
        _, recall = _scored(self.hits, self.true, counted)
        return precision, recall, harmonic_mean(precision, recall)

    def to_record(self) -> dict[str, np.ndarray]:
        """The cells that are not zero, for storage beside a picture."""
        true, predicted = np.nonzero(self.counts)
        return {
            "true": true.astype(np.int16),
            "predicted": predicted.astype(np.int16),
            "pixels": self.counts[true, predicted],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any], num_classes: int) -> Confusion:
        """The inverse of `to_record`; sequences of any kind are taken."""
        confusion = cls(num_classes)
        cells = np.asarray(record["true"], np.int64), np.asarray(record["predicted"], np.int64)
        np.add.at(confusion.counts, cells, np.asarray(record["pixels"], np.int64))
        return confusion


def jaccard(prediction: np.ndarray, truth: np.ndarray, void: np.ndarray | None = None) -> float:
    """Intersection over union of two (h, w) masks without the void pixels; 1 where both are empty (DAVIS)."""
    keep = np.ones(truth.shape, bool) if void is None else ~void
    union = int(((prediction | truth) & keep).sum())
    return int((prediction & truth & keep).sum()) / union if union else 1.0


def counted_classes(true: np.ndarray, union: np.ndarray, absent: Absent) -> np.ndarray:
    """Which classes a mean is taken over; true and union are pixel counts of equal shape (..., c + 1)."""
    if absent not in get_args(Absent):
        raise ValueError(f"absent is {absent!r}, not one of {get_args(Absent)}")
    if absent == "zero":
        return np.ones(union.shape, bool)
    return np.asarray((union if absent == "skip" else true) > 0)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Elementwise part / whole, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def harmonic_mean(a: float, b: float) -> float:
    """0 where both are 0; NaN stays NaN."""
    return 2 * a * b / (a + b) if a + b != 0 else 0.0


def mean_over(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the counted values; NaN where none is."""
    total = np.where(counted, values, 0.0).sum(-1)
    return ratio(total, counted.sum(-1))


def _scored(part: np.ndarray, whole: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, float]:
    values = np.where(counted, np.nan_to_num(ratio(part, whole)), np.nan)
    return values, float(mean_over(values, counted))


def check_pair(truth: np.ndarray, prediction: np.ndarray, image_id: str) -> None:
    """Two label maps of one picture: integers, (h, w), equal size."""
    for name, labels in (("truth", truth), ("prediction", prediction)):
        if not np.issubdtype(labels.dtype, np.integer):
            raise TypeError(f"{name} of {image_id or 'a picture'} holds {labels.dtype}, a label map holds integers")
    if truth.shape != prediction.shape or truth.ndim != 2:
        raise UserError(
            f"{image_id or 'a picture'}: the prediction is {_size(prediction)}, the mask is {_size(truth)}",
            field="mask",
            remedy="score predictions in their picture's size; if the mask itself has another size, prepare the store again",
        )


def check_values(true: np.ndarray, num_classes: int, image_id: str) -> None:
    """True values are 0..num_classes or IGNORE."""
    wrong = (true != IGNORE) & ((true < 0) | (true > num_classes))
    if wrong.any():
        raise UserError(
            f"{image_id or 'a picture'}: the mask holds {int(true[wrong][0])}, which is none of the {num_classes} classes nor {IGNORE}",
            field="mask",
            remedy="mend the mask (a PNG of class ids, not colors) or take the picture out of the split",
        )


def runs(*maps: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Run-length coding of (h, w) maps side by side: the values of each map in every run, where in the flat picture it starts, its length.

    No run goes over the end of its row. Label maps have few runs, so what is counted by runs is counted quickly.
    """
    flat, width = [m.ravel() for m in maps], maps[0].shape[1]
    changed = np.zeros(flat[0].size, bool)
    if width:
        changed[::width] = True
    for values in flat:
        changed[1:] |= values[1:] != values[:-1]
    starts = np.flatnonzero(changed)
    return [values[starts] for values in flat], starts, np.diff(starts, append=flat[0].size)


def sum_by(code: np.ndarray, amounts: np.ndarray, size: int) -> np.ndarray:
    """(size,) int64: the sum of the amounts of each code. Exact: float64 holds every count of pixels."""
    return np.bincount(code, weights=amounts, minlength=size).astype(np.int64)


def _size(labels: np.ndarray) -> str:
    return " x ".join(map(str, labels.shape[::-1]))
