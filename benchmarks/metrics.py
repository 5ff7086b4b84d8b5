"""Contour score and threshold sweep, each beside the plain way of doing it (`tests/metrics/plain_contour.py`, `tests/plain_sweep.py`).

    python benchmarks/metrics.py [--json FILE] [--quick] [--pairs 15] [--pictures 6] [--devkit VOCdevkit]

Pictures of 500 x 375 with one to three made objects and void rings, as VOC has them; with --devkit the masks of its train list instead.
Both ways see the same pictures, and must count the same before anything is timed. Times are ms a picture; a sweep is RIB's 30 thresholds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "metrics")]

import plain_contour  # noqa: E402
import plain_sweep  # noqa: E402
from _pairs import main, pair  # noqa: E402

from seedbed.metrics.contour import Contour  # noqa: E402
from seedbed.seeds import SeedConfig, SweepCounts  # noqa: E402
from seedbed.types import IGNORE  # noqa: E402

SHAPE, CLASSES = (375, 500), 20
GRID = SeedConfig().grid()


def made_masks(count: int) -> list[np.ndarray]:
    """Label maps of one to three ellipses, each of its own class and with a void ring of five pixels."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    masks = []
    for index in range(count):
        rng = np.random.default_rng([7, index])
        mask = np.zeros(SHAPE, np.uint8)
        for value in rng.choice(CLASSES, 1 + index % 3, replace=False) + 1:
            ry, rx = rng.uniform(40, 130), rng.uniform(40, 160)
            distance = np.hypot((y - rng.uniform(60, 315)) / ry, (x - rng.uniform(80, 420)) / rx)
            mask[distance < 1 + 5 / min(ry, rx)] = IGNORE
            mask[distance < 1] = value
        masks.append(mask)
    return masks


def real_masks(devkit: Path, count: int) -> list[np.ndarray]:
    from PIL import Image

    voc = devkit / "VOC2012"
    ids = (voc / "ImageSets/Segmentation/train.txt").read_text().split()
    chosen = [ids[i * len(ids) // count] for i in range(count)]
    return [np.array(Image.open(voc / "SegmentationClass" / f"{name}.png")) for name in chosen]


def predictions(masks: list[np.ndarray]) -> list[np.ndarray]:
    """The true objects some pixels off, without void."""
    moved = (np.roll(mask, (3 + i % 3, -4), (0, 1)) for i, mask in enumerate(masks))
    return [np.where(mask == IGNORE, 0, mask).astype(np.uint8) for mask in moved]


def maps(masks: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Smooth maps (n, h, w) of the classes in each mask, largest value 1, enlarged from stride 16 as a network's are; and the classes."""
    import torch
    from torch.nn.functional import interpolate

    out = []
    for index, mask in enumerate(masks):
        classes = np.unique(mask[(mask > 0) & (mask <= CLASSES)]).astype(np.int64) - 1
        rng = np.random.default_rng([8, index])
        coarse = np.stack([(mask[8::16, 8::16] == c + 1) * 0.6 + rng.uniform(0, 0.5, mask[8::16, 8::16].shape) for c in classes])
        fine = interpolate(torch.from_numpy(coarse)[None].float(), mask.shape, mode="bilinear")[0].numpy()
        out.append((fine / fine.max((1, 2), keepdims=True), classes))
    return out


def paired(work: str, ours: Callable[[], Any], reference: Callable[[], Any], pictures: int, repeats: int) -> dict[str, Any]:
    """A row in ms a picture."""
    row = pair(work, ours, reference, unit="ms", repeats=repeats, memory=True)
    return {**row, "ours": 1000 * row["ours"] / pictures, "reference": 1000 * row["reference"] / pictures}


def contour_row(masks: list[np.ndarray], repeats: int) -> dict[str, Any]:
    predicted = predictions(masks)

    def ours() -> np.ndarray:
        total = Contour(CLASSES)
        for truth, prediction in zip(masks, predicted, strict=True):
            total.add(truth, prediction)
        return total.counts

    def reference() -> np.ndarray:
        return sum(plain_contour.counts(truth, prediction, CLASSES) for truth, prediction in zip(masks, predicted, strict=True))

    np.testing.assert_array_equal(ours(), reference())
    return paired("contour F", ours, reference, len(masks), repeats)


def sweep_row(masks: list[np.ndarray], repeats: int) -> dict[str, Any]:
    cams = maps(masks)

    def ours() -> SweepCounts:
        total = SweepCounts(GRID, CLASSES)
        for truth, (cam, classes) in zip(masks, cams, strict=True):
            total.add(cam, classes, truth)
        return total

    def reference() -> np.ndarray:
        return sum(plain_sweep.confusions(cam, classes, truth, GRID, CLASSES) for truth, (cam, classes) in zip(masks, cams, strict=True))

    found = ours()
    np.testing.assert_array_equal([found.confusion(i).counts[:, :-1] for i in range(len(GRID))], reference())
    return paired("threshold sweep", ours, reference, len(masks), repeats)


def rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    count, repeats = (3, 3) if args.quick else (args.pictures, args.pairs)
    masks = real_masks(args.devkit, count) if args.devkit else made_masks(count)
    for name, row in (("contour F", contour_row), ("threshold sweep", sweep_row)):
        if args.only in name:
            yield row(masks, repeats)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", type=int, default=15, help="timed pairs (default 15)")
    parser.add_argument("--pictures", type=int, default=6, help="pictures in a pair (default 6)")
    parser.add_argument("--devkit", type=Path, help="take the masks of this VOCdevkit's train list")


if __name__ == "__main__":
    main(rows, options)
