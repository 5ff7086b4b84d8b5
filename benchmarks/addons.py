"""What ISL and FSL add to a training step: CAM and SEAM on ResNet-50 with both, beside the same step without.

One step is loss and gradients of a batch of real size for a CPU (4 crops of 224); ratio above 1 means that add-ons cost nothing,
0.91 that a step takes a tenth longer. Since steps scatter by more than that, rows named `alone` measure what is added by itself: the
add-ons' forward and backward pass down to the scores that the method hands over, with the method's whole step beside it; a ratio of 100
means that they add a hundredth.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
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


def alone(method: Any, model: torch.nn.Module, given: Batch, addons: list[Any]) -> Callable[[], None]:
    """What add-ons do of a step: from the method's terms and scores to the gradients by them."""

    def leaf(x: torch.Tensor | None) -> torch.Tensor | None:
        return None if x is None else x.detach().requires_grad_()

    made = method.loss(model, given, 0)
    scores = {name: leaf(getattr(made, name)) for name in ("logits_nchw", "background_n1hw", "pooled_nc")}
    handed = replace(made, losses={name: leaf(term) for name, term in made.losses.items()}, **scores)

    def run() -> None:
        out = handed
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
            label = f"{name}+{'+'.join(added)}"
            made, plain = [addon_class(a)() for a in added], step(method, model, given, [])
            repeats = 1 if args.quick else args.pairs
            if args.only in (work := f"{label} step, {backbone}"):
                yield pair(work, step(method, model, given, made), plain, repeats=repeats, memory=True)
            if args.only in (work := f"{label} alone, {backbone}"):
                yield pair(work, alone(method, model, given, made), plain, repeats=repeats)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", type=int, default=5, help="timed pairs (default 5)")
    parser.add_argument("--backbone", default="resnet50", help="network under the method (default resnet50)")


if __name__ == "__main__":
    main(rows, options)
