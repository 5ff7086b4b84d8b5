"""The feature similarity loss written down as its equations stand: matrices of all pairs, gradients by autograd.

What `seedbed.addons` is compared with, for values (tests) and for time and memory (benchmarks). Needs
(h * w)^2 numbers a picture, many times.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def plain_fsl(y_nchw: Tensor, x_nchw: Tensor, mu: float | Tensor = 2.5, sigma: float | Tensor | None = 5.0, guard: float = 1e-5) -> Tensor:
    _, _, h, w = y_nchw.shape
    y, x = y_nchw.flatten(2), x_nchw.clamp(0, 1).flatten(2)
    rows, columns = (v.flatten().to(y) for v in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    if sigma is None:
        weight = torch.full((h * w, h * w), 1 / (h * w)).to(y)
    else:
        squares = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
        weight = torch.exp(-squares / (2 * sigma**2)) / (2 * math.pi * sigma**2)
    lengths = (y**2).sum(1)
    gate = (lengths[:, :, None] + lengths[:, None, :]) / 2 - y.transpose(1, 2) @ y
    delta = sum((x[:, k, :, None] - x[:, k, None, :]).abs() for k in range(x.shape[1])) / x.shape[1]
    dissimilarity = torch.tanh(mu + torch.log((delta + guard) / (1 - delta + guard)))
    return -(weight * gate * dissimilarity).sum((1, 2)).mean() / (h * w)
