"""A study's networks in training: those of several seeds side by side, as many at once as there is room for."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from seedbed.artefacts import Stage
from seedbed.artefacts.records import weights_record
from seedbed.loop import read_log

if TYPE_CHECKING:
    from seedbed.stages import Study


@dataclass(frozen=True)
class Training:
    """One network that a study asks for: the stage that holds it, and its task, made only where there is something to train."""

    name: str
    stage: Stage
    task: Callable[[], Any]
    method: str | None
    seed: int


def train_all(study: Study, trainings: Iterable[Training]) -> None:
    """Every network found, gone on with, or trained from the start.

    They do not depend on one another: what stands beside a training changes neither its bits nor its folder. After one has failed no
    other is begun; those under way end first, then its error is raised. Only the caller's thread speaks to the tracker.
    """
    waiting, running = deque(trainings), dict[str, tuple[Training, str]]()
    ended: SimpleQueue[tuple[Training, BaseException | None]] = SimpleQueue()
    failure: BaseException | None = None
    try:
        while running or (waiting and failure is None):
            while waiting and failure is None and len(running) < study.executor.trainings and waiting[0].stage.key not in running:
                training = waiting.popleft()
                child = study.begin(training.name, training.stage, training.method, training.seed)
                running[training.stage.key] = training, child
                _start(study, training, ended)
            training, error = ended.get()
            if isinstance(error, KeyboardInterrupt):
                raise error
            _, child = running.pop(training.stage.key)
            if error is not None:
                failure = failure or error
                study.failed(child, error)
                continue
            for entry in read_log(training.stage.folder):
                study.tracker.log(log_metrics(entry), step=int(entry.get("step", 0)), child=child)
            study.finished(child, training.name, training.stage, training.method, training.seed)
    except BaseException as error:  # Ctrl-C: the checkpoints stay
        for _, child in running.values():
            study.failed(child, error)
        raise
    if failure is not None:
        raise failure


def _start(study: Study, training: Training, ended: SimpleQueue[tuple[Training, BaseException | None]]) -> None:
    """In a thread of its own where several may run; at once where there is room for one, so that Ctrl-C stops it."""

    def work() -> None:
        try:
            if training.stage.manifest is None:
                with training.stage.alone():
                    if training.stage.manifest is None:
                        _train(study, training)
            ended.put((training, None))
        except BaseException as error:
            ended.put((training, error))

    if study.executor.trainings == 1 or training.stage.manifest is not None:
        work()
    else:
        threading.Thread(target=work, name=f"training {training.stage.key}", daemon=True).start()


def _train(study: Study, training: Training) -> None:
    import torch

    stage, task = training.stage, training.task()
    began = time.perf_counter()
    stage.folder.mkdir(parents=True, exist_ok=True)
    task.open()
    with study.progress.training(
        study.label(training.name, training.method and training.method.upper(), training.seed), task.steps
    ) as line:
        study.executor.train(task, stage.folder, line.report)
    weights = torch.load(stage.folder / "weights.pt", map_location="cpu", weights_only=True)
    entries = read_log(stage.folder)
    if hasattr(task, "finished"):  # what is measured after the last step and belongs to the weights
        weights = task.finished(weights, entries)
    with stage.writer() as writer:
        for name in sorted(weights):
            array = weights[name].detach().contiguous().numpy()
            writer.add(weights_record(name, array, array.dtype.str))
    for entry in entries:
        if "set_aside" in entry:
            stage.set_aside(entry["set_aside"]["id"], entry["set_aside"]["reason"])
    figures = {name: value for entry in entries for name, value in entry.items() if name.startswith("val/")}
    if figures:
        split = study.experiment.classifier.validation_split
        figures |= {"split": split, "images": len(study.experiment.data.select(study.store, split)[0])}
    stage.finish(computed=len(weights), seconds=time.perf_counter() - began, summary={"validation": figures, "steps": task.steps})
    for leftover in ("weights.pt", "checkpoint.pt", "checkpoint.damaged", ".training"):
        (stage.folder / leftover).unlink(missing_ok=True)


def log_metrics(entry: dict[str, Any]) -> dict[str, float]:
    """A log line as MLflow metrics: train/<loss term>, train/lr, val/mAP."""
    out = {f"train/{name}": float(value) for name, value in (entry.get("terms") or {}).items()}
    if "lr" in entry:
        out["train/lr"] = float(entry["lr"])
    return out | {name: float(value) for name, value in entry.items() if name.startswith("val/") and isinstance(value, int | float)}
