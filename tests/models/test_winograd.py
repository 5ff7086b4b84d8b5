"""The cheaper 3x3 convolutions against the direct ones, for values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from seedbed.models import winograd
from seedbed.models.passes import Folded, borrowed_weights
from seedbed.models.resnet import ResNet


@pytest.mark.parametrize("size", [(1, 4, 4), (2, 7, 9), (3, 5, 16), (1, 1, 1)])
def test_values_and_gradients(size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    n, h, w = size
    x = torch.randn(n, 5, h, w).contiguous(memory_format=torch.channels_last)
    weight, upstream = torch.randn(7, 5, 3, 3), torch.randn(n, 7, h, w)
    kernel = winograd.Kernel(weight)
    y, transformed = winograd.forward(x, kernel)
    to_x = winograd.backward(upstream, transformed, kernel)
    to_weight = kernel.weight_gradient()
    x64, weight64 = x.double().requires_grad_(), weight.double().requires_grad_()
    expected = F.conv2d(x64, weight64, padding=1)
    expected.backward(upstream.double())
    for ours, exact in ((y, expected), (to_x, x64.grad), (to_weight, weight64.grad)):
        assert ours is not None
        assert exact is not None
        torch.testing.assert_close(ours.double(), exact.detach(), rtol=0, atol=2e-5 * float(exact.detach().abs().max()))


def test_gradients_of_several_passes_add_up() -> None:
    torch.manual_seed(0)
    x, weight, upstream = torch.randn(4, 3, 8, 8), torch.randn(6, 3, 3, 3), torch.randn(4, 6, 8, 8)
    whole, parts = winograd.Kernel(weight), winograd.Kernel(weight)
    assert parts.weight_gradient() is None
    winograd.backward(upstream, winograd.transform_input(x), whole)
    for x_part, upstream_part in zip(x.split(2), upstream.split(2), strict=True):
        winograd.backward(upstream_part, winograd.transform_input(x_part), parts)
    torch.testing.assert_close(parts.weight_gradient(), whole.weight_gradient(), rtol=1e-4, atol=1e-4)


def test_where_it_pays() -> None:
    wide = torch.empty(4, 256, 32, 32).contiguous(memory_format=torch.channels_last)
    kernel = torch.empty(256, 256, 3, 3)
    assert winograd.pays(wide, kernel, 1)
    assert not winograd.pays(wide, kernel, 2)
    assert not winograd.pays(wide, kernel[:, :, :1, :1], 1)
    assert not winograd.pays(wide[:, :128], kernel, 1)
    assert not winograd.pays(wide[:1, :, :8, :8], kernel, 1)
    assert not winograd.pays(wide.contiguous(), kernel, 1)
    assert not winograd.pays(wide.bfloat16(), kernel, 1)


def test_fast_passes_equal_plain_ones() -> None:
    """And those that maps are read from are not touched by it."""
    torch.manual_seed(0)
    model = ResNet(18, 3).freeze_statistics()
    x = torch.randn(4, 3, 160, 160)
    results = {}
    for fast in (False, True):
        for exact in (False, True):
            with borrowed_weights(model, "stage3") as (body, head):
                passes = Folded(model, True, fast)
                with torch.no_grad():
                    features = passes.prefix(x)
                scores = passes.suffix(features, exact=exact)
                scores.square().mean().backward()
                passes.pull_back()
                results[fast, exact] = scores.detach(), [p.grad for p in body + head]
                assert bool(passes.kernels) == fast
    assert torch.equal(results[True, True][0], results[False, True][0])
    assert not torch.equal(results[True, False][0], results[False, False][0])
    for scores, gradients in results.values():
        torch.testing.assert_close(scores, results[False, True][0], rtol=0, atol=1e-4 * float(scores.abs().max()))
        for ours, plain in zip(gradients, results[False, True][1], strict=True):
            assert ours is not None
            assert float((ours - plain).norm()) <= 1e-3 * float(plain.norm())  # type: ignore[operator,union-attr]
