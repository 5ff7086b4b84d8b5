"""The plain Executor: this process, no Ray. For the debugger, unit tests and machines without Ray; the same bits as with it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from seedbed import loop, progress
from seedbed.artefacts import Stage
from seedbed.types import UserError


class ImageWork(Protocol):
    """Work on one picture at a time. Pickled to a worker, opened there once, then called with ids."""

    light: ClassVar[bool]
    """Milliseconds a picture and no network: few of them are not worth starting actors for."""

    def open(self) -> Callable[[str], dict[str, Any]]:
        """What maps an id to a record of the stage's schema (without `hash`); raising sets the picture aside."""
        ...


class Shown(Protocol):
    """The one line of a stage in the terminal (`progress.py`)."""

    def advance(self, n: int = 1, set_aside: int = 0) -> None: ...


class Executor(Protocol):
    """Who does the work: this process, or actors and workers of a Ray cluster. Nothing below the pipeline knows which."""

    device: str
    trainings: int
    """How many trainings there is room for at once; with more than one, `train` is called from several threads."""

    def map_images(self, work: ImageWork, ids: Sequence[str], stage: Stage, shown: Shown) -> int:
        """Records of the ids that have none yet, committed to the stage; returns how many were computed."""
        ...

    def train(self, task: loop.Task, folder: Path, report: Any = None) -> None:
        """Runs the training loop to its end, from its checkpoint where there is one; leaves `folder/weights.pt`; `report` gets the log."""
        ...


def make_missing(executor: Executor, work: ImageWork, ids: Sequence[str], stage: Stage, bars: progress.Progress, label: str) -> int:
    """The records that the stage lacks, with its line in the terminal; how many were computed.

    Raises UserError, and leaves no stage behind, when not one picture of all came out.
    """
    todo = stage.pending(ids)
    with bars.stage(label, total=len(ids), done=len(ids) - len(todo)) as line:
        computed = executor.map_images(work, ids, stage, line) if todo else 0
    aside = stage.set_aside_reasons()
    if ids and aside and not len(stage.records()):
        ident, why = next(iter(aside.items()))
        stage.discard()
        raise UserError(f"every picture of {label} failed; {ident}: {why}", field=stage.name, remedy="mend the cause and start again")
    return computed


class Tracker(Protocol):
    """Who keeps the record: MLflow, or nobody."""

    def start(self, experiment: str, run_name: str | None, params: dict[str, Any], tags: dict[str, str]) -> None: ...

    def stage(self, name: str, tags: dict[str, str], params: dict[str, Any] | None = None) -> str: ...

    def log(self, metrics: dict[str, float], step: int | None = None, child: str | None = None) -> None: ...

    def artifact(self, path: Path, child: str | None = None) -> None: ...

    def end_stage(self, child: str, status: str = "FINISHED") -> None: ...

    def end(self, status: str = "FINISHED") -> None: ...


class NullTracker:
    """Keeps no record; the output folder has it all."""

    def start(self, experiment: str, run_name: str | None, params: dict[str, Any], tags: dict[str, str]) -> None:
        pass

    def stage(self, name: str, tags: dict[str, str], params: dict[str, Any] | None = None) -> str:
        return ""

    def log(self, metrics: dict[str, float], step: int | None = None, child: str | None = None) -> None:
        pass

    def artifact(self, path: Path, child: str | None = None) -> None:
        pass

    def end_stage(self, child: str, status: str = "FINISHED") -> None:
        pass

    def end(self, status: str = "FINISHED") -> None:
        pass


def reason(error: BaseException) -> str:
    """Why a picture was set aside, in one line: the reason belongs to the record and must not depend on who did the work."""
    if isinstance(error, UserError):
        return error.message
    return f"{type(error).__name__}: {error}".splitlines()[0][:500]


def local_device(wanted: str) -> str:
    """auto, cpu or cuda as this process can have it; cuda without any raises UserError."""
    import torch

    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise UserError("there is no cuda device", field="--run.device", remedy="say --run.device auto or cpu")
    return "cuda" if there and wanted != "cpu" else "cpu"


class LocalExecutor:
    """Everything in this process, one picture after the other."""

    trainings = 1

    def __init__(self, *, device: str, threads: int, workers: int, commit_every: int) -> None:
        self.device, self.threads, self.workers, self.commit_every = device, threads, workers, commit_every

    def map_images(self, work: ImageWork, ids: Sequence[str], stage: Stage, shown: Shown) -> int:
        todo = stage.pending(ids)
        if not todo:
            return 0
        computed = 0
        with _threads(self.threads), stage.writer(self.commit_every) as writer:
            call = work.open()
            for ident in todo:
                try:
                    record = call(ident)
                except Exception as error:  # one bad picture never ends a run
                    stage.set_aside(ident, reason(error))
                    shown.advance(0, set_aside=1)
                    continue
                writer.add(record)
                computed += 1
                shown.advance()
        return computed

    def train(self, task: loop.Task, folder: Path, report: Any = None) -> None:
        with _threads(self.threads):
            loop.train_locally(task, folder, workers=self.workers, device=self.device, threads=self.threads, report=report)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Threads of this process as a worker would have them: their number changes the last bits of a gradient on a CPU."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
