"""Fine-tuning a network on one picture: its weights borrowed, and many passes between two updates at the least cost.

With fixed statistics a batch norm is one factor and one shift per channel. `Folded` keeps every convolution of a ResNet with both
folded in, gathers the gradients of any number of backward passes on the folded weights, and hands them to the parameters once:
no batch-norm pass over the features, nothing of it kept for the backward pass, same numbers up to rounding.
`Plain` offers the same to any network that keeps to `methods.base.Network`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.models import winograd
from seedbed.models.resnet import BatchNorm, Block, ResNet

Parameters = tuple[list[nn.Parameter], list[nn.Parameter]]
"""What moves: the body, and the classifier with its own learning rate."""

PASS_PIXELS = 2**20
"""Pixels of a pass on a CPU: enough to amortise reading the weights, and few enough for its caches."""


@contextmanager
def borrowed_weights(model: Any, trained: Literal["stage3", "all"]) -> Iterator[Parameters]:
    """The parameters that move (body, classifier), on copies: the model's own values are never written, so no error can spoil them."""
    head: list[nn.Parameter] = model.classifier_parameters()
    own = {id(p) for p in head}
    body = [p for p in (model.parameters() if trained == "all" else model.suffix_parameters()) if id(p) not in own]
    moved = own | {id(p) for p in body}
    before = [(p, p.data, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        for p, data, _, _ in before:
            p.grad = None
            p.requires_grad_(id(p) in moved)
            if id(p) in moved:
                p.data = data.clone(memory_format=torch.channels_last if data.ndim == 4 else torch.preserve_format)
        yield body, head
    finally:
        for p, data, trainable, gradient in before:
            p.grad = None
            p.data = data
            p.requires_grad_(trainable)
            p.grad = gradient


def multiplies_bfloat16(place: torch.device) -> bool:
    """Whether the hardware has bfloat16 products; without, a CPU emulates them at a quarter of the speed of float32."""
    if place.type == "cpu":
        return any(getattr(torch.cpu, name, bool)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return place.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def many_passes(model: Any, *, channels_last: bool = True, fast: bool = True) -> Plain | Folded:
    """The cheapest way that this network has. `fast`: it may use `models/winograd.py`."""
    return Folded(model, channels_last, fast) if isinstance(model, ResNet) else Plain(model, channels_last)


def fitting(shape: torch.Size, place: torch.device, pixels: int) -> int:
    """Pictures of a pass: all on a GPU. A CPU is quickest where features stay in its caches and yet amortise reading the weights."""
    n, _, h, w = shape
    return n if place.type != "cpu" else max(1, min(n, pixels // (h * w)))


def fitting_groups(sizes: list[int], place: torch.device, pixels: int) -> list[list[int]]:
    """Which inputs, of so many pixels each, share a pass: on a CPU as many as fit, in their order; alone on a GPU."""
    groups: list[list[int]] = []
    for i, size in enumerate(sizes):
        if groups and place.type == "cpu" and size + sum(sizes[j] for j in groups[-1]) <= pixels:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


class Plain:
    """Passes through the network as it is; autocast for reduced precision."""

    def __init__(self, model: Any, channels_last: bool) -> None:
        self.model = model
        self.format = torch.channels_last if channels_last else torch.contiguous_format

    def prefix(self, images_nchw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._run(self.model.prefix, images_nchw.contiguous(memory_format=self.format), dtype)

    def suffix(self, features_nchw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._run(self.model.suffix, features_nchw, dtype).float()

    def suffixes(self, features: list[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """`suffix` of features of several sizes."""
        return [self.suffix(x, dtype) for x in features]

    def refold(self) -> None:
        """After the weights changed: nothing to do here."""

    def pull_back(self) -> None:
        """Before an update: the gradients are on the parameters already."""

    def _run(self, part: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16, cache_enabled=False):
            return part(x)


class Folded:
    """Only parameters that require gradients get them, and only their folded weights are kept up to date by `refold`."""

    def __init__(self, model: ResNet, channels_last: bool, fast: bool) -> None:
        self.model, self.fast = model, fast
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        pairs = [(model.conv1, model.bn1)]
        for layer in map(model.get_submodule, ("layer1", "layer2", "layer3", "layer4")):
            for block in layer.children():
                assert isinstance(block, Block)
                pairs += [*block.pairs(), *block.shortcut_pair()]
        self.pairs: list[tuple[nn.Conv2d, BatchNorm]] = pairs
        self.folded: dict[nn.Conv2d, tuple[Tensor, Tensor]] = {}
        self.kernels: dict[nn.Conv2d, winograd.Kernel] = {}
        for conv, norm in pairs:
            weight = torch.empty_like(conv.weight, memory_format=self.format).requires_grad_(conv.weight.requires_grad)
            self.folded[conv] = (weight, torch.empty_like(norm.bias).requires_grad_(conv.weight.requires_grad))
            self._fold(conv, norm)

    def prefix(self, images_nchw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        parts = [images_nchw]
        if not torch.is_grad_enabled():
            parts = list(images_nchw.split(fitting(images_nchw.shape, images_nchw.device, 2**18)))
        done = [self.model.prefix(part.to(dtype, memory_format=self.format), self._unit) for part in parts]
        return torch.cat(done) if len(done) > 1 else done[0]

    def suffix(self, features_nchw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Class scores in float32, whatever the precision of the pass."""
        features = self.model.suffix_features(features_nchw.to(dtype), self._unit)
        return self._classify(features)

    def suffixes(self, features: list[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """`suffix` of features of several sizes, whose positions go through the network as one map: weights are read once for all."""
        if len(features) == 1 or self.format != torch.channels_last:
            return [self.suffix(x, dtype) for x in features]
        layers = map(self.model.get_submodule, ("layer3", "layer4"))
        strided, *blocks = [block for layer in layers for block in layer.children()]  # the first block halves each map
        parts = [strided(x.to(dtype), self._unit) for x in features]
        sizes = [(len(x), *x.shape[2:]) for x in parts]
        x = _map_of(torch.cat([_rows(part) for part in parts]))
        for block in blocks:
            x = block(x, partial(self._unit, sizes=sizes))
        return _apart(self._classify(x), sizes)

    @torch.no_grad()
    def refold(self) -> None:
        """After the weights changed."""
        for conv, norm in self.pairs:
            if conv.weight.requires_grad:
                self._fold(conv, norm)
        for conv, kernel in self.kernels.items():
            kernel.transform(self.folded[conv][0])

    @torch.no_grad()
    def pull_back(self) -> None:
        """Before an update: the gathered gradients go to the parameters (replacing what is there)."""
        for conv, norm in self.pairs:
            weight, shift = self.folded[conv]
            if shift.grad is None:
                continue
            transformed = self.kernels[conv].weight_gradient() if conv in self.kernels else None
            if transformed is not None:
                weight.grad = _added(weight, transformed)
            assert norm.running_mean is not None
            assert weight.grad is not None
            factor, unit = self._factor(norm)
            by_factor = torch.linalg.vecdot(_flat(weight.grad), _flat(conv.weight)) - norm.running_mean * shift.grad
            norm.weight.grad, norm.bias.grad = by_factor * unit, shift.grad
            conv.weight.grad = weight.grad.mul_(factor[:, None, None, None])
            weight.grad = shift.grad = None

    def _classify(self, features: Tensor) -> Tensor:
        whole = [(len(features), *features.shape[2:])]
        return FoldedUnit.apply(features, self.model.classifier.weight, None, None, 1, False, None, whole).float()

    def _unit(
        self,
        x: Tensor,
        conv: nn.Conv2d,
        norm: BatchNorm,
        rectify: bool,
        shortcut: Tensor | None,
        *,
        sizes: winograd.Sizes | None = None,
    ) -> Tensor:
        """sizes: of the maps that x holds, where it is a map made of the positions of several."""
        weight, shift = self.folded[conv]
        step = conv.stride[0]
        if weight.shape[2] == 1 and step > 1:  # a product of the positions that it looks at
            x, step = x[:, :, ::step, ::step].contiguous(memory_format=self.format), 1
        alone = [(len(x), *x.shape[2:])]
        kernel = partial(self._kernel, conv) if self.fast and winograd.pays(x, sizes or alone, weight, step) else None
        return FoldedUnit.apply(x, weight, shift, shortcut, step, rectify, kernel, sizes or alone)

    @torch.no_grad()
    def _kernel(self, conv: nn.Conv2d) -> winograd.Kernel:
        if conv not in self.kernels:
            self.kernels[conv] = winograd.Kernel(self.folded[conv][0])
        return self.kernels[conv]

    @torch.no_grad()
    def _fold(self, conv: nn.Conv2d, norm: BatchNorm) -> None:
        assert norm.running_mean is not None
        weight, shift = self.folded[conv]
        factor, _ = self._factor(norm)
        torch.mul(conv.weight, factor[:, None, None, None], out=weight)
        torch.addcmul(norm.bias, norm.running_mean, factor, value=-1, out=shift)

    @staticmethod
    def _factor(norm: BatchNorm) -> tuple[Tensor, Tensor]:
        assert norm.running_var is not None
        unit = torch.rsqrt(norm.running_var + norm.eps)
        return norm.weight.detach() * unit, unit


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
            rows, transformed = winograd.forward(_rows(x), sizes, kernel())
            y = _map_of(rows.add_(bias) if bias is not None else rows, x)
        else:
            parts = [F.conv2d(part, low, bias, stride, weight.shape[2] // 2) for part in _apart(x, sizes)]
            y = parts[0] if len(parts) == 1 else _map_of(torch.cat([_rows(part) for part in parts]))
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
            rows = _rows(grad)
            if wants:
                to_x = _map_of(rows @ weight.to(x.dtype).flatten(1), grad)
            if ctx.needs_input_grad[1]:
                _gather(weight, rows, _rows(x))
        elif ctx.kernel is not None:
            to_x = _map_of(winograd.backward(_rows(grad), ctx.sizes, transformed, ctx.kernel()), grad)
        else:
            to_x = FoldedUnit.direct_backward(ctx, grad, x, weight)
        to_shift = grad.sum((0, 2, 3), dtype=torch.float32) if ctx.shifted else None
        return to_x, None, to_shift, grad if ctx.shortcut else None, None, None, None, None

    @staticmethod
    def direct_backward(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor | None:
        edge, mask = weight.shape[2] // 2, [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        after = [(n, -(-h // ctx.stride), -(-w // ctx.stride)) for n, h, w in ctx.sizes]
        to_parts = []
        for part_grad, part in zip(_apart(grad, after), _apart(x, ctx.sizes), strict=True):
            to_part, to_weight, _ = torch.ops.aten.convolution_backward(
                part_grad, part, weight.to(x.dtype), None, [ctx.stride] * 2, [edge] * 2, [1, 1], False, [0, 0], 1, mask
            )
            to_parts.append(to_part)
            if to_weight is not None:
                weight.grad = _added(weight, to_weight.to(torch.float32))
        if not mask[0] or len(to_parts) == 1:
            return to_parts[0]
        return _map_of(torch.cat([_rows(part) for part in to_parts]))


def _flat(weight: Tensor) -> Tensor:
    """(o, i, k, k) -> (o, k * k * i); with channels last the same memory."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _rows(x_nchw: Tensor) -> Tensor:
    """(n, c, h, w) -> (positions, c); with channels last the same memory."""
    return x_nchw.permute(0, 2, 3, 1).flatten(0, 2)


def _map_of(rows: Tensor, like_nchw: Tensor | None = None) -> Tensor:
    """(positions, c) -> a map of the size of `like`, or all in one column, (1, c, positions, 1); channels last."""
    n, h, w = (1, len(rows), 1) if like_nchw is None else (len(like_nchw), *like_nchw.shape[2:])
    return rows.view(n, h, w, -1).permute(0, 3, 1, 2)


def _apart(x_nchw: Tensor, sizes: winograd.Sizes) -> list[Tensor]:
    """The maps whose positions stand in x one after the other."""
    if len(sizes) == 1:
        return [x_nchw]
    parts = _rows(x_nchw).split([n * h * w for n, h, w in sizes])
    return [part.view(*size, -1).permute(0, 3, 1, 2) for part, size in zip(parts, sizes, strict=True)]


def _gather(weight: Tensor, rows: Tensor, inputs: Tensor) -> None:
    """Add (positions, o)^T (positions, i) to the gradient of a 1x1 kernel where it lies: no copy, no second pass over it."""
    if weight.grad is None:
        weight.grad = (rows.t() @ inputs).to(torch.float32).view_as(weight)
    elif rows.dtype == torch.float32:
        weight.grad.flatten(1).addmm_(rows.t(), inputs)
    else:
        weight.grad.flatten(1).add_(rows.t() @ inputs)


def _added(weight: Tensor, gradient: Tensor) -> Tensor:
    return gradient if weight.grad is None else weight.grad.add_(gradient)
