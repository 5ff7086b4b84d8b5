"""A training's state on disk: one file, always whole."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from seedbed.artefacts import write_atomically
from seedbed.types import UserError

FORMAT = 1
CHECKPOINT, WEIGHTS = "checkpoint.pt", "weights.pt"


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Written beside, fsync, rename: a kill leaves the old file or the new one. Loadable with weights_only=True."""
    sink = io.BytesIO()
    torch.save(dict(content), sink)
    with on_disk(path):
        write_atomically(path, cast("bytes", sink.getbuffer()))  # no second copy in memory


@contextlib.contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """What the disk refuses is for the user to mend."""
    try:
        yield
    except OSError as error:
        for left in path.parent.glob(f".{path.name}.*.tmp"):
            left.unlink(missing_ok=True)
        remedy = "make room on the disk and start again: training goes on from the last checkpoint"
        raise UserError(f"{path.name} can't be written: {error.strerror}", file=path, remedy=remedy) from error


def load(path: Path, identity: str) -> dict[str, Any] | None:
    """The checkpoint, or None where there is none. One that is damaged (from outside: it was written whole) is put away and None."""
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
    except Exception:
        with contextlib.suppress(FileNotFoundError):  # another worker was first
            os.replace(path, path.with_suffix(".damaged"))
        return None
    if content["identity"] != identity:
        remedy = f"remove {path.parent} or give another --out"
        raise UserError("the checkpoint belongs to a training with other settings", file=path, field="identity", remedy=remedy)
    return content


def plain_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dictionary on the CPU, in C order whatever memory format the training used."""
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in state.items()}


def stamp(folder: Path) -> tuple[int, int] | None:
    """Something that changes with every checkpoint (each is a new file); cheap, the file is not read."""
    with contextlib.suppress(OSError):
        found = os.stat(folder / CHECKPOINT)
        return found.st_ino, found.st_mtime_ns
    return None


@contextlib.contextmanager
def only_writer(folder: Path, patience: float = 60.0) -> Iterator[None]:
    """The folder for one training at a time: workers of a driver that was killed may still live for some seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    lock: IO[str] = open(folder / ".training", "w")  # noqa: SIM115 (held as long as the training)
    until = time.monotonic() + patience
    with lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise UserError(
                        "another training writes into this folder", file=folder, remedy="wait for its end, or end it"
                    ) from error
                time.sleep(0.2)
            except OSError:  # file systems without locks
                break
        for left in (p for name in (CHECKPOINT, WEIGHTS) for p in folder.glob(f".{name}.*.tmp")):
            left.unlink(missing_ok=True)  # of a write that a kill ended
        yield
