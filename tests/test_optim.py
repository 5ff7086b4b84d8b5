"""Optimizers: the official numbers, and what RIB and a resumed training ask of them."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seedbed.optim import Adam, Constant, Cosine, Poly, PolySGD, WarmUp


def _official(case: dict[str, np.ndarray]) -> tuple[list[Tensor], PolySGD]:
    lr, decay = float(case["lr"]), float(case["weight_decay_argument"])
    weights = [torch.nn.Parameter(torch.from_numpy(case[f"p{i}_init"].copy())) for i in range(3)]
    own = [{"lr": float(case["lr_used"][0, i]), "weight_decay": float(case["group_weight_decay"][i])} for i in range(3)]
    groups = [{"params": [w], **(o if i < 2 else {})} for i, (w, o) in enumerate(zip(weights, own, strict=True))]
    return weights, PolySGD(groups, lr, decay, int(case["max_step"]))


@pytest.mark.golden
def test_official_numbers(golden: Callable[[str], dict[str, np.ndarray]]) -> None:
    case = golden("poly_optimizer")
    weights, optimizer = _official(case)
    for _ in range(2):  # the second round after a reset in place
        with torch.no_grad():
            for i, w in enumerate(weights):
                w.copy_(torch.from_numpy(case[f"p{i}_init"]))
        for step in range(len(case["p0_grads"])):
            for i, w in enumerate(weights):
                w.grad = torch.from_numpy(case[f"p{i}_grads"][step].copy())
            optimizer.step()
            for i, w in enumerate(weights):
                np.testing.assert_allclose(w.detach().numpy(), case[f"p{i}_after"][step], atol=1e-5, rtol=0)
            np.testing.assert_allclose([g["lr"] for g in optimizer.param_groups], case["lr_used"][step], rtol=1e-12)
        optimizer.reset()
    np.testing.assert_allclose([g["momentum"] for g in optimizer.param_groups], case["group_momentum"])
    np.testing.assert_allclose([g["weight_decay"] for g in optimizer.param_groups], case["group_weight_decay"])


def _grown(optimizer: PolySGD, weight: Tensor, gradients: Tensor) -> Tensor:
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach().clone()


def _one(momentum: float | None, **kwargs: object) -> tuple[Tensor, PolySGD]:
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 24).reshape(2, 3, 2, 2))
    return weight, PolySGD([{"params": [weight]}], 0.1, 0.05, 6, momentum=momentum, **kwargs)  # type: ignore[arg-type]


def test_momentum_given_is_ordinary_sgd() -> None:
    gradients = torch.randn(6, 2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    ours, optimizer = _one(0.9)
    expected, buffer = ours.detach().double(), torch.zeros(2, 3, 2, 2, dtype=torch.float64)
    for step, gradient in enumerate(gradients):
        buffer = 0.9 * buffer + gradient + 0.05 * expected
        expected = expected - 0.1 * (1 - step / 6) ** 0.9 * buffer
    torch.testing.assert_close(_grown(optimizer, ours, gradients), expected.float(), atol=1e-6, rtol=0)


def test_gradients_laid_out_otherwise() -> None:
    gradients = torch.randn(4, 2, 3, 2, 2, generator=torch.Generator().manual_seed(4))
    expected = _grown(*reversed(_one(0.9)), gradients)  # type: ignore[arg-type]
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 24).reshape(2, 3, 2, 2).contiguous(memory_format=torch.channels_last))
    optimizer = PolySGD([{"params": [weight]}], 0.1, 0.05, 6, momentum=0.9)
    for gradient in gradients:
        weight.grad = gradient.contiguous()
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected, atol=1e-6, rtol=0)


def test_the_two_momenta_differ() -> None:
    gradients = torch.ones(6, 2, 3, 2, 2)
    (a, official), (b, expected) = _one(None), _one(0.9)
    assert official.param_groups[0]["momentum"] == 0.05 and official.param_groups[0]["weight_decay"] == 0
    assert (_grown(official, a, gradients) - _grown(expected, b, gradients)).abs().max() > 0.1


def test_reset_gives_the_bits_of_a_new_one_and_keeps_its_memory() -> None:
    gradients = torch.randn(4, 2, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    weight, optimizer = _one(0.5)
    start = weight.detach().clone()
    first = _grown(optimizer, weight, gradients)
    address = optimizer.state[weight]["momentum"].data_ptr()
    with torch.no_grad():
        weight.copy_(start)
    optimizer.reset()
    assert torch.equal(_grown(optimizer, weight, gradients), first)
    assert optimizer.state[weight]["momentum"].data_ptr() == address


def test_weights_without_gradient_do_not_decay() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = PolySGD([{"params": [weight], "weight_decay": 0.5}], 0.1, 0.5, 3)
    optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(3)) and weight not in optimizer.state


def test_a_state_dictionary_goes_on_with_the_same_bits() -> None:
    gradients = torch.randn(6, 2, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    whole = _grown(*reversed(_one(0.9)), gradients)  # type: ignore[arg-type]
    weight, optimizer = _one(0.9)
    _grown(optimizer, weight, gradients[:3])
    state = copy.deepcopy(optimizer.state_dict())
    resumed, fresh = _one(0.9)
    with torch.no_grad():
        resumed.copy_(weight)
    fresh.load_state_dict(state)
    assert torch.equal(_grown(fresh, resumed, gradients[3:]), whole)


def test_state_of_other_groups_is_refused() -> None:
    two = PolySGD([{"params": [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))]}], 0.1, 0, 3)
    with pytest.raises(ValueError, match="other parameter groups"):
        two.load_state_dict(_one(0.9)[1].state_dict())
    with pytest.raises(ValueError, match="two groups"):
        PolySGD([{"params": two.param_groups[0]["params"]}] * 2, 0.1, 0, 3)


def test_adam_by_hand() -> None:
    """Kingma and Ba 2015, algorithm 1, in float64; weight decay added to the gradient."""
    gradients = torch.randn(5, 7, generator=torch.Generator().manual_seed(5))
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 7))
    expected, first, second = weight.detach().double(), torch.zeros(7).double(), torch.zeros(7).double()
    optimizer = Adam([{"params": [weight]}], 0.01, 0.1, Constant())
    for n, gradient in enumerate(gradients, 1):
        weight.grad = gradient.clone()
        optimizer.step()
        decayed = gradient.double() + 0.1 * expected
        first, second = 0.9 * first + 0.1 * decayed, 0.999 * second + 0.001 * decayed**2
        expected = expected - 0.01 * (first / (1 - 0.9**n)) / ((second / (1 - 0.999**n)).sqrt() + 1e-8)
    torch.testing.assert_close(weight.detach(), expected.float(), atol=1e-6, rtol=0)


def test_the_compiler_is_not_loaded() -> None:
    code = (
        "import sys, torch; from seedbed.optim import PolySGD\n"
        "p = torch.nn.Parameter(torch.ones(2)); o = PolySGD([{'params': [p]}], 1, 0, 1)\n"
        "p.sum().backward(); o.step(); assert p.tolist() == [0, 0] and 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_adam_follows_its_schedule_and_resumes() -> None:
    gradients = torch.randn(8, 5, generator=torch.Generator().manual_seed(3))

    def run(steps: slice, state: dict | None, start: Tensor) -> tuple[Tensor, dict, list[float]]:
        weight = torch.nn.Parameter(start.clone())
        optimizer = Adam([{"params": [weight]}], 0.01, 1e-4, WarmUp(2, Cosine(6)))
        if state:
            optimizer.load_state_dict(state)
        rates = []
        for gradient in gradients[steps]:
            weight.grad = gradient.clone()
            optimizer.step()
            rates.append(optimizer.param_groups[0]["lr"])
        return weight.detach(), copy.deepcopy(optimizer.state_dict()), rates

    whole, _, rates = run(slice(None), None, torch.ones(5))
    half, state, _ = run(slice(0, 4), None, torch.ones(5))
    rest, _, later = run(slice(4, None), state, half)
    assert torch.equal(rest, whole) and later == rates[4:]
    assert rates[:2] == [0.005, 0.01] and rates[2] == 0.01 and all(a > b for a, b in itertools.pairwise(rates[2:]))


@settings(deadline=None, max_examples=60)
@given(steps=st.integers(1, 200), warmup=st.integers(0, 50), power=st.floats(0.1, 3))
def test_schedules_stay_positive_and_fall(steps: int, warmup: int, power: float) -> None:
    for schedule in (Poly(steps, power), Cosine(steps)):
        values = [schedule(i) for i in range(steps + 3)]
        assert all(0 <= v <= 1 for v in values) and values[0] == 1
        assert all(a >= b for a, b in itertools.pairwise(values))
        assert values[steps - 1] == values[steps] == values[-1] and (values[-1] > 0 or power > 2)
        warm = [WarmUp(warmup, schedule)(i) for i in range(warmup + steps)]
        assert warm[warmup:] == values[:steps] and all(a < b for a, b in itertools.pairwise([0, *warm[:warmup]]))
