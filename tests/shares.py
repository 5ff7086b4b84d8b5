"""What several workers make of a batch, put together in one process: for tests that one worker makes the same of it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from seedbed import loop


def whole_and_shares(task: Any, step: int, world: int) -> list[tuple[dict[str, float], dict[str, torch.Tensor]]]:
    """Terms and gradients of a step: of the whole batch, and of the shares of `world` workers with the counts that the loop gives them."""
    assert isinstance(task, loop.Counting)
    torch.manual_seed(0)
    model = task.build().train()
    batches = [task.batch(step, rank, world) for rank in range(world)]
    counts = torch.cat([task.counts(batch) for batch in batches])
    firsts = [loop.share(task.batch_size, rank, world).start for rank in range(world)]
    shares = [replace(batch, counts=counts, first=first) for batch, first in zip(batches, firsts, strict=True)]
    return [summed(task, copy.deepcopy(model), given, step) for given in ([task.batch(step, 0, 1)], shares)]


def summed(task: Any, model: Any, batches: list[Any], step: int) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    terms: dict[str, float] = {}
    for batch in batches:
        losses = task.loss(model, batch, step).losses
        sum(losses.values()).backward()
        terms = {name: terms.get(name, 0.0) + float(loss.detach()) for name, loss in losses.items()}
    return terms, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_alike(task: Any, step: int, world: int) -> None:
    (terms, gradients), (summed_terms, summed_gradients) = whole_and_shares(task, step, world)
    assert terms == {name: pytest.approx(value, rel=1e-4, abs=1e-7) for name, value in summed_terms.items()}
    assert gradients.keys() == summed_gradients.keys() and any(g.any() for g in gradients.values())
    for name, gradient in gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(summed_gradients[name], gradient, rtol=1e-3, atol=1e-4 * scale + 1e-8, msg=name)
