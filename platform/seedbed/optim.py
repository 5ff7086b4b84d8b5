"""Optimizers of the official codes, and learning-rate schedules.

All take parameter groups that carry `params`, and if they like their own `lr` and `weight_decay`. The learning rate follows a schedule:
update number (from 0) -> factor of the group's first rate. The number of updates done lies in every group under `updates`, so a state
dictionary goes on where it stopped. Parameters without a gradient are left alone, weight decay included, as in the official codes.

They are not subclasses of torch.optim.Optimizer: constructing one loads torch's compiler, five seconds and 150 MB in every worker.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
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
    """Half a cosine from 1 towards 0 at `steps`; from there on the factor of the last update before is kept."""

    steps: int

    def __call__(self, update: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(update, self.steps - 1) / self.steps))


@dataclass(frozen=True)
class WarmUp:
    """Linear from 0 (excluded) to 1 over the first `updates`, then another schedule from its start."""

    updates: int
    then: Schedule

    def __call__(self, update: int) -> float:
        return (update + 1) / self.updates if update < self.updates else self.then(update - self.updates)


class Optimizer:
    """Parameter groups, buffers and their state dictionary; subclasses say how a group is updated."""

    def __init__(self, groups: Iterable[Mapping[str, Any]], schedule: Schedule, **defaults: Any) -> None:
        self.schedule = schedule
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        seen: set[int] = set()
        for given in groups:
            group = {**defaults, **given, "params": list(given["params"])}
            if seen & {id(p) for p in group["params"]}:
                raise ValueError("a parameter stands in two groups")
            seen |= {id(p) for p in group["params"]}
            self.param_groups.append({**group, "initial_lr": group["lr"], "updates": 0})

    def zero_grad(self, set_to_none: bool = True) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none:
                    p.grad = None
                elif p.grad is not None:
                    p.grad.zero_()

    @torch.no_grad()
    def step(self) -> None:
        """One update; the rate that it used stays in each group's `lr`."""
        for group in self.param_groups:
            group["lr"] = group["initial_lr"] * self.schedule(group["updates"])
            group["updates"] += 1
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self.update(weights, [p.grad for p in weights], group)

    def update(self, weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        raise NotImplementedError

    def reset(self) -> None:
        """As new: buffers zero, schedule at its start. In place."""
        for group in self.param_groups:
            group["lr"], group["updates"] = group["initial_lr"], 0
        buffers = [tensor for state in self.state.values() for tensor in state.values()]
        if buffers:
            torch._foreach_zero_(buffers)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors only; the buffers of a parameter stand at its place in its group."""
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
        return {"groups": groups, "buffers": [[dict(self.state.get(p, {})) for p in group["params"]] for group in self.param_groups]}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Buffers are copied, and keep the memory format they were saved with."""
        sizes = [len(group["params"]) for group in self.param_groups]
        if sizes != [len(buffers) for buffers in saved["buffers"]]:
            raise ValueError(f"state of other parameter groups: {[len(b) for b in saved['buffers']]} parameters, here {sizes}")
        for group, values, buffers in zip(self.param_groups, saved["groups"], saved["buffers"], strict=True):
            group.update(values)
            for p, state in zip(group["params"], buffers, strict=True):
                if state:
                    self.state[p] = {name: tensor.to(p.device, copy=True) for name, tensor in state.items()}

    def buffers(self, name: str, weights: list[Tensor]) -> list[Tensor]:
        """A buffer of each weight; zero at first."""
        return [self._buffer(name, p) for p in weights]

    def _buffer(self, name: str, weight: Tensor) -> Tensor:
        state = self.state.setdefault(weight, {})
        if name not in state:
            state[name] = torch.zeros_like(weight)
        return state[name]


class PolySGD(Optimizer):
    """SGD as IRN, RIB, PSA, SEAM and HFPL run it: buffer = momentum * buffer + gradient + weight decay * weight; weight -= rate * buffer.

    `momentum=None` is the official code as it runs: its call hands the weight decay to SGD where the momentum stands, so the momentum
    *is* `weight_decay` (1e-4 or 5e-4), and a group without a `weight_decay` of its own has none. A number is the momentum that a reader
    would expect; `weight_decay` is then the groups' default.

    Nothing is allocated in `step` after the first one, and `reset` makes it as new without freeing anything (with a zero buffer the first
    update is the gradient alone): RIB starts afresh with every picture. `schedule` replaces the poly decay over `max_step` updates.
    """

    def __init__(
        self,
        groups: Iterable[Mapping[str, Any]],
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
        official = momentum is None
        super().__init__(
            groups,
            schedule or Poly(max_step, power),
            lr=lr,
            momentum=weight_decay if official else momentum,
            weight_decay=0.0 if official else weight_decay,
        )

    def update(self, weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        momentum, decay, rate = group["momentum"], group["weight_decay"], group["lr"]
        alike = all(w.stride() == g.stride() and w.dtype == g.dtype for w, g in zip(weights, gradients, strict=True))
        if alike:  # one pass over the memory, twice as fast; it reads all three as flat memory, hence the test
            torch._fused_sgd_(
                weights,
                gradients,
                self.buffers("momentum", weights) if momentum else [],
                weight_decay=decay,
                momentum=momentum,
                lr=rate,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
            )
            return
        buffers = self.buffers("momentum", weights)
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        torch._foreach_add_(buffers, weights, alpha=decay)
        torch._foreach_add_(weights, buffers, alpha=-rate)


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015), weight decay added to the gradient, with a schedule. For networks from scratch."""

    BETAS, EPSILON = (0.9, 0.999), 1e-8

    def __init__(self, groups: Iterable[Mapping[str, Any]], lr: float, weight_decay: float, schedule: Schedule) -> None:
        super().__init__(groups, schedule, lr=lr, weight_decay=weight_decay)

    def update(self, weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        first, second = self.buffers("first", weights), self.buffers("second", weights)
        (beta, gamma), n = self.BETAS, group["updates"]
        decayed = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
        torch._foreach_lerp_(first, decayed, 1 - beta)
        torch._foreach_mul_(second, gamma)
        torch._foreach_addcmul_(second, decayed, decayed, 1 - gamma)
        spread = torch._foreach_sqrt(second)
        torch._foreach_div_(spread, math.sqrt(1 - gamma**n))
        torch._foreach_add_(spread, self.EPSILON)
        torch._foreach_addcdiv_(weights, first, spread, -group["lr"] / (1 - beta**n))
