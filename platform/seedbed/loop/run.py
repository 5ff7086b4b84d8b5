"""The loop itself."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seedbed.loop.ahead import ahead
from seedbed.loop.checkpoint import CHECKPOINT, FORMAT, WEIGHTS, load, only_writer, plain_weights, save
from seedbed.loop.determinism import seed, settled
from seedbed.loop.parallel import Team
from seedbed.loop.record import LOG, Log, Meter, Report
from seedbed.loop.task import Counting, Pace, Task, TrainingDiverged, share
from seedbed.types import UserError

LOOK = 1.0
"""Seconds between two looks at the terms, about: where steps are slower than that, every step is looked at."""


def train(
    task: Task,
    folder: Path | str,
    *,
    rank: int = 0,
    world: int = 1,
    device: str = "cpu",
    threads: int = 1,
    synchronise: Callable[[nn.Module], nn.Module] | None = None,
    report: Report | None = None,
) -> None:
    """Trains from the folder's checkpoint, or from the start, to the end; leaves `folder/weights.pt`. Does nothing where that is there.

    `world` workers call it together, each with its `rank`; `synchronise` then wraps the module whose gradients are to be averaged
    (`data_parallel`). The bits depend on the task, the number of workers, the device's kind and the threads; not on where or how
    often it was stopped. Raises TrainingDiverged, and UserError for what a user can mend.
    """
    folder = Path(folder)
    if (folder / WEIGHTS).exists():
        return
    if (world > 1) != (synchronise is not None):
        raise ValueError(f"{world} workers and {'no' if synchronise is None else 'a'} way to average their gradients")
    if task.batch_size < world:
        message = f"{world} training workers can't share a batch of {task.batch_size} pictures"
        raise UserError(message, field="--run.workers", remedy="ask for fewer workers, or for a larger batch")
    with contextlib.ExitStack() as stack:
        stack.enter_context(settled(task.pace, device, threads))
        if rank == 0:
            stack.enter_context(only_writer(folder))
        _Training(task, folder, Team(rank, world), device, threads, synchronise, report).run()


class _Step(nn.Module):
    """The task's loss as a module, so that whatever a method calls of its model runs below the averaging of gradients."""

    def __init__(self, task: Task, model: nn.Module, autocast: Callable[[], Any]) -> None:
        super().__init__()
        self.model = model
        self._task, self._autocast = task, autocast

    def forward(self, batch: Any, step: int) -> dict[str, Tensor]:
        with self._autocast():
            return self._task.loss(self.model, batch, step).losses


class _Training:
    """One worker's state between steps."""

    def __init__(
        self,
        task: Task,
        folder: Path,
        team: Team,
        device: str,
        threads: int,
        synchronise: Callable[[nn.Module], nn.Module] | None,
        report: Report | None,
    ) -> None:
        self.task, self.folder, self.team, self.device = task, folder, team, device
        task.open()
        self.steps = task.steps
        self.counting = task if team.world > 1 and isinstance(task, Counting) else None
        workers = f"{team.world} workers" if self.counting is None else f"{team.world} workers, counts of all"
        self.identity = f"{task.identity()}/{workers}/{device.partition(':')[0]}/{threads} threads"
        seed(device, task.seed, "build")
        self.model = task.build().to(device)
        if task.pace.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = task.optimizer(self.model, self.steps)
        trained = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        for p in self.model.parameters():
            p.requires_grad_(p.requires_grad and id(p) in trained)
        self.done, self.before = 0, 0.0  # updates; seconds of training before this process
        self.meter, self.known = Meter(), set[str]()
        log_at = self._restore()
        self.log = Log(folder / LOG if team.rank == 0 else None, log_at, report)
        if self.done == 0:
            self.log.write({"step": 0, "steps": self.steps, "facts": dict(task.facts())})
        step = _Step(task, self.model, self.autocast)
        self.module: nn.Module = synchronise(step) if synchronise is not None else step

    def autocast(self) -> Any:
        return torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=self.task.pace.precision == "bf16")

    def _restore(self) -> int:
        """Takes up the checkpoint; returns the length of the log at that time."""
        saved = load(self.folder / CHECKPOINT, self.identity)
        if saved is not None:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.done, self.before = saved["step"], saved["seconds"]
            self.meter, self.known = Meter(saved["pending"]), set(saved["set_aside"])
        at = self.team.gather(self.done)
        if len(set(at)) > 1:
            raise RuntimeError(f"the workers see checkpoints of different steps ({at}): is the folder shared by all nodes?")
        return saved["log"] if saved is not None else 0

    def run(self) -> None:
        """All the steps that are left."""
        self.began, self.first = time.monotonic(), self.done
        self.saved_at, self.saved_step = self.began, self.done
        team, task = self.team, self.task
        part = share(task.batch_size, team.rank, team.world)
        # Gradients are averaged over the workers. Shares may be uneven; 1 where they are not.
        weight = team.world if self.counting is not None else (part.stop - part.start) * team.world / task.batch_size
        self.model.train()
        look = self.done + 1
        batches = ahead(self._batch, range(self.done, self.steps), _threads_ahead(task.pace, self.device))
        with contextlib.closing(batches), contextlib.closing(self.log):
            for step, (batch, counts) in batches:
                if counts is not None:
                    batch = dataclasses.replace(batch, counts=torch.cat(team.gather(counts)), first=part.start)
                seed(self.device, task.seed, "step", step, team.rank)
                self._update(step, _placed(batch, self.device, task.pace.channels_last), weight)
                self.done = step + 1
                judged = task.validates(self.done)
                if judged or self.done >= look or self.done in (self.saved_step + task.pace.checkpoint_every, self.steps):
                    look = self.done + self._look(judged)
            self._finish()

    def _batch(self, step: int) -> tuple[Any, Tensor | None]:
        batch = self.task.batch(step, self.team.rank, self.team.world)
        counts = None if self.counting is None else self.counting.counts(batch)
        return (_tensors(batch, lambda t: t.pin_memory()) if self.device.startswith("cuda") else batch), counts

    def _update(self, step: int, batch: Any, weight: float) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        terms: dict[str, Tensor] = self.module(batch, step)
        total = torch.stack(list(terms.values())).sum() if len(terms) > 1 else next(iter(terms.values()))
        (total if weight == 1 else total * weight).backward()
        self.optimizer.step()
        values = torch.stack([t.detach().float() * weight for t in terms.values()])
        self.meter.add(step, float(self.optimizer.param_groups[0]["lr"]), list(terms), values)

    def _look(self, judged: bool) -> int:
        """All workers look at the steps since the last time: terms, validation, checkpoint. Returns after how many steps to look again."""
        now = time.monotonic()
        steps, rates, values = self.meter.read()
        fresh = {i: r for i, r in dict(self.task.set_aside).items() if i not in self.known}
        seconds = now - self.began
        overdue = now - self.saved_at >= self.task.pace.checkpoint_seconds
        told = self.team.gather((values, fresh, seconds, overdue))
        self._check(steps, [values for values, *_ in told])
        seconds, overdue = told[0][2], told[0][3]  # the first worker's clock counts
        self._note(steps, rates, [t[0] for t in told], {i: r for t in told for i, r in t[1].items()}, seconds)
        if judged:
            self._validate()
        if (overdue or self.done - self.saved_step >= self.task.pace.checkpoint_every) and self.done < self.steps:
            self._save(seconds)
        pace = seconds / max(self.done - self.first, 1)
        return max(1, min(100, math.ceil(LOOK / max(pace, 1e-6))))

    def _check(self, steps: list[int], values: list[list[list[float]]]) -> None:
        for i, step in enumerate(steps):
            for worker in values:
                for name, value in zip(self.meter.names, worker[i], strict=True):
                    if not math.isfinite(value):
                        raise TrainingDiverged(step, name, value, str(self.folder))

    def _note(self, steps: list[int], rates: list[float], values: list[Any], aside: dict[str, str], seconds: float) -> None:
        for ident, reason in sorted(aside.items()):
            self.log.write({"step": self.done, "set_aside": {"id": ident, "reason": reason}})
        self.known |= set(aside)
        workers = len(values)
        left = (self.steps - self.done) * seconds / max(self.done - self.first, 1)
        for i, (step, lr) in enumerate(zip(steps, rates, strict=True)):
            self.meter.window.append([math.fsum(w[i][t] for w in values) / workers for t in range(len(self.meter.names))])
            if (step + 1) % self.task.pace.log_every == 0 or step + 1 == self.steps:
                line = {"step": step + 1, "steps": self.steps, "terms": self.meter.mean(), "lr": lr}
                self.log.write({**line, "seconds": round(self.before + seconds, 3), "eta": round(left, 1)})

    def _validate(self) -> None:
        self.model.eval()
        with torch.no_grad(), self.autocast():
            part = self.task.validate(self.model, self.device, self.team.rank, self.team.world)
        self.model.train()
        parts = self.team.gather(part)
        if self.team.rank == 0:
            self.log.write({"step": self.done, "steps": self.steps, **self.task.judge(parts)})

    def _finite_weights(self) -> None:
        for name, tensor in self.model.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise TrainingDiverged(self.done - 1, f"weight {name}", float(tensor[~torch.isfinite(tensor)][0]), str(self.folder))

    def _save(self, seconds: float) -> None:
        if self.team.rank == 0:
            self._finite_weights()
            content = {
                "format": FORMAT,
                "identity": self.identity,
                "step": self.done,
                "seconds": self.before + seconds,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "pending": self.meter.window,
                "set_aside": sorted(self.known),
                "log": self.log.safe(),
            }
            save(self.folder / CHECKPOINT, content)
        self.saved_at, self.saved_step = time.monotonic(), self.done

    def _finish(self) -> None:
        if self.team.rank == 0:
            self._finite_weights()
            self.log.safe()
            save(self.folder / WEIGHTS, plain_weights(self.model.state_dict()))
            (self.folder / CHECKPOINT).unlink(missing_ok=True)
        self.team.gather(None)  # nobody leaves before the weights are safe


def _threads_ahead(pace: Pace, device: str) -> int:
    if pace.prefetch is not None:
        return pace.prefetch
    return min(8, max(1, (os.cpu_count() or 1) // 2)) if device.startswith("cuda") else 1


def _tensors(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return dataclasses.replace(batch, **{name: change(value) for name, value in fields.items() if isinstance(value, Tensor)})


def _placed(batch: Any, device: str, channels_last: bool) -> Any:
    def place(t: Tensor) -> Tensor:
        t = t.to(device, non_blocking=True)
        return t.contiguous(memory_format=torch.channels_last) if channels_last and t.dim() == 4 else t

    return _tensors(batch, place)
