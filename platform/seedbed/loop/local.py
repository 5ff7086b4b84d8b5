"""Training without Ray: in this process, or in several processes of this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import sys
import tempfile
import threading
import time
import traceback
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from seedbed.loop.parallel import WorkerLost, backend_for, data_parallel, persist
from seedbed.loop.record import Report, follow
from seedbed.loop.run import train
from seedbed.loop.task import Task
from seedbed.types import UserError


def train_locally(
    task: Task, folder: Path | str, *, workers: int = 1, device: str = "cpu", threads: int = 1, report: Report | None = None
) -> None:
    """`train` in this process, or with `workers` processes of this machine; leaves `folder/weights.pt`.

    The same bits as `runtime.train.train_on_ray` with as many workers. `report` gets the lines of the log as they are written.
    """
    folder = Path(folder).absolute()
    if workers == 1:
        train(task, folder, device=device, threads=threads, report=report)
        return
    with follow(folder, report):
        attempt = partial(_group, task, folder, workers, device, threads)
        persist(attempt, folder, (WorkerLost,), say=lambda text: print(text, file=sys.stderr))


def _group(task: Task, folder: Path, workers: int, device: str, threads: int) -> None:
    """Starts the workers and waits for all of them; the first error ends the others and is raised here."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as meeting:
        processes, pipes = [], []
        for rank in range(workers):
            ours, theirs = context.Pipe(duplex=False)
            arguments = (rank, workers, task, folder, device, threads, f"file://{meeting}/rendezvous", theirs, os.getpid())
            process = context.Process(target=_worker, args=arguments, name=f"train-{rank}", daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        failed = True
        try:
            _await(dict(zip(pipes, processes, strict=True)))
            failed = False
        finally:
            for process in processes:
                process.join(timeout=0.0 if failed else 60.0)
                if process.is_alive():
                    process.kill()
                process.join()


def _await(waiting: dict[Connection, Any]) -> None:
    """Returns when every worker is done. When one fails the others soon fail for its sake: of what comes within two seconds, an error
    that a user can mend is raised first, then the loss of a worker, then any other error."""
    errors: list[BaseException] = []
    until: float | None = None
    while waiting and (until is None or time.monotonic() < until):
        for pipe in wait(list(waiting), timeout=None if until is None else max(until - time.monotonic(), 0)):
            assert isinstance(pipe, Connection)
            process = waiting.pop(pipe)
            try:
                error = pipe.recv()
            except EOFError:
                process.join()
                error = WorkerLost(f"{process.name} ended with status {process.exitcode}")
            if error is not None:
                errors.append(error)
                until = until or time.monotonic() + 2
    for kind in (UserError, WorkerLost, BaseException):
        for error in errors:
            if isinstance(error, kind):
                raise error


def _worker(
    rank: int, world: int, task: Task, folder: Path, device: str, threads: int, rendezvous: str, pipe: Connection, parent: int
) -> None:
    import torch
    import torch.distributed as dist

    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if device == "cuda":
        device = f"cuda:{rank % torch.cuda.device_count()}"
        torch.cuda.set_device(device)
    shared_gpu = device.startswith("cuda") and world > torch.cuda.device_count()  # which nccl refuses
    error: Any = None
    try:
        dist.init_process_group("gloo" if shared_gpu else backend_for(device), init_method=rendezvous, rank=rank, world_size=world)
        train(task, folder, rank=rank, world=world, device=device, threads=threads, synchronise=data_parallel)
    except BaseException as raised:
        raised.add_note(f"in training worker {rank}:\n{traceback.format_exc()}")
        error = raised
    with contextlib.suppress(BrokenPipeError):
        pipe.send(_sendable(error))
    pipe.close()
    if error is None:
        dist.destroy_process_group()
    else:
        os._exit(1)  # the others wait in a collective: they are ended by the parent


def _sendable(error: BaseException | None) -> BaseException | None:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}\n" + "\n".join(getattr(error, "__notes__", ())))
    return error


def _end_with(parent: int) -> None:
    """A worker whose driver was killed must not go on writing."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
