"""RIB's equations against cases computed by hand, and their two readings where paper and code differ."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seedbed.methods.maps import TINY, merge_mirror, normalised
from seedbed.methods.rib import bce_loss, covered_share, gndrp, rib_loss

MAP = torch.tensor([[[[8.0, 4.0], [2.0, -2.0]]]], dtype=torch.float64)
"""Over its maximum: 1, 0.5, 0.25, -0.25."""
YES = torch.ones(1, 1, dtype=torch.float64)


def test_loss() -> None:
    logits = torch.tensor([[700.0, -3.0, 5.0], [1.0, 2.0, 3.0]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    assert float(rib_loss(logits.detach(), labels)) == -(700 - 3 + 3)
    clamped = rib_loss(logits, labels, 600.0)
    assert float(clamped.detach()) == -(600 - 3 + 3)
    (gradient,) = torch.autograd.grad(clamped, logits)
    assert gradient.tolist() == [[0, -1, 0], [0, 0, -1]]  # beyond the margin nothing pulls any more


@pytest.mark.parametrize(
    ("activation", "probability"),
    [
        ("sigmoid", lambda y: 1 / (1 + math.exp(-y))),
        ("tanh", lambda y: (1 + math.tanh(y)) / 2),
        ("softsign", lambda y: (1 + y / (1 + abs(y))) / 2),
    ],
)
def test_cross_entropy(activation: str, probability: Any) -> None:
    values, labels = [-3.0, -0.5, 0.0, 0.25, 4.0], [1.0, 0.0, 1.0, 1.0, 0.0]
    expected = -sum(t * math.log(probability(y)) + (1 - t) * math.log(1 - probability(y)) for y, t in zip(values, labels, strict=True))
    rows = torch.tensor([values], dtype=torch.float64)
    assert float(bce_loss(rows, torch.tensor([labels], dtype=torch.float64), activation)) == pytest.approx(expected, rel=1e-12)
    far = torch.tensor([[-1e4, 1e4]], requires_grad=True)  # where the plain formula gives infinity
    loss = bce_loss(far, torch.tensor([[1.0, 0.0]]), activation)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(far.grad).all()  # type: ignore[arg-type]


def test_activations_saturate_in_the_papers_order() -> None:
    """tanh fastest, softsign slowest: what is left of the gradient at a large logit."""
    left = {}
    for activation in ("tanh", "sigmoid", "softsign"):
        y = torch.tensor([[4.0]], dtype=torch.float64, requires_grad=True)
        bce_loss(y, YES, activation).backward()
        left[activation] = abs(float(y.grad))  # type: ignore[arg-type]
    assert left["tanh"] < left["sigmoid"] < left["softsign"] < 1


@pytest.mark.parametrize(
    ("options", "kept", "divisor"),
    [
        ({}, [4 * 0, 0, 2, -2], 4),  # 0.25 and -0.25 are below 0.5
        ({"comparison": "at-most"}, [0, 4, 2, -2], 4),
        ({"divisor": "kept"}, [0, 0, 2, -2], 2),
        ({"divisor": "kept", "comparison": "at-most"}, [0, 4, 2, -2], 3),
        ({"first": 0}, [8, 4, 2, -2], 4),  # no class is masked
    ],
)
def test_gndrp(options: dict[str, Any], kept: list[float], divisor: int) -> None:
    x = MAP.clone().requires_grad_()
    value = gndrp(x, YES, 0.5, **options)
    assert float(value.detach()) == sum(kept) / divisor
    value.backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [1 / divisor if k else 0 for k in kept]


def test_gndrp_signed_or_rectified() -> None:
    """A map without a positive value: nothing is kept, or everything; elsewhere negative positions are kept either way."""
    negative = -MAP.abs() - 1
    assert float(gndrp(negative, YES, 0.4)) == 0
    assert float(gndrp(negative, YES, 0.4, map_="rectified")) == float(negative.mean())
    assert float(gndrp(MAP, YES, 0.4)) == float(gndrp(MAP, YES, 0.4, map_="rectified")) == 0.0
    assert float(gndrp(MAP, YES, 0.3, map_="rectified")) == (2 - 2) / 4


def test_gndrp_is_for_labelled_classes() -> None:
    two = MAP.expand(1, 2, 2, 2)
    assert gndrp(two, torch.tensor([[0.0, 1.0]]), 0.5).tolist() == [[3.0, 0.0]]
    many, labels = MAP.expand(1, 30, 2, 2), torch.ones(1, 30)
    first20 = gndrp(many, labels, 0.5, first=20)
    assert first20[0, :20].tolist() == [0.0] * 20
    assert first20[0, 20:].tolist() == [3.0] * 10
    assert labels.eq(1).all()


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
def test_gndrp_properties(seed: int, tau: float) -> None:
    """Scaling a map scales the pooled value; a larger tau never drops a position; rows and classes do not see one another."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 4, 5, 6, generator=generator, dtype=torch.float64)
    labels = (torch.rand(3, 4, generator=generator) < 0.5).double()
    value = gndrp(x, labels, tau)
    torch.testing.assert_close(gndrp(4 * x, labels, tau), 4 * value)
    torch.testing.assert_close(gndrp(x[1:2, 2:3], labels[1:2, 2:3], tau), value[1:2, 2:3])
    torch.testing.assert_close(value[labels == 0], x.mean((2, 3))[labels == 0])
    kept = [_kept(x, labels, t) for t in (tau, min(tau + 0.1, 1.0))]
    assert bool((kept[1] | ~kept[0]).all())


def _kept(x: Tensor, labels: Tensor, tau: float) -> Tensor:
    x = x.clone().requires_grad_()
    gndrp(x, labels, tau).sum().backward()
    assert x.grad is not None
    return x.grad != 0


def test_maps_over_their_maximum() -> None:
    maps = torch.tensor([[[0.0, 3.0], [1.5, 0.0]], [[0.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    done = normalised(maps)
    assert done[0].tolist() == [[0.0, 3 / (3 + TINY)], [1.5 / (3 + TINY), 0.0]]
    assert done[1].eq(0).all()
    assert covered_share(maps, 0.3) == 0.5
    assert covered_share(maps, 0.6) == 0.25


def test_mirrors_are_turned_back() -> None:
    scores = torch.tensor([[[[1.0, -2.0, 3.0]]], [[[10.0, 20.0, -30.0]]]])
    assert merge_mirror(scores).tolist() == [[[1.0 + 0, 0 + 20, 3 + 10]]]
    assert merge_mirror(scores[:1]).tolist() == [[[1.0, 0.0, 3.0]]]
