"""Fine-tuning a network on one picture: its weights borrowed, and many passes between two updates at the least cost.

With fixed statistics a batch norm is one factor and one shift per channel. `Folded` keeps every convolution of a ResNet with both
folded in, gathers the gradients of any number of backward passes on the folded weights, and hands them to the parameters once:
no batch-norm pass over the features, nothing of it kept for the backward pass, same numbers up to rounding.
`Plain` offers the same to any network that keeps to `methods.base.Network`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seedbed.models import winograd
from seedbed.models.folded_unit import FoldedUnit, added, apart, map_of, rows_of
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
        x = map_of(torch.cat([rows_of(part) for part in parts]))
        for block in blocks:
            x = block(x, partial(self._unit, sizes=sizes))
        return apart(self._classify(x), sizes)

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
                weight.grad = added(weight, transformed)
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


def _flat(weight: Tensor) -> Tensor:
    """(o, i, k, k) -> (o, k * k * i); with channels last the same memory."""
    return weight.permute(0, 2, 3, 1).flatten(1)
