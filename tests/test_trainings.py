"""Trainings side by side: room, order, failures, Ctrl-C. The networks are made up; one thread each, as with Ray."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from seedbed.artefacts import WEIGHTS, Stage
from seedbed.progress import Progress
from seedbed.stages import Study
from seedbed.trainings import Training, train_all

WAIT = 20.0


class Tracker:
    def __init__(self) -> None:
        self.ended: dict[str, str] = {}
        self.threads: set[str] = set()

    def stage(self, name: str, tags: Any) -> str:
        self.threads.add(threading.current_thread().name)
        return name

    def log(self, *_: Any, **__: Any) -> None:
        self.threads.add(threading.current_thread().name)

    def end_stage(self, child: str, status: str = "FINISHED") -> None:
        self.ended[child] = status


class Executor:
    """Leaves weights that hold the task's number; `meet` of them have to be under way before any ends."""

    def __init__(self, trainings: int, meet: int = 1) -> None:
        self.trainings, self.running, self.most = trainings, 0, 0
        self.calls: list[int] = []
        self.barrier = threading.Barrier(meet)
        self.lock = threading.Lock()
        self.free = threading.Event()

    def train(self, task: Any, folder: Path, report: Any) -> None:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
            self.calls.append(task.number)
        try:
            self.barrier.wait(WAIT)
            if task.wait:
                assert self.free.wait(WAIT)
            if task.error is not None:
                self.free.set()
                raise task.error
            torch.save({"w": torch.tensor([float(task.number)])}, folder / "weights.pt")
        finally:
            with self.lock:
                self.running -= 1


def study(executor: Executor) -> Any:
    made = object.__new__(Study)
    made.experiment = SimpleNamespace(random_seeds=range(3), seed=0)  # type: ignore[assignment]
    made.executor, made.tracker, made.summaries, made.progress = executor, Tracker(), [], Progress("off")  # type: ignore[assignment]
    return made


def training(out: Path, number: int, error: BaseException | None = None, wait: bool = False, key: str = "") -> Training:
    task = SimpleNamespace(number=number, error=error, wait=wait, steps=1, open=lambda: None)
    return Training("classifier", Stage(out, "classifier", key or f"{number:016x}", WEIGHTS), lambda: task, None, number)


def test_as_many_at_once_as_there_is_room_for(tmp_path: Path) -> None:
    """The barrier lets nobody through before two are there: one after the other would never end."""
    executor = Executor(trainings=2, meet=2)
    asked = [training(tmp_path, n) for n in range(4)]
    train_all(made := study(executor), asked)
    assert executor.most == 2 and sorted(executor.calls) == [0, 1, 2, 3]
    assert all(t.stage.manifest is not None and not (t.stage.folder / "weights.pt").exists() for t in asked)
    assert sorted(s.key for s in made.summaries) == sorted(t.stage.key for t in asked)
    assert made.tracker.threads == {threading.current_thread().name}, "the tracker hears from one thread only"


def test_room_for_one_stays_in_this_thread_and_in_order(tmp_path: Path) -> None:
    executor = Executor(trainings=1)
    before = threading.active_count()
    train_all(study(executor), [training(tmp_path, n) for n in (2, 0, 1)])
    assert executor.calls == [2, 0, 1] and executor.most == 1 and threading.active_count() == before


def test_what_is_whole_or_shared_is_trained_once(tmp_path: Path) -> None:
    executor = Executor(trainings=2)
    shared = [training(tmp_path, n, key="f" * 16) for n in range(3)]
    train_all(made := study(executor), shared)
    assert len(executor.calls) == 1 and len(made.summaries) == 1 and len(made.tracker.ended) == 3
    train_all(made := study(executor), shared)
    assert len(executor.calls) == 1 and made.summaries[0].computed == 0


def test_a_failure_lets_the_others_end_and_begins_no_more(tmp_path: Path) -> None:
    executor = Executor(trainings=2, meet=2)
    asked = [training(tmp_path, 0, error=ValueError("diverged")), training(tmp_path, 1, wait=True), training(tmp_path, 2)]
    made = study(executor)
    with pytest.raises(ValueError, match="diverged"):
        train_all(made, asked)
    assert sorted(executor.calls) == [0, 1] and asked[1].stage.manifest is not None
    assert made.tracker.ended == {"classifier 0": "FAILED", "classifier 1": "FINISHED"}


def test_ctrl_c_marks_what_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Executor(trainings=2, meet=2)
    made = study(executor)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    made.tracker.log = interrupted  # comes while the main thread takes up what has ended
    with pytest.raises(KeyboardInterrupt):
        train_all(made, [training(tmp_path, 0), training(tmp_path, 1, wait=True)])
    executor.free.set()
    assert made.tracker.ended["classifier 1"] == "KILLED"


def test_ctrl_c_in_the_only_training(tmp_path: Path) -> None:
    made = study(Executor(trainings=1))
    with pytest.raises(KeyboardInterrupt):
        train_all(made, [training(tmp_path, 0, error=KeyboardInterrupt()), training(tmp_path, 1)])
    assert made.tracker.ended == {"classifier 0": "KILLED"} and made.executor.calls == [0]
