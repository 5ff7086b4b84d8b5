"""Gradients of a batch's parts, taken one after the other and added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def accumulated(part_loss: Callable[[int], Tensor], count: int, parameters: Sequence[Tensor]) -> Tensor:
    """The mean of `count` losses, whose gradients are taken one after the other: one graph in memory at a time."""
    return _Accumulated.apply(part_loss, count, parameters, *parameters)


class _Accumulated(torch.autograd.Function):
    """Gradients are made in the forward pass and handed over in the backward pass, where workers average them as any others."""

    @staticmethod
    def forward(ctx: Any, part_loss: Callable[[int], Tensor], count: int, parameters: Sequence[Tensor], *_: Tensor) -> Tensor:
        total = torch.zeros(())
        gradients: list[Tensor | None] = []
        for number in range(count):
            with torch.enable_grad():
                loss = part_loss(number) / count
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
            total = total.to(loss.device) + loss.detach()
            gradients = list(found) if not gradients else [_added(a, b) for a, b in zip(gradients, found, strict=True)]
        ctx.gradients = gradients
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return None, None, None, *(None if g is None else g * gradient for g in ctx.gradients)


def _added(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else other
    return one.add_(other)
