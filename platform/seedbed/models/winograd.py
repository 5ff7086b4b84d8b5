"""3x3 convolutions with a quarter of the multiplications: F(4x4, 3x3) of Lavin and Gray (2016), forward and backward, on a CPU.

Every 6x6 patch of the input, at distances of 4, goes through a small transform, where the convolution is 36 independent matrix products;
each 4x4 patch of the output comes back by another. The result differs from the direct one by some 1e-5 of its spread (float32), so what
goes straight into a map is not computed this way.
"""

from __future__ import annotations

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

FEWEST_PATCHES = 32
"""With fewer the transformed kernels, four times the plain ones, cost more to read than the products cost to compute."""


FEWEST_CHANNELS = 256
"""With fewer the transforms of the patches cost more than the products save."""


def pays(x_nchw: Tensor, weight: Tensor, stride: int) -> bool:
    """Whether this convolution, padded by 1, is faster this way."""
    n, i, h, w = x_nchw.shape
    if weight.shape[2] != 3 or stride != 1 or i < FEWEST_CHANNELS:
        return False
    on_cpu = x_nchw.device.type == "cpu" and x_nchw.dtype == torch.float32
    return on_cpu and x_nchw.is_contiguous(memory_format=torch.channels_last) and n * -(-h // 4) * -(-w // 4) >= FEWEST_PATCHES


class Kernel:
    """A transformed kernel, (36, i, o), and the sum of the gradients that backward passes have for it."""

    def __init__(self, weight: Tensor) -> None:
        """weight: (o, i, 3, 3)."""
        o, i = weight.shape[:2]
        self.value = torch.mm(KERNEL, weight.permute(2, 3, 1, 0).reshape(9, -1)).view(36, i, o)
        self.gradient: Tensor | None = None

    def weight_gradient(self) -> Tensor | None:
        """(o, i, 3, 3), for the weight."""
        if self.gradient is None:
            return None
        _, i, o = self.gradient.shape
        return torch.mm(KERNEL.t(), self.gradient.view(36, -1)).view(3, 3, i, o).permute(3, 2, 0, 1)


def transform_input(x_nchw: Tensor) -> Tensor:
    """(n, i, h, w), channels last, padded by 1 with zeros -> (36, patches, i)."""
    n, i, h, w = x_nchw.shape
    down, across = -(-h // 4), -(-w // 4)
    padded = F.pad(x_nchw.permute(0, 2, 3, 1), (0, 0, 1, 4 * across + 1 - w, 1, 4 * down + 1 - h))
    a, b, c, d = padded.stride()
    patches = padded.as_strided((6, 6, n, down, across, i), (b, c, a, 4 * b, 4 * c, d)).reshape(36, -1)
    return torch.mm(INPUT, patches).view(36, -1, i)


def input_gradient(gradient: Tensor, n: int, h: int, w: int) -> Tensor:
    """(36, patches, i) -> (n, i, h, w), channels last: the overlapping 6x6 patches added up."""
    down, across, i = -(-h // 4), -(-w // 4), gradient.shape[2]
    patches = torch.mm(INPUT.t(), gradient.view(36, -1)).view(6, 6, n, down, across, i).permute(2, 3, 0, 4, 1, 5)
    whole = gradient.new_empty(n, 4 * down + 4, 4 * across + 4, i)
    whole[:, 4 * down :], whole[:, :, 4 * across :] = 0, 0
    blocks = whole.view(n, down + 1, 4, across + 1, 4, i)
    blocks[:, :-1, :, :-1] = patches[:, :, :4, :, :4]
    blocks[:, 1:, :2, :-1] += patches[:, :, 4:, :, :4]
    blocks[:, :-1, :, 1:, :2] += patches[:, :, :4, :, 4:]
    blocks[:, 1:, :2, 1:, :2] += patches[:, :, 4:, :, 4:]
    return whole[:, 1 : h + 1, 1 : w + 1].permute(0, 3, 1, 2)


def output(products: Tensor, n: int, h: int, w: int) -> Tensor:
    """(36, patches, o) -> (n, o, h, w), channels last."""
    down, across = -(-h // 4), -(-w // 4)
    patches = torch.mm(OUTPUT, products.view(36, -1)).view(4, 4, n, down, across, -1)
    whole = patches.permute(2, 3, 0, 4, 1, 5).reshape(n, 4 * down, 4 * across, -1)
    return whole[:, :h, :w].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def output_gradient(gradient_nchw: Tensor) -> Tensor:
    """(n, o, h, w) -> (36, patches, o)."""
    n, o, h, w = gradient_nchw.shape
    down, across = -(-h // 4), -(-w // 4)
    whole = F.pad(gradient_nchw.permute(0, 2, 3, 1), (0, 0, 0, 4 * across - w, 0, 4 * down - h))
    patches = whole.reshape(n, down, 4, across, 4, o).permute(2, 4, 0, 1, 3, 5).reshape(16, -1)
    return torch.mm(OUTPUT.t(), patches).view(36, -1, o)


def forward(x_nchw: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """The convolution, and the transformed input, which `backward` wants."""
    n, _, h, w = x_nchw.shape
    transformed = transform_input(x_nchw)
    return output(torch.bmm(transformed, kernel.value), n, h, w), transformed


def backward(gradient_nchw: Tensor, transformed: Tensor, kernel: Kernel) -> Tensor:
    """Gradient of the input (n, i, h, w); that of the kernel is added to what it holds."""
    n, _, h, w = gradient_nchw.shape
    products, inputs = output_gradient(gradient_nchw), transformed.transpose(1, 2)
    if kernel.gradient is None:
        kernel.gradient = torch.bmm(inputs, products)
    else:
        kernel.gradient.baddbmm_(inputs, products)
    return input_gradient(torch.bmm(products, kernel.value.transpose(1, 2)), n, h, w)
