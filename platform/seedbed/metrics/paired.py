"""How sure the difference of two methods is: both scored on the same pictures, the pictures drawn again and again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seedbed.metrics.contour import Contour, contour_f
from seedbed.metrics.region import Absent, Confusion, counted_classes, mean_over, ratio

Counts = tuple[Confusion, Contour]
"""What is counted on one picture."""


@dataclass(frozen=True)
class PairedDifference:
    """Second method minus first; everything in points (percent)."""

    metric: str
    difference: float
    """Of the scores of the whole set."""
    low: float
    high: float
    """Bootstrap interval of `difference` over the pictures (percentiles)."""
    level: float
    """Share of the interval, e.g. 0.95."""
    ids: tuple[str, ...]
    per_picture: np.ndarray
    """(n,) difference of each picture scored alone, over the classes of its truth; NaN where it has no labeled pixel."""

    @property
    def better(self) -> int:
        """Pictures on which the second method scores higher."""
        return int((self.per_picture > 0).sum())

    @property
    def worse(self) -> int:
        """Pictures on which the second method scores lower."""
        return int((self.per_picture < 0).sum())

    def to_record(self) -> dict[str, float]:
        """As scores.json has it."""
        return {
            "difference": self.difference, "low": self.low, "high": self.high, "level": self.level,
            "pictures": len(self.ids), "better": self.better, "worse": self.worse,
        }  # fmt: skip


def paired_over_seeds(
    runs: Sequence[tuple[Mapping[str, Counts], Mapping[str, Counts]]],
    *,
    absent: Absent,
    metrics: Sequence[str] = ("mIoU",),
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, PairedDifference]:
    """Metric -> the mean over random seeds of the difference of two methods, each run being (first, second): counts by id of the picture.

    metrics: of mIoU, F, J_and_F; all have the same resamples, whose counts are added up once.

    Pictures that not all have (one set them aside) are left out. A set score is no mean over pictures, so each resample adds up the counts
    of its pictures, the same in all runs and for both methods, and scores them.
    The interval says how much the pictures matter, not the seeds: those stand beside as a standard deviation.
    """
    ids = sorted(set.intersection(*(set(by_id) for run in runs for by_id in run)) if runs else ())
    if not ids:
        raise ValueError("the two methods have no picture in common")
    sides = [[_stack([by_id[i] for i in ids]) for by_id in run] for run in runs]
    classes = runs[0][0][ids[0]][0].num_classes

    def differences(weights: np.ndarray | None, rule: Absent) -> np.ndarray:
        """(metrics, b) points; b resamples of the weights, or without any the pictures one by one."""
        found = []
        for run in sides:
            a, b = (_scores(side if weights is None else weights @ side, classes, rule) for side in run)
            found.append([100 * (b[metric] - a[metric]) for metric in metrics])
        return np.asarray(found[0] if len(found) == 1 else np.mean(found, axis=0))

    rng = np.random.default_rng(seed)
    blocks: list[np.ndarray] = []
    for begin in range(0, resamples, 100):  # 1,000 resamples of 10,000 pictures at once would take 80 MB
        size = min(100, resamples - begin)
        blocks.append(differences(rng.multinomial(len(ids), np.full(len(ids), 1 / len(ids)), size=size).astype(np.float64), absent))
    tail = 50 * (1 - level)
    lows, highs = np.nanpercentile(np.concatenate(blocks, axis=1), [tail, 100 - tail], axis=1)
    whole = differences(np.ones((1, len(ids))), absent)[:, 0]
    single = differences(None, "truth")
    return {
        metric: PairedDifference(metric, float(whole[i]), float(lows[i]), float(highs[i]), level, tuple(ids), single[i])
        for i, metric in enumerate(metrics)
    }


def counts_by_picture(folder: Path, classes: int, tolerance: float) -> dict[str, Counts]:
    """Id -> what an artefact with `confusion` and `contour` counted on the picture; those without a mask are left out."""
    from seedbed.artefacts import Fragments
    from seedbed.artefacts.records import unpack

    found: dict[str, Counts] = {}
    for ident, confusion, contours in Fragments(folder).columns("id", "confusion", "contour"):
        if confusion is not None:
            region = Confusion.from_record(unpack(confusion), classes)
            found[ident] = region, Contour.from_record(unpack(contours), classes, tolerance)
    return found


def _stack(counts: list[Counts]) -> np.ndarray:
    """(n, 7 c + 3) float64: per picture hits, true and predicted pixels of every class, then the contour counts."""
    return np.stack([np.concatenate([j.hits, j.true, j.predicted, f.counts.ravel()]).astype(np.float64) for j, f in counts])


def _scores(sums: np.ndarray, classes: int, absent: Absent) -> dict[str, np.ndarray]:
    """Metric -> (b,) set scores of (b, 7 c + 3) sums, in 0..1; NaN where nothing counts."""
    hits, true, predicted = sums[:, : 3 * (classes + 1)].reshape(-1, 3, classes + 1).swapaxes(0, 1)
    union = true + predicted - hits
    counted = counted_classes(true, union, absent)
    j = mean_over(np.nan_to_num(ratio(hits, union)), counted)
    f = mean_over(contour_f(sums[:, 3 * (classes + 1) :].reshape(-1, classes, 4)), counted[:, 1:])
    return {"mIoU": j, "F": f, "J_and_F": (j + f) / 2}
