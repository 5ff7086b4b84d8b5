"""Per-image work over Ray Data actors: the Ray twin of the plain loop in `local.py`, with the same records.

Ids go out in blocks. An actor opens the work once, writes its own fragments, and returns only ids with a state, so the driver's memory
does not grow with the pictures. What does not come back is asked for again, one picture at a time.
"""

from __future__ import annotations

import logging
import os
import pickle
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from seedbed.artefacts import Stage
from seedbed.local import ImageWork, Shown
from seedbed.runtime.image_actor import ASIDE, KEPT, ImageActor, not_shared
from seedbed.types import UserError

BLOCKS_PER_ACTOR = 8
CRASHES = 2
"""A picture whose process ended this often, on nodes that are still alive, is set aside."""


def map_images_on_ray(
    work: ImageWork,
    ids: Sequence[str],
    stage: Stage,
    *,
    actors: int = 1,
    device: str = "cpu",
    gpus_per_actor: float = 0.0,
    threads: int = 1,
    commit_every: int = 256,
    progress: Shown | None = None,
) -> int:
    """Computes what is pending of `ids` and returns how many records that were. Ray must be connected.

    A picture that raises is set aside with its reason, one that ends its process after `CRASHES` such ends; UserErrors of `work.open()`
    and of the disk end the run.
    """
    gpus = gpus_per_actor if device == "cuda" and not work.light else 0.0  # light work runs no network
    return _FanOut(work, stage, actors, gpus, threads, commit_every, progress).run(ids)


class _FanOut:
    """One call of `map_images_on_ray`: passes over what is still missing, first in blocks, then singly."""

    IDLE_PASSES = 4

    def __init__(
        self, work: ImageWork, stage: Stage, actors: int, gpus: float, threads: int, commit_every: int, progress: Shown | None
    ) -> None:
        self.work, self.stage, self.actors, self.gpus = work, stage, actors, gpus
        self.threads, self.commit_every, self.progress = threads, commit_every, progress
        self.shown: set[str] = set()
        self.aside = 0

    def run(self, ids: Sequence[str]) -> int:
        pending = self.stage.pending(ids)
        missing = dict.fromkeys(pending)
        self.stage.folder.mkdir(parents=True, exist_ok=True)
        self._forget_attempts()
        crashes: Counter[str] = Counter()
        size, idle = block_size(len(missing), self.actors, self.commit_every), 0
        while missing:
            before = len(missing)
            self._pass(missing, size)
            if not missing:
                break
            self._find_recorded(missing)
            if len(missing) == before == len(pending) >= BLOCKS_PER_ACTOR:
                raise _no_worker_survives(self.stage)
            known = self._count_crashes(missing, crashes)
            for ident in [i for i in missing if crashes[i] >= CRASHES]:
                self._set_aside(ident)
                del missing[ident]
            idle = 0 if known or len(missing) < before else idle + 1
            if idle >= self.IDLE_PASSES:
                raise _no_worker_survives(self.stage)
            size = 1
        self._forget_attempts()
        _await_visible(self.stage, pending)
        return len(pending) - self.aside

    def _pass(self, missing: dict[str, None], size: int) -> None:
        """Asks for every missing id once, in blocks of `size`, and strikes out those that come back."""
        import ray

        ids = list(missing)
        blocks = [{"ids": ids[i : i + size]} for i in range(0, len(ids), size)]
        answers = _dataset(
            blocks,
            {"work": self.work, "stage": self.stage, "threads": self.threads, "commit_every": self.commit_every, "alone": size == 1},
            actors=min(self.actors, len(blocks)),
            cpus=self.threads,
            gpus=self.gpus,
        )
        try:
            for batch in answers:
                self._take(batch, missing)
        except ray.exceptions.RayError as error:
            # Not a block's failure (those are passed over) but the pool's: no actor could be started.
            raise _no_worker_survives(self.stage, error) from error

    def _take(self, batch: pa.Table, missing: dict[str, None]) -> None:
        for answer in batch.to_pylist():
            if answer["error"] is not None:
                raise pickle.loads(answer["error"])
            self._take_ids(zip(answer["ids"], answer["states"], strict=True), missing)

    def _take_ids(self, states: Iterable[tuple[str, str]], missing: dict[str, None]) -> None:
        done = aside = 0
        for ident, state in states:
            if state in (KEPT, ASIDE):
                missing.pop(ident, None)
            if state == ASIDE:
                aside += 1
            elif ident not in self.shown:
                done += 1
            # A picture that is computed again after its block was lost is shown once; once kept it can't come again.
            self.shown.discard(ident) if state == KEPT else self.shown.add(ident)
        self._show(done, aside)

    def _find_recorded(self, missing: dict[str, None]) -> None:
        """Strikes out what a lost block had committed, or set aside, before it could answer."""
        left, reasons = set(self.stage.pending(list(missing))), self.stage.set_aside_reasons()
        found = [i for i in missing if i not in left]
        for ident in found:
            del missing[ident]
        self._show(sum(i not in reasons and i not in self.shown for i in found), sum(i in reasons for i in found))
        self.shown.difference_update(found)

    def _show(self, done: int, aside: int) -> None:
        self.aside += aside
        if self.progress is not None and (done or aside):
            self.progress.advance(done, set_aside=aside)

    def _count_crashes(self, missing: dict[str, None], crashes: Counter[str]) -> int:
        """Adds one for every missing picture that was being tried alone on a node which is still alive."""
        counted = 0
        for path in self.stage.folder.glob(".trying-*"):
            ident, _, node = path.read_text().partition("\n")
            path.unlink(missing_ok=True)
            if ident in missing and node_lives(node):
                crashes[ident] += 1
                counted += 1
        return counted

    def _forget_attempts(self) -> None:
        for path in self.stage.folder.glob(".trying-*"):
            path.unlink(missing_ok=True)

    def _set_aside(self, ident: str) -> None:
        self.stage.set_aside(ident, f"its process ended {CRASHES} times (a crash, or killed for memory)")
        self._show(0, 1)


def block_size(n: int, actors: int, commit_every: int) -> int:
    """Ids of a block: eight blocks for each actor, so that the last one is not waited for long; at most what fills a fragment."""
    return max(1, min(n // (BLOCKS_PER_ACTOR * actors), max(32, commit_every)))


def _dataset(blocks: list[dict[str, list[str]]], arguments: dict[str, Any], *, actors: int, cpus: int, gpus: float) -> Iterator[pa.Table]:
    """Answers to blocks of ids, as they come. A block is one row of Ray Data's, so that it is neither cut nor joined with another."""
    with warnings.catch_warnings():
        # Ray Data announces that max_restarts and its like will be spelt otherwise from 2.64 on.
        warnings.simplefilter("ignore")
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.max_errored_blocks = -1
        context.target_max_block_size = 1  # every answer travels at once, not when megabytes have come together
        for handler in logging.getLogger("ray.data").handlers:
            if not isinstance(handler, logging.FileHandler) and not os.environ.get("SEEDBED_DEBUG"):
                handler.setLevel(logging.CRITICAL)
        data = ray.data.from_items(blocks, override_num_blocks=len(blocks)).map_batches(
            ImageActor,
            fn_constructor_kwargs=arguments,
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1),
            num_cpus=cpus,
            num_gpus=gpus,
            # A lost block is not retried by Ray: the driver asks again for what is really missing, one picture at a time.
            max_restarts=-1,
            max_task_retries=0,
        )
        yield from data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def node_lives(node: str, seconds: float = 30.0) -> bool:
    """Whether a node still takes work. Asked by a task: the list of nodes is late to notice that one is gone."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if node not in {n["NodeID"] for n in ray.nodes() if n["Alive"]}:
        return False
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    try:
        ray.get(ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_present).remote(), timeout=seconds)
    except ray.exceptions.RayError:
        return False
    return True


def _present() -> bool:
    return True


def _await_visible(stage: Stage, ids: Sequence[str], seconds: float = 90.0) -> None:
    """On several nodes a network file system may show other nodes' new files late; a stage must not be finished without them."""
    import ray

    if sum(n["Alive"] for n in ray.nodes()) < 2:
        return
    until = time.monotonic() + seconds
    while hidden := stage.pending(ids):
        if time.monotonic() > until:
            raise not_shared(stage.folder, f"{len(hidden)} records that workers wrote are not seen by the driver")
        time.sleep(1)


def _no_worker_survives(stage: Stage, error: Exception | None = None) -> UserError:
    why = f" ({str(error).strip().splitlines()[-1][:200]})" if error is not None and str(error).strip() else ""
    return UserError(
        f"stage {stage.name}: worker processes end before their first record, whatever picture they get{why}",
        field="--run.actors",
        remedy="they may lack memory: use fewer actors or smaller scales; --run.executor local shows the fault in this process",
    )
