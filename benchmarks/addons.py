"""What ISL and FSL add to a training step: CAM and SEAM on ResNet-50 with both, beside the same step without.

One step is loss and gradients of a batch of real size for a CPU (4 crops of 224); ratio above 1 means that add-ons cost nothing,
0.91 that a step takes a tenth longer.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
from _pairs import main, pair

from seedbed.addons import ADDONS, addon_class
from seedbed.methods import build_for, method_class
from seedbed.types import Batch

CLASSES = 20


def batch(side: int, count: int) -> Batch:
    draw = torch.Generator().manual_seed(0)
    images = torch.nn.functional.interpolate(torch.randn(count, 3, side // 16, side // 16, generator=draw), (side, side), mode="bicubic")
    labels = torch.zeros(count, CLASSES)
    for row in range(count):
        labels[row, torch.randperm(CLASSES, generator=draw)[: 1 + row % 2]] = 1
    return Batch(images, labels, tuple(f"made-{i}" for i in range(count)))


def step(method: Any, model: torch.nn.Module, given: Batch, addons: list[Any]) -> Callable[[], None]:
    def run() -> None:
        model.zero_grad(set_to_none=True)
        out = method.loss(model, given, 0)
        for addon in addons:
            out = addon(out, given, 0, 0)
        torch.stack(list(out.losses.values())).sum().backward()

    return run


def rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    backbone, side, count = ("small", 64, 2) if args.quick else (args.backbone, 224, 4)
    given = batch(side, count)
    for name in ("cam", "seam"):
        method = method_class(name)()
        torch.manual_seed(0)
        model: Any = build_for(name, backbone, CLASSES)
        model.freeze_statistics(True).train()
        for added in (("isl",), ("fsl",), tuple(ADDONS)):
            work = f"{name}+{'+'.join(added)} step, {backbone}"
            if args.only in work:
                made = [addon_class(a)() for a in added]
                plain, changed = step(method, model, given, []), step(method, model, given, made)
                yield pair(work, changed, plain, repeats=1 if args.quick else args.pairs, memory=True)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", type=int, default=5, help="timed pairs (default 5)")
    parser.add_argument("--backbone", default="resnet50", help="network under the method (default resnet50)")


if __name__ == "__main__":
    main(rows, options)
