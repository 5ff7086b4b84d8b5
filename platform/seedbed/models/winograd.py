"""3x3 convolutions with a quarter of the multiplications: F(4x4, 3x3) of Lavin and Gray (2016), forward and backward, on a CPU.

Every 6x6 patch of the input, at distances of 4, goes through a small transform, where the convolution is 36 independent matrix products;
each 4x4 patch of the output comes back by another. The result differs from the direct one by some 1e-5 of its spread (float32).

Features are rows, (positions, channels), of maps of one or more sizes (n, h, w), one after the other: the patches of all of them share
the products, and so the reading of a kernel that is four times the plain one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def _squared(rows: list[list[float]]) -> Tensor:
    one = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(one, one).float()


INPUT = _squared(
    [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
)
"""(36, 36), 6x6 patch -> transform."""
KERNEL = _squared(
    [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
)
"""(36, 9), 3x3 kernel -> transform."""
OUTPUT = _squared([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
"""(16, 36), transform -> 4x4 patch."""

FEWEST_PATCHES = 12
"""With fewer the transformed kernels, four times the plain ones, cost more to read than the products cost to compute."""


FEWEST_CHANNELS = 256
"""With fewer the transforms of the patches cost more than the products save."""


Sizes = Sequence[tuple[int, int, int]]
"""(n, h, w) of the maps whose positions stand one after the other."""


def pays(x_nchw: Tensor, sizes: Sizes, weight: Tensor, stride: int) -> bool:
    """Whether this convolution, padded by 1, is faster this way."""
    if weight.shape[2] != 3 or stride != 1 or x_nchw.shape[1] < FEWEST_CHANNELS:
        return False
    on_cpu = x_nchw.device.type == "cpu" and x_nchw.dtype == torch.float32
    return on_cpu and x_nchw.is_contiguous(memory_format=torch.channels_last) and sum(map(_patches, sizes)) >= FEWEST_PATCHES


def _patches(size: tuple[int, int, int]) -> int:
    n, h, w = size
    return n * -(-h // 4) * -(-w // 4)


def _blocks(buffer: Tensor, sizes: Sizes, edge: int) -> Iterator[tuple[Tensor, tuple[int, int, int], int, int]]:
    """(edge^2, patches, channels) -> per size its part as (edge, edge, n, down, across, channels), the size, down and across."""
    parts = buffer.split([_patches(size) for size in sizes], 1)
    for part, (n, h, w) in zip(parts, sizes, strict=True):
        down, across = -(-h // 4), -(-w // 4)
        yield part.view(edge, edge, n, down, across, -1), (n, h, w), down, across


def _maps(rows: Tensor, sizes: Sizes) -> list[Tensor]:
    """(positions, channels) -> per size (n, h, w, channels)."""
    parts = rows.split([n * h * w for n, h, w in sizes])
    return [part.view(*size, -1) for part, size in zip(parts, sizes, strict=True)]


class Kernel:
    """A transformed kernel, (36, o, i), and the sum of the gradients that backward passes have for it. Their memory is used again."""

    def __init__(self, weight: Tensor) -> None:
        """weight: (o, i, 3, 3)."""
        o, i = weight.shape[:2]
        self.value = weight.new_empty(36, o, i)
        self.gradient: Tensor | None = None
        self.gathered = False
        self.transform(weight)

    def transform(self, weight: Tensor) -> None:
        """Of other weights of the same shape."""
        torch.mm(KERNEL, weight.permute(2, 3, 0, 1).reshape(9, -1), out=self.value.view(36, -1))

    def gather(self, products: Tensor, inputs: Tensor) -> None:
        """Add the gradient of a pass: (36, patches, o) of the output, (36, patches, i) of the input."""
        if self.gradient is None:
            self.gradient = torch.empty_like(self.value)
        torch.baddbmm(self.gradient, products.transpose(1, 2), inputs, beta=int(self.gathered), out=self.gradient)
        self.gathered = True

    def weight_gradient(self) -> Tensor | None:
        """What was gathered since the last call, for the weight: (o, i, 3, 3), channels last."""
        if self.gradient is None or not self.gathered:
            return None
        self.gathered = False
        _, o, i = self.gradient.shape
        back = torch.mm(KERNEL.t(), self.gradient.view(36, -1)).view(3, 3, o, i)
        return back.permute(2, 0, 1, 3).contiguous().permute(0, 3, 1, 2)


def transform_input(rows: Tensor, sizes: Sizes) -> Tensor:
    """(positions, i), padded by 1 with zeros -> (36, patches, i)."""
    patches = rows.new_empty(36, sum(map(_patches, sizes)), rows.shape[1])
    for x, (block, (_, h, w), down, across) in zip(_maps(rows, sizes), _blocks(patches, sizes, 6), strict=True):
        padded = F.pad(x, (0, 0, 1, 4 * across + 1 - w, 1, 4 * down + 1 - h))
        a, b, c, d = padded.stride()
        block.copy_(padded.as_strided(block.shape, (b, c, a, 4 * b, 4 * c, d)))
    return torch.mm(INPUT, patches.view(36, -1)).view_as(patches)


def input_gradient(gradient: Tensor, sizes: Sizes) -> Tensor:
    """(36, patches, i) -> (positions, i): the overlapping 6x6 patches added up."""
    rows = gradient.new_empty(sum(n * h * w for n, h, w in sizes), gradient.shape[2])
    back = torch.mm(INPUT.t(), gradient.view(36, -1)).view_as(gradient)
    for x, (block, (n, h, w), down, across) in zip(_maps(rows, sizes), _blocks(back, sizes, 6), strict=True):
        patches = block.permute(2, 3, 0, 4, 1, 5)
        whole = gradient.new_empty(n, 4 * down + 4, 4 * across + 4, x.shape[3])
        whole[:, 4 * down :], whole[:, :, 4 * across :] = 0, 0
        blocks = whole.view(n, down + 1, 4, across + 1, 4, -1)
        blocks[:, :-1, :, :-1] = patches[:, :, :4, :, :4]
        blocks[:, 1:, :2, :-1] += patches[:, :, 4:, :, :4]
        blocks[:, :-1, :, 1:, :2] += patches[:, :, :4, :, 4:]
        blocks[:, 1:, :2, 1:, :2] += patches[:, :, 4:, :, 4:]
        x.copy_(whole[:, 1 : h + 1, 1 : w + 1])
    return rows


def output(products: Tensor, sizes: Sizes) -> Tensor:
    """(36, patches, o) -> (positions, o)."""
    rows = products.new_empty(sum(n * h * w for n, h, w in sizes), products.shape[2])
    patches = torch.mm(OUTPUT, products.view(36, -1)).view(16, *products.shape[1:])
    for y, (block, (n, h, w), down, across) in zip(_maps(rows, sizes), _blocks(patches, sizes, 4), strict=True):
        whole = block.permute(2, 3, 0, 4, 1, 5).reshape(n, 4 * down, 4 * across, -1)
        y.copy_(whole[:, :h, :w])
    return rows


def output_gradient(rows: Tensor, sizes: Sizes) -> Tensor:
    """(positions, o) -> (36, patches, o)."""
    patches = rows.new_empty(16, sum(map(_patches, sizes)), rows.shape[1])
    for y, (block, (n, h, w), down, across) in zip(_maps(rows, sizes), _blocks(patches, sizes, 4), strict=True):
        whole = F.pad(y, (0, 0, 0, 4 * across - w, 0, 4 * down - h))
        block.copy_(whole.view(n, down, 4, across, 4, -1).permute(2, 4, 0, 1, 3, 5))
    return torch.mm(OUTPUT.t(), patches.view(16, -1)).view(36, *patches.shape[1:])


def forward(rows: Tensor, sizes: Sizes, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """The convolution, and the transformed input, which `backward` wants."""
    transformed = transform_input(rows, sizes)
    return output(torch.bmm(transformed, kernel.value.transpose(1, 2)), sizes), transformed


def backward(gradient_rows: Tensor, sizes: Sizes, transformed: Tensor, kernel: Kernel) -> Tensor:
    """Gradient of the input (positions, i); that of the kernel is added to what it holds."""
    products = output_gradient(gradient_rows, sizes)
    kernel.gather(products, transformed)
    return input_gradient(torch.bmm(products, kernel.value), sizes)
