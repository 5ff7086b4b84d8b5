"""Ray Train runs the training loop on N workers.

Ray Train starts the workers, forms their process group and notices when one is lost. State is the loop's own: the checkpoint lies in the
output folder, which every node sees, and not in Ray's storage, whose runs of one name resume one another.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from seedbed.loop import Task, WorkerLost, backend_for, data_parallel, follow, persist, train
from seedbed.loop.parallel import TRANSIENT
from seedbed.loop.record import Report
from seedbed.types import UserError


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def train_on_ray(
    task: Task,
    folder: Path | str,
    *,
    workers: int = 1,
    device: str = "cpu",
    threads: int = 1,
    report: Report | None = None,
    say: Callable[[str], None] = _say,
) -> None:
    """Trains with `workers` workers of the Ray that is running, to the end; leaves `folder/weights.pt`.

    The same bits as `loop.train_locally` with as many workers. Lost workers are replaced without limit while checkpoints advance; after
    three restarts without a new one Ray's error is raised. What a user can mend comes out as the UserError that the worker raised.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # seconds until an end or a loss is noticed; Ray's 2 s are idle time
    import ray

    if not ray.is_initialized():
        raise RuntimeError("Ray is not running: runtime.cluster.connect comes first")
    _refuse_missing_gpus(ray, workers, device)
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with follow(folder, report):
        persist(partial(_fit, task, folder, workers, device, threads), folder, say)


def _refuse_missing_gpus(ray: Any, workers: int, device: str) -> None:
    """Ray Train would ask for them for ever."""
    there = ray.cluster_resources().get("GPU", 0)
    if device == "cuda" and there < workers:
        message = f"{workers} training workers want a GPU each, the cluster has {there:g}"
        raise UserError(
            message, field="--run.workers", remedy="ask for fewer workers, or for --run.device cpu (cuda needs one GPU a worker)"
        )


def _fit(task: Task, folder: Path, workers: int, device: str, threads: int) -> None:
    """One attempt. Restarts are ours: Ray Train counts failures, not failures without progress."""
    from ray.exceptions import RayActorError
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    storage = folder / ".ray"
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"task": task, "folder": str(folder), "device": device, "threads": threads},
        torch_config=TorchConfig(backend=backend_for(device)),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=device == "cuda", resources_per_worker=_resources(device, threads)),
        run_config=RunConfig(
            name=f"train-{uuid.uuid4().hex}",  # a name used before would be resumed, silently
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )
    try:
        with _own_interrupt():
            trainer.fit()
    except TrainingFailedError as error:
        raise _cause(error) from error
    except RayActorError as error:  # the actor that watches over the workers
        raise WorkerLost(str(error)) from error
    finally:
        shutil.rmtree(storage, ignore_errors=True)


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """Ray Train ends its workers on Ctrl-C, then the whole program with status 0, and keeps that up after the training. Here Ctrl-C is
    KeyboardInterrupt, then as ever."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


def _resources(device: str, threads: int) -> dict[str, float]:
    return {"CPU": float(threads), **({"GPU": 1.0} if device == "cuda" else {})}


def _cause(error: BaseException) -> BaseException:
    """What lies behind Ray's error: a worker's UserError first, then a lost worker, then any other error of a worker."""
    failures = [failure for _, failure in sorted((getattr(error, "worker_failures", None) or {}).items())]
    for failure in failures:
        if isinstance(failure, UserError):
            return failure
    # An error of Ray's own stands for a worker that did not raise one: it was lost.
    bugs = [failure for failure in failures if not type(failure).__module__.startswith("ray.") and not isinstance(failure, TRANSIENT)]
    if bugs and len(bugs) == len(failures):
        return bugs[0]
    return WorkerLost(str(failures[0] if failures else error))


def _worker(config: dict[str, Any]) -> None:
    """What a worker runs."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = str(ray.train.torch.get_device()) if config["device"] == "cuda" else "cpu"
    synchronise = data_parallel if world > 1 else None
    train(config["task"], config["folder"], rank=rank, world=world, device=device, threads=config["threads"], synchronise=synchronise)
