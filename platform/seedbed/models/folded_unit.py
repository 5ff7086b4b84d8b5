"""A convolution with its batch norm folded in, as one differentiable step, and the forms in which it takes maps.

A map (n, c, h, w) with channels last is, without a copy, its positions as rows (positions, c). Maps of several sizes share a step as the
rows of all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seedbed.models import winograd


class FoldedUnit(torch.autograd.Function):
    """Convolution, shift, shortcut and rectification in one: a pass keeps for the way back only what goes in and what comes out.

    With channels last a 1x1 convolution is one matrix product, which a CPU does faster than its convolutions, backward above all.
    `kernel` gives the transformed kernel of a 3x3 convolution that is worth `models/winograd.py`; `sizes`: of the maps in x.
    Gradients of kernels are not returned but added up in `weight.grad`, or in the transformed kernel.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        shift: Tensor | None,
        shortcut: Tensor | None,
        stride: int,
        rectify: bool,
        kernel: Callable[[], winograd.Kernel] | None,
        sizes: winograd.Sizes,
    ) -> Tensor:
        low, bias = weight.to(x.dtype), None if shift is None else shift.to(x.dtype)
        ctx.product = weight.shape[2] == 1 and stride == 1 and x.is_contiguous(memory_format=torch.channels_last)
        transformed = None
        if ctx.product:
            y = F.linear(x.permute(0, 2, 3, 1), low.flatten(1), bias).permute(0, 3, 1, 2)
        elif kernel is not None:
            rows, transformed = winograd.forward(rows_of(x), sizes, kernel())
            y = map_of(rows.add_(bias) if bias is not None else rows, x)
        else:
            parts = [F.conv2d(part, low, bias, stride, weight.shape[2] // 2) for part in apart(x, sizes)]
            y = parts[0] if len(parts) == 1 else map_of(torch.cat([rows_of(part) for part in parts]))
        if shortcut is not None:
            y.add_(shortcut)
        if rectify:
            y.relu_()
        ctx.save_for_backward(x if transformed is None else None, weight, y if rectify else None, transformed)
        ctx.stride, ctx.kernel, ctx.sizes, ctx.shifted, ctx.shortcut = stride, kernel, sizes, shift is not None, shortcut is not None
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, y, transformed = ctx.saved_tensors
        if y is not None:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        wants = ctx.needs_input_grad[0]
        to_x = None
        if ctx.product:
            rows = rows_of(grad)
            if wants:
                to_x = map_of(rows @ weight.to(x.dtype).flatten(1), grad)
            if ctx.needs_input_grad[1]:
                _gather(weight, rows, rows_of(x))
        elif ctx.kernel is not None:
            to_x = map_of(winograd.backward(rows_of(grad), ctx.sizes, transformed, ctx.kernel()), grad)
        else:
            to_x = FoldedUnit.direct_backward(ctx, grad, x, weight)
        to_shift = grad.sum((0, 2, 3), dtype=torch.float32) if ctx.shifted else None
        return to_x, None, to_shift, grad if ctx.shortcut else None, None, None, None, None

    @staticmethod
    def direct_backward(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor | None:
        edge, mask = weight.shape[2] // 2, [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        after = [(n, -(-h // ctx.stride), -(-w // ctx.stride)) for n, h, w in ctx.sizes]
        to_parts = []
        for part_grad, part in zip(apart(grad, after), apart(x, ctx.sizes), strict=True):
            to_part, to_weight, _ = torch.ops.aten.convolution_backward(
                part_grad, part, weight.to(x.dtype), None, [ctx.stride] * 2, [edge] * 2, [1, 1], False, [0, 0], 1, mask
            )
            to_parts.append(to_part)
            if to_weight is not None:
                weight.grad = added(weight, to_weight.to(torch.float32))
        if not mask[0] or len(to_parts) == 1:
            return to_parts[0]
        return map_of(torch.cat([rows_of(part) for part in to_parts]))


def rows_of(x_nchw: Tensor) -> Tensor:
    """(n, c, h, w) -> (positions, c); with channels last the same memory."""
    return x_nchw.permute(0, 2, 3, 1).flatten(0, 2)


def map_of(rows: Tensor, like_nchw: Tensor | None = None) -> Tensor:
    """(positions, c) -> a map of the size of `like`, or all in one column, (1, c, positions, 1); channels last."""
    n, h, w = (1, len(rows), 1) if like_nchw is None else (len(like_nchw), *like_nchw.shape[2:])
    return rows.view(n, h, w, -1).permute(0, 3, 1, 2)


def apart(x_nchw: Tensor, sizes: winograd.Sizes) -> list[Tensor]:
    """The maps whose positions stand in x one after the other."""
    if len(sizes) == 1:
        return [x_nchw]
    parts = rows_of(x_nchw).split([n * h * w for n, h, w in sizes])
    return [part.view(*size, -1).permute(0, 3, 1, 2) for part, size in zip(parts, sizes, strict=True)]


def added(weight: Tensor, gradient: Tensor) -> Tensor:
    """What `weight.grad` shall be: this gradient if it has none, else its own with this one added where it lies."""
    return gradient if weight.grad is None else weight.grad.add_(gradient)


def _gather(weight: Tensor, rows: Tensor, inputs: Tensor) -> None:
    """Add (positions, o)^T (positions, i) to the gradient of a 1x1 kernel where it lies: no copy, no second pass over it."""
    if weight.grad is None:
        weight.grad = (rows.t() @ inputs).to(torch.float32).view_as(weight)
    elif rows.dtype == torch.float32:
        weight.grad.flatten(1).addmm_(rows.t(), inputs)
    else:
        weight.grad.flatten(1).add_(rows.t() @ inputs)
