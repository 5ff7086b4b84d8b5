"""Optimizers of the official codes, and learning-rate schedules.

All take parameter groups that carry `params`, and if they like their own `lr` and `weight_decay`. The learning rate follows a schedule:
update number (from 0) -> factor of the group's first rate. The number of updates done lies in every group under `updates`, so a state
dictionary goes on where it stopped. Parameters without a gradient are left alone, weight decay included, as in the official codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Schedule(Protocol):
    """Update number, from 0 -> factor of the first learning rate."""

    def __call__(self, update: int) -> float: ...


@dataclass(frozen=True)
class Constant:
    """The first learning rate, always."""

    def __call__(self, update: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Poly:
    """(1 - update / steps)^power; from `steps` on the factor of the last update before is kept, as in the official code."""

    steps: int
    power: float = 0.9

    def __call__(self, update: int) -> float:
        return (1 - min(update, self.steps - 1) / self.steps) ** self.power


@dataclass(frozen=True)
class Cosine:
    """Linear from 0 (excluded) to 1 over `warmup` updates, then half a cosine towards 0 at `steps`; kept from the last update on."""

    steps: int
    warmup: int = 0

    def __call__(self, update: int) -> float:
        if update < self.warmup:
            return (update + 1) / self.warmup
        done = (min(update, self.steps - 1) - self.warmup) / max(self.steps - self.warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * max(done, 0.0)))


def _follow(groups: list[dict[str, Any]], schedule: Schedule) -> None:
    """Set every group's rate for the update that comes, and count it."""
    for group in groups:
        group["lr"] = group["initial_lr"] * schedule(group["updates"])
        group["updates"] += 1


class PolySGD(torch.optim.Optimizer):
    """SGD as IRN, RIB, PSA, SEAM and HFPL run it: buffer = momentum * buffer + gradient + weight decay * weight; weight -= rate * buffer.

    `momentum=None` is the official code as it runs: its call hands the weight decay to SGD where the momentum stands, so the momentum
    *is* `weight_decay` (1e-4 or 5e-4), and a group without a `weight_decay` of its own has none. A number is the momentum that a reader
    would expect; `weight_decay` is then the groups' default.

    Nothing is allocated in `step` after the first one, and `reset` makes it as new without freeing anything: RIB starts afresh with
    every picture. `schedule` replaces the poly decay over `max_step` updates.
    """

    def __init__(
        self,
        groups: Iterable[Any],
        lr: float,
        weight_decay: float,
        max_step: int,
        *,
        momentum: float | None = None,
        power: float = 0.9,
        schedule: Schedule | None = None,
    ) -> None:
        if max_step < 1:
            raise ValueError(f"max_step is {max_step}: a schedule needs at least one update")
        self.schedule: Schedule = schedule or Poly(max_step, power)
        official = momentum is None
        defaults = {
            "lr": lr,
            "momentum": weight_decay if momentum is None else momentum,
            "weight_decay": 0.0 if official else weight_decay,
            "updates": 0,
        }
        super().__init__(groups, defaults)
        for group in self.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def reset(self) -> None:
        """As new: buffers zero (with a zero buffer the first update is the gradient alone), schedule at its start. In place."""
        for group in self.param_groups:
            group["lr"], group["updates"] = group["initial_lr"], 0
            buffers = [self.state[p]["momentum_buffer"] for p in group["params"] if p in self.state]
            if buffers:
                torch._foreach_zero_(buffers)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; the rate that it used stays in each group's `lr`."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        _follow(self.param_groups, self.schedule)
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._update(weights, [p.grad for p in weights], group)
        return value

    def _update(self, weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        buffers = [self._buffer(p) for p in weights]
        momentum, decay, rate = group["momentum"], group["weight_decay"], group["lr"]
        alike = [w.stride() == g.stride() and w.dtype == g.dtype for w, g in zip(weights, gradients, strict=True)]
        if all(alike):  # one pass over the memory, twice as fast; it reads all three as flat memory, hence the test
            torch._fused_sgd_(
                weights,
                gradients,
                buffers,
                weight_decay=decay,
                momentum=momentum,
                lr=rate,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
            )
            return
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        torch._foreach_add_(buffers, weights, alpha=decay)
        torch._foreach_add_(weights, buffers, alpha=-rate)

    def _buffer(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        return state["momentum_buffer"]


class Adam(torch.optim.Adam):
    """Adam (weight decay added to the gradient, as in torch.optim.Adam) whose rate follows a schedule. For networks from scratch."""

    def __init__(self, groups: Iterable[Any], lr: float, weight_decay: float, schedule: Schedule) -> None:
        super().__init__(groups, lr=lr, weight_decay=weight_decay)
        self.schedule = schedule
        for group in self.param_groups:
            group.setdefault("initial_lr", group["lr"])
            group.setdefault("updates", 0)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        _follow(self.param_groups, self.schedule)
        return super().step(closure)
