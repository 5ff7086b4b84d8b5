"""RIB per picture, beside the plain loop in the official order of work (tests/methods/plain_rib.py), at 160 and 500 px.

Same network (ResNet-50), picture, companions and settings for both; every run does all K steps, and both must give the same maps.
On one thread a pair at 160 px takes about a minute, at 500 px a quarter of an hour: `--only "160"`, `--steps`, `--batch`, `--pairs`.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "methods"))

import numpy as np
import torch
import torch.nn.functional as F
from _pairs import main, pair
from formula import formula_state
from plain_rib import plain_rib
from torch import Tensor

from seedbed.methods.maps import CamConfig, Precision, high_res, make_maps
from seedbed.methods.rib import Rib, RibConfig
from seedbed.models.resnet import ResNet
from seedbed.types import Maps, Views

SCALES = CamConfig().scales


def picture(rng: np.random.Generator, height: int, width: int) -> Tensor:
    """Smooth colours with some grain, normalised: (3, h, w)."""
    coarse = torch.from_numpy(rng.standard_normal((1, 3, 7, 9)).astype(np.float32))
    smooth = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)[0]
    return smooth + 0.2 * torch.from_numpy(rng.standard_normal((3, height, width)).astype(np.float32))


def problem(long_side: int, batch: int) -> tuple[Views, np.ndarray, tuple[Tensor, Tensor]]:
    """A picture of 4 : 3 with two classes, and companions with others, cropped as in training (a third of a crop is zeros)."""
    rng = np.random.default_rng(0)
    height, width = long_side * 3 // 4, long_side
    tensors = []
    for scale in SCALES:
        view = picture(np.random.default_rng(1), round(height * scale), round(width * scale))
        tensors.append(torch.stack([view, view.flip(-1)]))
    labels = np.zeros(20, np.float32)
    labels[[7, 17]] = 1
    crop = round(512 * long_side / 500)
    images, others = torch.zeros(batch, 3, crop, crop), torch.zeros(batch, 20)
    for i in range(batch):
        h, w = int(rng.uniform(0.5, 1) * crop), crop
        images[i, :, :h, :w] = picture(rng, h, w)
        others[i, rng.choice([c for c in range(20) if not labels[c]], rng.integers(1, 4), replace=False)] = 1
    return Views("made", height, width, SCALES, tensors), labels, (images, others)


def row(name: str, long_side: int, precision: Precision, model: ResNet, args: argparse.Namespace) -> dict[str, Any]:
    steps, batch = args.steps or (3 if args.quick else 10), args.batch or (4 if args.quick else 20)
    views, labels, companions = problem(long_side, batch)
    rate = args.lr
    settings = RibConfig(steps=steps, batch=batch, lr=rate, margin=1e9, area_guard=False, precision=precision)
    results: dict[str, Maps] = {}

    def ours() -> None:
        results["ours"] = Rib(settings).localise(model, views, labels, itertools.repeat(companions))

    def plain() -> None:
        done = plain_rib(
            model,
            list(views.tensors),
            SCALES,
            torch.from_numpy(labels),
            itertools.repeat(companions),
            steps=steps,
            lr=rate,
            margin=1e9,
            share=1.0,
        )
        classes = np.flatnonzero(labels)
        results["plain"] = make_maps(views, classes, [s[classes] for s in done.sums])
        results["first"] = make_maps(views, classes, [s[classes] for s in done.first])

    figures = pair(name, ours, plain, repeats=args.pairs or (1 if long_side > 300 or args.quick else 3), warm=long_side < 300, memory=True)
    mine, theirs, start = (high_res(results[k]) for k in ("ours", "plain", "first"))
    figures["maps_differ"] = float(np.abs(mine - theirs).max())
    figures["maps_moved"] = float(np.abs(theirs - start).mean())
    limit = 1e-4 if precision == "fp32" else 1e-3
    if figures["maps_differ"] > limit:
        raise SystemExit(f"{name}: the maps differ by {figures['maps_differ']:.1e}, more than {limit:g}")
    print(f"    maps differ by {figures['maps_differ']:.1e} (RIB moved them by {figures['maps_moved']:.3f}); MB {figures['memory_mb']}")
    return figures


def rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    model = ResNet(50, 20)
    model.load_state_dict(formula_state(model, 1), strict=False)
    model.eval()
    for long_side, precision in ((160, "fp32"), (500, "fp32"), (500, "mixed")):
        name = f"rib {long_side} px {precision}"
        if args.only in name:
            yield row(name, long_side, precision, model, args)  # type: ignore[arg-type]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=0, help="K (default 10, with --quick 3)")
    parser.add_argument("--batch", type=int, default=0, help="B (default 20, with --quick 4)")
    parser.add_argument("--pairs", type=int, default=0, help="how many pairs (default 3, at 500 px 1)")
    parser.add_argument(
        "--lr", type=float, default=6e-7, help="lambda; for these made weights the default moves the maps as 8e-6 does real ones"
    )


if __name__ == "__main__":
    main(rows, options)
