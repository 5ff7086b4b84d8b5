from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from seedbed.metrics.contour import Contour
from seedbed.metrics.paired import Counts, PairedDifference, paired_over_seeds
from seedbed.metrics.region import Confusion


def of_miou(runs: list[tuple[dict[str, Counts], dict[str, Counts]]], **how: Any) -> PairedDifference:
    return paired_over_seeds(runs, **how)["mIoU"]


def pictures(shift: int, count: int = 12) -> dict[str, Counts]:
    """Squares of two classes, predicted `shift` pixels off; every third picture exactly."""
    out = {}
    for i in range(count):
        truth = np.zeros((30, 40), np.uint8)
        truth[8:20, 8 + i : 20 + i] = 1 + i % 2
        prediction = np.roll(truth, 0 if i % 3 == 0 else shift, 1)
        out[f"p{i:02d}"] = (Confusion(2).add(truth, prediction), Contour(2, 1).add(truth, prediction))
    return out


def set_scores(counts: dict[str, Counts]) -> dict[str, float]:
    region, contour = Confusion(2), Contour(2, 1)
    for j, f in counts.values():
        region, contour = region + j, contour + f
    j, f = region.iou("truth")[1], contour.f(region.counted("truth")[1:])[1]
    return {"mIoU": 100 * j, "F": 100 * f, "J_and_F": 50 * (j + f)}


@pytest.mark.parametrize("metric", ["mIoU", "F", "J_and_F"])
def test_the_difference_is_that_of_the_set_scores(metric: str) -> None:
    worse, better = pictures(5), pictures(2)
    found = paired_over_seeds([(worse, better)], absent="truth", metrics=(metric,), resamples=200)[metric]
    assert found.difference == pytest.approx(set_scores(better)[metric] - set_scores(worse)[metric])
    assert 0 < found.low < found.difference < found.high
    assert found.ids == tuple(sorted(worse)) and (found.better, found.worse) == (8, 0) and found.per_picture[0] == 0.0
    alone = {"p01": better["p01"]}, {"p01": worse["p01"]}
    assert found.per_picture[1] == pytest.approx(set_scores(alone[0])[metric] - set_scores(alone[1])[metric])


def test_turned_around_it_changes_its_sign() -> None:
    a, b = pictures(5), pictures(2)
    there, back = (of_miou([(x, y)], absent="truth", resamples=150, seed=3) for x, y in ((a, b), (b, a)))
    assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low))
    again = of_miou([(a, b)], absent="truth", resamples=150, seed=3)
    assert (again.low, again.high) == (there.low, there.high)


def test_equal_methods_differ_by_nothing() -> None:
    found = of_miou([(pictures(3), pictures(3))], absent="skip", resamples=50)
    assert (found.difference, found.low, found.high, found.better, found.worse) == (0, 0, 0, 0, 0)


def test_a_wider_interval_holds_the_narrower() -> None:
    a, b = pictures(5), pictures(2)
    wide, narrow = (of_miou([(a, b)], absent="truth", resamples=300, level=level) for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_pictures_of_one_method_alone_are_left_out() -> None:
    a, b = pictures(5), pictures(2)
    del b["p03"]
    found = of_miou([(a, b)], absent="truth", resamples=20)
    assert "p03" not in found.ids and len(found.ids) == 11
    with pytest.raises(ValueError, match="in common"):
        of_miou([(a, {})], absent="truth")


def test_a_picture_without_a_labeled_pixel_is_no_difference() -> None:
    a, b = pictures(5, 4), pictures(2, 4)
    a["void"] = b["void"] = (Confusion(2), Contour(2, 1))
    found = of_miou([(a, b)], absent="truth", resamples=20)
    assert np.isnan(found.per_picture[-1]) and np.isfinite(found.difference)


def test_over_several_seeds_it_is_the_mean() -> None:
    """The interval of two equal runs is that of one; of a run and its mirror image the difference is nothing, for certain."""
    a, b = pictures(5), pictures(2)
    once, twice = (of_miou([(a, b)] * n, absent="truth", resamples=200) for n in (1, 2))
    assert (once.difference, once.low, once.high) == pytest.approx((twice.difference, twice.low, twice.high))
    nothing = of_miou([(a, b), (b, a)], absent="truth", resamples=50)
    assert (nothing.difference, nothing.low, nothing.high) == pytest.approx((0, 0, 0))
    record = once.to_record()
    assert record["pictures"] == 12 and record["better"] == 8 and record["low"] < record["difference"] < record["high"]
    with pytest.raises(ValueError, match="common"):
        of_miou([], absent="truth")


def test_all_metrics_have_the_same_resamples() -> None:
    """Each metric's interval is the one that it has alone."""
    runs = [(pictures(5), pictures(2))]
    together = paired_over_seeds(runs, absent="truth", metrics=("mIoU", "F", "J_and_F"), resamples=120, seed=4)
    for metric, found in together.items():
        alone = paired_over_seeds(runs, absent="truth", metrics=(metric,), resamples=120, seed=4)[metric]
        assert found.to_record() == alone.to_record() and found.metric == metric
    assert len({found.low for found in together.values()}) == 3
    middle = (together["mIoU"].difference + together["F"].difference) / 2
    assert together["J_and_F"].difference == pytest.approx(middle)
