"""Writing that a kill can't spoil, and the lock on an output folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from seedbed.types import UserError


def write_atomically(path: Path, content: bytes) -> None:
    """Written beside, fsync, rename, fsync of the folder: a reader sees the old content or the new one."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as sink:
            sink.write(content)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise unwritten(path, error) from error
    fsync_folder(path.parent)


def unwritten(path: Path, error: OSError) -> UserError:
    remedy = "make room on the disk and start again: finished records are kept"
    return UserError(f"{path.name} can't be written: {error.strerror}", file=path.parent, remedy=remedy)


def fsync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some network file systems refuse it
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def hold(out: Path) -> Iterator[None]:
    """The output folder for one driver at a time (flock); the second is told who has it."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file", file=out, field="--out", remedy="name a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock: IO[str] = open(out / ".lock", "a+")  # noqa: SIM115 (held as long as the run)
    except OSError as error:
        message = f"{out} can't be written: {error.strerror}"
        raise UserError(message, file=out, field="--out", remedy="name a folder that you may write") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip() or "another run"
            message = f"{out} is in use by {holder}"
            raise UserError(message, file=out, field="--out", remedy="wait for its end, or give another --out") from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        lock.flush()
        yield
