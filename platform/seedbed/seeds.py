"""From localisation maps to seeds: label maps at a threshold, the whole grid of thresholds in one pass, and which threshold is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np

from seedbed.config import Settings, bounded, setting
from seedbed.metrics.region import Absent, Confusion, check_pair, check_values, counted_classes, mean_over, ratio
from seedbed.types import IGNORE, UserError

Source = Literal["oracle", "fixed", "held-out"]


@dataclass(frozen=True)
class SeedConfig(Settings):
    """How maps become seeds, and what is counted. Defaults: RIB's `step/eval_cam.py`."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "rib": {"threshold_source": "oracle", "threshold": 0.15, "low": 0.20, "high": 0.49, "step": 0.01},
        "rib-coco": {"threshold_source": "oracle", "threshold": 0.15, "low": 0.10, "high": 0.50, "step": 0.01},
        "seam": {"threshold_source": "oracle", "threshold": 0.15, "low": 0.0, "high": 0.59, "step": 0.01},
        "irn": {"threshold_source": "fixed", "threshold": 0.15, "low": 0.20, "high": 0.49, "step": 0.01},
    }

    preset: Literal["rib", "rib-coco", "seam", "irn"] = setting("rib", key=False)
    """Grid and source of the threshold: RIB on VOC (0.20 to 0.49) or COCO (0.10 to 0.50), SEAM and HFPL (0 to 0.59), IRN (fixed 0.15)."""
    threshold_source: Source = "oracle"
    """oracle: best on the scored split against its masks, as the papers print seeds; held-out: best on another split; fixed: as given."""
    threshold: float = bounded(0.15, 0.0, 1.0)
    """Background score of a fixed threshold, in units of the normalized map (IRN: 0.15). Used with threshold-source fixed alone."""
    low: float = bounded(0.20, 0.0, 1.0)
    """Lowest threshold of the grid (RIB: 0.20, SEAM: 0)."""
    high: float = bounded(0.49, 0.0, 1.0)
    """Highest threshold of the grid (RIB: 0.49, SEAM: 0.59)."""
    step: float = bounded(0.01, 0.001, 1.0)
    """Distance of two thresholds of the grid (RIB and SEAM: 0.01)."""
    held_out_split: str = setting("")
    """Split whose masks choose the threshold when its source is held-out; must be another than the scored one."""
    absent_classes: Literal["auto", "skip", "zero", "truth"] = "auto"
    """Classes in neither truth nor prediction: skip (IRN, RIB), zero (SEAM, HFPL: IoU 0, F 1), truth (only classes in the truth count);
    auto: truth on a subset of a dataset, else skip."""
    tolerance: float = bounded(0.008, 0.0, open_low=True)
    """How far apart two contours may lie: a share of the picture's diagonal (DAVIS, HFPL: 0.008), or pixels from 1 on."""

    def check_together(self, prefix: str) -> None:
        flag = f"--{prefix}".replace("_", "-")
        if self.low > self.high:
            raise UserError(
                f"{flag}low is {self.low}, above {flag}high, {self.high}", field=f"{flag}low", remedy="give a grid that ascends"
            )
        if self.threshold_source == "held-out" and not self.held_out_split:
            raise UserError(
                f"{flag}threshold-source is held-out, but no split is named",
                field=f"{flag}held-out-split",
                remedy=f"name a split with masks that is not scored, e.g. {flag}held-out-split val",
            )

    def grid(self) -> np.ndarray:
        """(t,) float64, the thresholds of the grid, ascending, both ends included; exact decimals."""
        return np.round(self.low + self.step * np.arange(int((self.high - self.low) / self.step + 1e-6) + 1), 9)

    def absent(self, subset: bool) -> Absent:
        """The rule for absent classes on a whole dataset or a subset of one."""
        if self.absent_classes == "auto":
            return "truth" if subset else "skip"
        return self.absent_classes


def strongest(cam_nhw: np.ndarray, image_id: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Per pixel the highest score (h, w) and the row of the map that has it, (h, w) uint8; of equal ones the first.

    Without any map the score is -inf. A map that is not finite raises UserError naming the picture.
    """
    if not len(cam_nhw):
        return np.full(cam_nhw.shape[1:], -np.inf, cam_nhw.dtype), np.zeros(cam_nhw.shape[1:], np.uint8)
    score, winner = cam_nhw[0].copy(), np.zeros(cam_nhw.shape[1:], np.uint8)
    for row in range(1, len(cam_nhw)):
        winner[cam_nhw[row] > score] = row
        np.maximum(score, cam_nhw[row], out=score)
    if score.size and not np.isfinite(score.max()):
        raise UserError(
            f"the map of {image_id or 'a picture'} is not finite",
            field="maps",
            remedy="look for a classifier that diverged; lower its learning rate",
        )
    return score, winner


def label_map(cam_nhw: np.ndarray, classes: np.ndarray, threshold: float, image_id: str = "") -> np.ndarray:
    """Seed (h, w) uint8: argmax over a constant background score and the normalized maps (n, h, w) of the labelled classes (n,).

    Background wins a tie, of equal classes the first. The threshold is rounded to the maps' precision, as the official codes do by
    writing it into the maps' array.
    """
    score, winner = strongest(cam_nhw, image_id)
    if not len(cam_nhw):
        return np.zeros(score.shape, np.uint8)
    values = np.asarray(classes, np.uint8) + np.uint8(1)
    return np.where(score > cam_nhw.dtype.type(threshold), values[winner], np.uint8(0))


class SweepCounts:
    """Pixel counts of every threshold of a grid, from one look at each map.

    Whatever the threshold, a pixel is background or the class of its highest score, so a pixel is told by three numbers: true class,
    strongest class, and how many thresholds lie below its score. Counts are (c + 1, c, t + 1) int64 over these three.
    """

    def __init__(self, thresholds: np.ndarray, num_classes: int, counts: np.ndarray | None = None) -> None:
        """thresholds (t,) strictly ascending; num_classes without background."""
        self.thresholds = np.asarray(thresholds, np.float64)
        if self.thresholds.ndim != 1 or not len(self.thresholds) or not (np.diff(self.thresholds) > 0).all():
            raise ValueError("thresholds are one or more numbers in strictly ascending order")
        self.num_classes = num_classes
        shape = (num_classes + 1, num_classes, len(self.thresholds) + 1)
        if counts is not None and counts.shape != shape:
            raise ValueError(f"counts have the shape {shape}, not {counts.shape}")
        self.counts = np.zeros(shape, np.int64) if counts is None else counts.astype(np.int64)

    def add(self, cam_nhw: np.ndarray, classes: np.ndarray, truth: np.ndarray, image_id: str = "") -> Self:
        """Count one picture: normalized maps (n, h, w) of the labelled classes (n,) at full size, truth (h, w). Errors as in Confusion."""
        score, winner = strongest(cam_nhw, image_id)
        check_pair(truth, winner, image_id)
        if truth.dtype != np.uint8:
            check_values(truth, self.num_classes, image_id)
        levels = self.thresholds.astype(cam_nhw.dtype)
        below = np.zeros(score.shape, np.uint8 if len(levels) < 256 else np.uint16)
        for level in levels:
            below += score > level
        rows, bins = max(len(cam_nhw), 1), len(levels) + 1
        code = (truth.astype(np.int32) * rows + winner) * bins + below
        found = np.bincount(code.ravel(), minlength=(IGNORE + 1) * rows * bins).reshape(-1, rows, bins)
        check_values(np.flatnonzero(found.any((1, 2))), self.num_classes, image_id)
        self.counts[:, np.asarray(classes if len(cam_nhw) else [0], np.int64)] += found[: self.num_classes + 1]
        return self

    def merge(self, other: SweepCounts) -> Self:
        """Add another's counts to these."""
        if other.num_classes != self.num_classes or not np.array_equal(other.thresholds, self.thresholds):
            raise ValueError("counts of other classes or thresholds cannot be added")
        self.counts += other.counts
        return self

    def __add__(self, other: SweepCounts) -> SweepCounts:
        return SweepCounts(self.thresholds, self.num_classes, self.counts).merge(other)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, SweepCounts)
            and np.array_equal(self.thresholds, other.thresholds)
            and np.array_equal(self.counts, other.counts)
        )

    __hash__ = None  # type: ignore[assignment]

    def confusion(self, index: int) -> Confusion:
        """The confusion matrix of the threshold at this place of the grid."""
        objects = self.counts[..., index % len(self.thresholds) + 1 :].sum(2)
        background = self.counts.sum((1, 2)) - objects.sum(1)
        nothing = np.zeros_like(background)
        return Confusion(self.num_classes, np.column_stack([background, objects, nothing]))

    def ious(self, absent: Absent) -> tuple[np.ndarray, np.ndarray]:
        """Per threshold and class (t, c + 1), NaN where left out, and the means (t,); in 0..1."""
        objects = np.cumsum(self.counts[..., :0:-1], axis=2)[..., ::-1].transpose(2, 0, 1)  # (t, true, strongest)
        true = self.counts.sum((1, 2))
        background = true - objects.sum(2)
        predicted = np.concatenate([background.sum(1)[:, None], objects.sum(1)], axis=1)
        hits = np.concatenate([background[:, :1], np.diagonal(objects[:, 1:], axis1=1, axis2=2)], axis=1)
        union = true + predicted - hits
        counted = counted_classes(np.broadcast_to(true, union.shape), union, absent)
        values = np.where(counted, np.nan_to_num(ratio(hits, union)), np.nan)
        return values, mean_over(values, counted)

    def best(self, absent: Absent) -> BestThreshold:
        """The threshold of the highest mean IoU, the lowest of equal ones; an empty count raises UserError."""
        means = self.ious(absent)[1]
        if not self.counts.any() or np.isnan(means).all():
            raise UserError(
                "no labeled pixel to choose a threshold by",
                field="threshold",
                remedy="score a split whose pictures have masks, or fix the threshold",
            )
        index = int(np.nanargmax(means))
        edge = len(means) > 1 and index in (0, len(means) - 1)
        return BestThreshold(float(self.thresholds[index]), index, float(means[index]), edge)

    def to_record(self) -> dict[str, np.ndarray]:
        """The cells that are not zero, for storage beside a picture. The thresholds are the stage's setting and not repeated."""
        true, strongest_class, below = np.nonzero(self.counts)
        return {
            "true": true.astype(np.int16),
            "strongest": strongest_class.astype(np.int16),
            "below": below.astype(np.int16),
            "pixels": self.counts[true, strongest_class, below],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any], thresholds: np.ndarray, num_classes: int) -> SweepCounts:
        """The inverse of `to_record`; sequences of any kind are taken."""
        counts = cls(thresholds, num_classes)
        cells = tuple(np.asarray(record[name], np.int64) for name in ("true", "strongest", "below"))
        np.add.at(counts.counts, cells, np.asarray(record["pixels"], np.int64))
        return counts


def sweep(
    cam_nhw: np.ndarray, classes: np.ndarray, truth: np.ndarray, thresholds: np.ndarray, num_classes: int, image_id: str = ""
) -> SweepCounts:
    """The counts of one picture at every threshold."""
    return SweepCounts(thresholds, num_classes).add(cam_nhw, classes, truth, image_id)


@dataclass(frozen=True)
class BestThreshold:
    """Where a curve over thresholds is highest."""

    value: float
    index: int
    """Its place in the grid."""
    mean_iou: float
    """In 0..1."""
    edge: bool
    """At the grid's first or last value: the true best may lie outside."""

    def warning(self, what: str) -> str | None:
        """One sentence for terminal and report, or None."""
        if not self.edge:
            return None
        return f"{what}: the best threshold, {self.value:g}, lies at the edge of the grid; a wider grid may hold a better one"


@dataclass(frozen=True)
class Threshold:
    """The threshold that a row was scored at, and where it came from."""

    value: float
    source: Source
    split: str | None = None
    """The split whose masks chose it; None where it was fixed."""
    edge: bool = False

    def to_record(self) -> dict[str, Any]:
        record: dict[str, Any] = {"value": self.value, "source": self.source}
        return record if self.split is None else {**record, "split": self.split, "edge": self.edge}


def choose_threshold(
    settings: SeedConfig, absent: Absent, split: str, scored: SweepCounts | None, held_out: SweepCounts | None = None
) -> Threshold:
    """The threshold of a row of this split. `scored` are the counts on the split itself (oracle), `held_out` those on the other one."""
    if settings.threshold_source == "fixed":
        return Threshold(settings.threshold, "fixed")
    if settings.threshold_source == "held-out":
        if settings.held_out_split == split:
            raise UserError(
                f"the threshold of {split} would be chosen on {split} itself",
                field="--scoring.held-out-split",
                remedy="name another split, or say --scoring.threshold-source oracle",
            )
        counts, chosen_on = held_out, settings.held_out_split
    else:
        counts, chosen_on = scored, split
    if counts is None:
        raise ValueError(f"no counts of {chosen_on} were given")
    best = counts.best(absent)
    return Threshold(best.value, settings.threshold_source, chosen_on, best.edge)


def whole_picture(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A row without a network: every pixel is the picture's class. labels (c,) 0/1; of several classes the one of the lowest index wins.

    A picture without a class is background.
    """
    return np.full(shape, _first_class(labels), np.uint8)


def centred_box(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A row without a network: a box in the middle, half of the area, of the picture's own proportions; its class as in `whole_picture`."""
    seed = np.zeros(shape, np.uint8)
    height, width = (round(side * 0.5**0.5) for side in shape)
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    seed[top : top + height, left : left + width] = _first_class(labels)
    return seed


def _first_class(labels: np.ndarray) -> int:
    present = np.flatnonzero(np.asarray(labels) > 0)
    return int(present[0]) + 1 if len(present) else 0
