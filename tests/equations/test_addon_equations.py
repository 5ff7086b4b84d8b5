"""The equations of the two add-ons against cases computed by hand, and what the paper says of their gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seedbed.addons import isl
from seedbed.addons.fsl import feature_similarity_loss, max_normalised
from seedbed.addons.isl import binomial_posterior
from seedbed.addons.pairs import color_distance, dissimilarity, gate, spatial_weight

D = torch.float64


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=D)


def sigmoid(y: float) -> float:
    return 1 / (1 + math.exp(-y))


def entropy(label: float, probability: float) -> float:
    return -(label * math.log(probability) + (1 - label) * math.log(1 - probability))


def test_max_normalised_map() -> None:
    """Eq. (4), and the code's way with minimum and 1e-5."""
    scores = tensor([[[[4.0, -2.0], [1.0, 2.0]], [[-1.0, -3.0], [-2.0, -5.0]]]])
    assert max_normalised(scores, "paper").tolist() == [[[[1, 0], [0.25, 0.5]], [[0, 0], [0, 0]]]]
    code = max_normalised(scores, "code")
    assert code[0, 0].flatten().tolist() == pytest.approx([(v - 1e-5) / (4 + 1e-5) if v else 0 for v in (4.0, 0.0, 1.0, 2.0)], rel=1e-12)
    assert not code[0, 1].any()
    positive = max_normalised(scores + 3, "code")[0, 0]  # 7, 1, 4, 5: the minimum goes off
    assert positive.flatten().tolist() == pytest.approx([(v - 1 - 1e-5) / (6 + 1e-5) if v > 1 else 0 for v in (7, 1, 4, 5)], rel=1e-12)


def test_posteriors_and_where_is_drawn() -> None:
    scores = tensor([[[[0.0, math.log(3)]], [[1.0, -1.0]]]])
    b = binomial_posterior(scores)
    assert b[0, 0].flatten().tolist() == pytest.approx([0.5, 0.75])
    a = isl.multinomial_posterior(scores)
    assert a[0, :, 0, 1].tolist() == pytest.approx([3 / (3 + math.exp(-1)), math.exp(-1) / (3 + math.exp(-1))])
    p = isl.sampling_distribution(b)
    assert p[0, 0].flatten().tolist() == pytest.approx([0.4, 0.6])
    assert p.sum((2, 3)).flatten().tolist() == pytest.approx([1, 1])


def test_drawing_inverts_the_cumulative_distribution() -> None:
    p = tensor([[[[0.0, 0.1], [0.6, 0.3]]]])
    uniform = tensor([[[0.0, 0.0999, 0.1001, 0.6999, 0.7001, 1 - 1e-12]]])
    assert isl.drawn_positions(p, uniform).tolist() == [[[1, 1, 2, 2, 3, 3]]]  # what has no probability is never drawn


def test_sampled_losses() -> None:
    scores = tensor([[[[0.0, 2.0], [-1.0, 0.5]], [[1.0, -2.0], [0.0, 3.0]]]])
    labels = tensor([[1.0, 0.0]])
    one = isl.drawn_scores(scores, torch.tensor([[[1], [3]]]))
    expected = (entropy(1, sigmoid(2)) + entropy(0, sigmoid(3))) / 2
    assert isl.sampled_loss(one[..., 0], labels).item() == pytest.approx(expected, rel=1e-12)
    two = isl.drawn_scores(scores, torch.tensor([[[1, 0], [3, 2]]]))
    other = (entropy(1, sigmoid(0)) + entropy(0, sigmoid(0))) / 2
    assert isl.multi_sample_loss(two, labels).item() == pytest.approx((expected + other) / 2, rel=1e-12)
    gap = (entropy(1, sigmoid(1.5 / 4)) + entropy(0, sigmoid(0.5))) / 2
    assert isl.gap_loss(scores.mean((2, 3)), labels).item() == pytest.approx(gap, rel=1e-12)
    assert isl.blended(tensor(gap), tensor(expected), 0.2).item() == pytest.approx(0.8 * gap + 0.2 * expected, rel=1e-12)


def test_multinomial_sampled_loss() -> None:
    """Eq. (7) and (8) with the posterior itself, which stands in the code as its log-odds."""
    scores = tensor([[[[0.0, 2.0]], [[1.0, -2.0]], [[0.5, 0.0]]]])  # two classes and the background
    a = isl.multinomial_posterior(scores)
    odds = isl.drawn_log_odds(scores, torch.tensor([[[1, 0], [0, 0]]]))
    assert odds.sigmoid()[0].tolist() == [
        pytest.approx([float(a[0, 0, 0, 1]), float(a[0, 0, 0, 0])]),
        pytest.approx([float(a[0, 1, 0, 0])] * 2),
    ]
    expected = (entropy(1, float(a[0, 0, 0, 1])) + entropy(0, float(a[0, 1, 0, 0]))) / 2
    assert isl.sampled_loss(odds[..., 0], tensor([[1.0, 0.0]])).item() == pytest.approx(expected, rel=1e-12)
    far = isl.drawn_log_odds(1e4 * scores, torch.tensor([[[1], [0]]]))
    assert torch.isfinite(isl.sampled_loss(far[..., 0], tensor([[0.0, 1.0]]))).all()


def test_parts_of_the_feature_similarity_loss() -> None:
    assert spatial_weight(tensor(25.0), 5.0).item() == pytest.approx(math.exp(-0.5) / (50 * math.pi), rel=1e-12)
    left, right = tensor([[1.0, 0.0]]), tensor([[0.0, 0.5], [1.0, 0.0]])
    assert gate(left, right).tolist() == [[0.5 * (1 + 0.25), 0]]
    assert color_distance(tensor([1.0, 0.2, 0.5]), tensor([0.7, 0.6, 0.5])).item() == pytest.approx(0.7 / 3, rel=1e-12)
    for delta in (0.01, 0.0759, 0.3, 0.99):
        expected = math.tanh(2.5 + math.log(delta / (1 - delta)))
        assert dissimilarity(tensor(delta), 2.5).item() == pytest.approx(expected, abs=1e-12)
    assert dissimilarity(tensor([0.0, 1.0]), 2.5).tolist() == [-1, 1]
    assert dissimilarity(tensor(1 / (1 + math.exp(2.5))), 2.5).item() == pytest.approx(0, abs=1e-12)
    guarded = math.tanh(1 + math.log((0.5 + 1e-2) / (0.5 + 1e-2)))
    assert dissimilarity(tensor(0.5), 1.0, 1e-2).item() == pytest.approx(guarded, rel=1e-12)


def test_feature_similarity_loss_of_three_positions() -> None:
    x = tensor([[[[0.0, 0.3, 0.3]], [[0.0, 0.0, 0.6]], [[0.0, 0.0, 0.0]]]])
    y = tensor([[[[0.9, 0.2, 0.4]], [[0.1, 0.8, 0.6]]]])
    near, far = (math.exp(-d / 8) / (8 * math.pi) for d in (1, 4))
    f = [math.tanh(1.5 + math.log(d / (1 - d))) for d in (0.1, 0.2, 0.3)]
    pairs = near * f[0] * 0.49 + near * f[1] * 0.04 + far * f[2] * 0.25
    assert feature_similarity_loss(y, x, 1.5, 2.0).item() == pytest.approx(-2 * pairs / 3, rel=1e-12)
    both = feature_similarity_loss(y.repeat(2, 1, 1, 1), torch.cat([x, 0 * x]), 1.5, 2.0).item()
    alike = near * (0.49 + 0.04) + far * 0.25  # one color: all pull together
    assert both == pytest.approx((-2 * pairs / 3 + 2 * alike / 3) / 2, rel=1e-12)
    everywhere = f[0] * 0.49 + f[1] * 0.04 + f[2] * 0.25
    assert feature_similarity_loss(y, x, 1.5, None).item() == pytest.approx(-2 * everywhere / 9, rel=1e-12)


def gradient_of_gate(kind: str, first: float, second: float) -> float:
    """Of g by the first of two scores, in a map whose largest score is the larger of them."""
    scores = tensor([[[[first, second]]]]).requires_grad_()
    y = {"s": scores, "b": binomial_posterior(scores), "r": max_normalised(scores, "paper")}[kind].flatten()
    gate(y[:1, None], y[1:, None]).sum().backward()
    assert scores.grad is not None
    return float(scores.grad[0, 0, 0, 0])


@given(st.floats(-30, 30), st.floats(-30, 30))
def test_gradients_of_the_gates(one: float, other: float) -> None:
    """Eq. (19) grows without end; Eq. (20, 21) and (22, 23) are bounded; r leaves negative scores alone."""
    assert gradient_of_gate("s", one, other) == pytest.approx(one - other, abs=1e-9)
    slope = math.exp(-abs(one)) / (1 + math.exp(-abs(one))) ** 2
    b = gradient_of_gate("b", one, other)
    assert b == pytest.approx((sigmoid(one) - sigmoid(other)) * slope, abs=1e-9)
    assert abs(b) <= slope + 1e-12 <= math.exp(-one) + 2e-12
    r, highest = gradient_of_gate("r", one, other), max(one, other)
    if one <= 0:
        assert r == 0
    elif highest > 1e-3:
        assert r == pytest.approx((one - max(other, 0)) / highest / highest, rel=1e-6)
        assert abs(r) <= 1 / highest * (1 + 1e-9)
