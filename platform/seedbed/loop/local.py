"""Training without Ray: in this process, or in several processes of this machine."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

from seedbed.loop.parallel import WorkerLost, backend_for, data_parallel, persist
from seedbed.loop.record import Report, follow
from seedbed.loop.run import train
from seedbed.loop.task import Task
from seedbed.types import UserError

WORKER = "from seedbed.loop.local import work; work()"


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
        persist(attempt, folder, lambda text: print(text, file=sys.stderr, flush=True))


def _group(task: Task, folder: Path, workers: int, device: str, threads: int) -> None:
    """Starts the workers and waits for all of them; the first error ends the others and is raised here.

    Plain processes, not multiprocessing's: those would run the study's script again, which need not be written for that.
    """
    with tempfile.TemporaryDirectory() as meeting:
        Path(meeting, "task").write_bytes(pickle.dumps((sys.path, pickle.dumps((task, folder, device, threads)))))
        command = [sys.executable, "-c", WORKER, meeting, str(workers), str(os.getpid())]
        processes = [subprocess.Popen([*command, str(rank)], stdin=subprocess.DEVNULL) for rank in range(workers)]
        try:
            _await(processes, Path(meeting))
        finally:
            for process in processes:
                process.kill()  # no harm to one that has ended
                process.wait()


def _await(processes: list[subprocess.Popen[bytes]], meeting: Path) -> None:
    """Returns when every worker is done. When one fails the others soon fail for its sake: of what comes within two seconds, an error
    that a user can mend is raised first, then the loss of a worker, then any other error."""
    waiting = dict(enumerate(processes))
    errors: list[BaseException] = []
    until: float | None = None
    while waiting and (until is None or time.monotonic() < until):
        time.sleep(0.05)
        for rank, process in list(waiting.items()):
            if process.poll() is None:
                continue
            del waiting[rank]
            answer = meeting / f"answer-{rank}"
            error = (
                pickle.loads(answer.read_bytes()) if answer.exists() else WorkerLost(f"worker {rank} ended with status {process.poll()}")
            )
            if error is not None:
                errors.append(error)
                until = until or time.monotonic() + 2
    for kind in (UserError, WorkerLost, BaseException):
        for error in errors:
            if isinstance(error, kind):
                raise error


def work() -> None:
    """A worker's process, from its command line: meeting place, number of workers, the driver's process, own rank."""
    meeting, world, parent, rank = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    sys.path[:], content = pickle.loads((meeting / "task").read_bytes())
    error: BaseException | None = None
    try:
        _train(meeting, rank, world, *pickle.loads(content))
    except BaseException as raised:
        raised.add_note(f"in training worker {rank}:\n{traceback.format_exc()}")
        error = raised
    answer = meeting / f".answer-{rank}"
    answer.write_bytes(_pickled(error))
    answer.rename(meeting / f"answer-{rank}")
    os._exit(0 if error is None else 1)  # the others may wait for this one in a collective: no farewells


def _train(meeting: Path, rank: int, world: int, task: Task, folder: Path, device: str, threads: int) -> None:
    import torch
    import torch.distributed as dist

    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = backend_for(device)
    if device == "cuda":
        gpus = torch.cuda.device_count()
        device = f"cuda:{rank % gpus}"
        torch.cuda.set_device(device)
        backend = backend if world <= gpus else "gloo"  # nccl refuses two workers on one GPU
    dist.init_process_group(backend, init_method=f"file://{meeting}/rendezvous", rank=rank, world_size=world)
    train(task, folder, rank=rank, world=world, device=device, threads=threads, synchronise=data_parallel)


def _pickled(error: BaseException | None) -> bytes:
    try:
        content = pickle.dumps(error)
        pickle.loads(content)
        return content
    except Exception:
        notes: Any = getattr(error, "__notes__", ())
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}\n" + "\n".join(notes)))


def _end_with(parent: int) -> None:
    """A worker whose driver was killed must not go on writing."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
