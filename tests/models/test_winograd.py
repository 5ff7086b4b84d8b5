"""The cheaper 3x3 convolutions against the direct ones, for values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seedbed.models import winograd
from seedbed.models.passes import Folded, borrowed_weights
from seedbed.models.resnet import ResNet

SIZES = [[(1, 4, 4)], [(2, 7, 9)], [(3, 5, 16)], [(1, 1, 1)], [(2, 7, 9), (1, 4, 4), (3, 1, 6)]]


def maps(rows: Tensor, sizes: winograd.Sizes) -> list[Tensor]:
    """Rows of positions -> NCHW maps of these sizes."""
    parts = rows.split([n * h * w for n, h, w in sizes])
    return [part.view(*size, -1).permute(0, 3, 1, 2) for part, size in zip(parts, sizes, strict=True)]


@pytest.mark.parametrize("sizes", SIZES)
def test_values_and_gradients(sizes: list[tuple[int, int, int]]) -> None:
    torch.manual_seed(0)
    positions = sum(n * h * w for n, h, w in sizes)
    x, weight, upstream = torch.randn(positions, 5), torch.randn(7, 5, 3, 3), torch.randn(positions, 7)
    kernel = winograd.Kernel(weight)
    y, transformed = winograd.forward(x, sizes, kernel)
    to_x = winograd.backward(upstream, sizes, transformed, kernel)
    to_weight = kernel.weight_gradient()
    x64, weight64 = x.double().requires_grad_(), weight.double().requires_grad_()
    direct = [F.conv2d(each, weight64, padding=1) for each in maps(x64, sizes)]
    expected = torch.cat([each.permute(0, 2, 3, 1).flatten(0, 2) for each in direct])
    expected.backward(upstream.double())
    for ours, exact in ((y, expected), (to_x, x64.grad), (to_weight, weight64.grad)):
        assert ours is not None
        assert exact is not None
        torch.testing.assert_close(ours.double(), exact.detach(), rtol=0, atol=2e-5 * float(exact.detach().abs().max()))


def test_gradients_of_several_passes_add_up() -> None:
    torch.manual_seed(0)
    x, weight, upstream = torch.randn(4 * 64, 3), torch.randn(6, 3, 3, 3), torch.randn(4 * 64, 6)
    whole, parts = winograd.Kernel(weight), winograd.Kernel(weight)
    assert parts.weight_gradient() is None
    for _ in range(2):  # what was taken does not come again
        sizes = [(4, 8, 8)]
        winograd.backward(upstream, sizes, winograd.transform_input(x, sizes), whole)
        sizes = [(2, 8, 8)]
        for x_part, upstream_part in zip(x.split(128), upstream.split(128), strict=True):
            winograd.backward(upstream_part, sizes, winograd.transform_input(x_part, sizes), parts)
        torch.testing.assert_close(parts.weight_gradient(), whole.weight_gradient(), rtol=1e-4, atol=1e-4)
        assert parts.weight_gradient() is None


def test_a_kernel_takes_other_weights() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 6, 3, 3, 3)
    kernel = winograd.Kernel(first)
    kernel.transform(second)
    assert torch.equal(kernel.value, winograd.Kernel(second).value)


def test_where_it_pays() -> None:
    wide = torch.empty(4, 256, 32, 32).contiguous(memory_format=torch.channels_last)
    kernel, sizes = torch.empty(256, 256, 3, 3), [(4, 32, 32)]
    assert winograd.pays(wide, sizes, kernel, 1)
    assert not winograd.pays(wide, sizes, kernel, 2)
    assert not winograd.pays(wide, sizes, kernel[:, :, :1, :1], 1)
    assert not winograd.pays(wide[:, :128], sizes, kernel, 1)
    assert not winograd.pays(wide[:1, :, :8, :8], [(1, 8, 8)], kernel, 1)
    assert not winograd.pays(wide.contiguous(), sizes, kernel, 1)
    assert not winograd.pays(wide.bfloat16(), sizes, kernel, 1)


@pytest.mark.parametrize("depth", [18, 50])
def test_fast_passes_equal_plain_ones(depth: int) -> None:
    """For maps of several sizes, together and one by one; the small ones are only worth it together."""
    torch.manual_seed(0)
    model = ResNet(depth, 3).freeze_statistics()
    images = [torch.randn(2, 3, 100, 90), torch.randn(1, 3, 160, 130), torch.randn(2, 3, 33, 64)]
    results = {}
    for fast in (False, True):
        for together in (False, True):
            with borrowed_weights(model, "stage3") as (body, head):
                passes = Folded(model, True, fast)
                with torch.no_grad():
                    features = [passes.prefix(x) for x in images]
                scores = passes.suffixes(features) if together else [passes.suffix(x) for x in features]
                torch.stack([each.square().mean() for each in scores]).sum().backward()
                passes.pull_back()
                results[fast, together] = [each.detach() for each in scores], [p.grad for p in body + head]
                assert bool(passes.kernels) == (fast and together)
    assert not torch.equal(results[True, True][0][1], results[False, True][0][1])
    plain_scores, plain_gradients = results[False, False]
    for scores, gradients in results.values():
        for ours, plain in zip(scores, plain_scores, strict=True):
            torch.testing.assert_close(ours, plain, rtol=0, atol=1e-4 * float(plain.abs().max()))
        for to_ours, to_plain in zip(gradients, plain_gradients, strict=True):
            assert to_ours is not None
            assert float((to_ours - to_plain).norm()) <= 1e-3 * float(to_plain.norm())  # type: ignore[operator,union-attr]
