"""The log of a training: JSON lines by the first worker, cut back to the checkpoint on resumption, so that no step stands in it twice.

First line: `steps`, `facts`. Then every `log_every` updates: `step`, `steps`, `terms` (means over those updates and all workers), `lr`,
`seconds`, `eta` (seconds left). Validations: `step`, `val/loss`, `val/mAP`. Pictures that were left out: `set_aside` (`id`, `reason`).
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seedbed.loop.checkpoint import on_disk

LOG = "log.jsonl"
Report = Callable[[Mapping[str, Any]], None]


class Log:
    """Appends lines; only the first worker has one that writes."""

    def __init__(self, path: Path | None, at: int, report: Report | None) -> None:
        self._report, self._path = report, path
        self._sink = None
        if path is not None:
            self._sink = open(path, "a+b")  # noqa: SIM115 (closed by close)
            self._sink.truncate(min(at, os.path.getsize(path)))

    def write(self, line: Mapping[str, Any]) -> None:
        if self._sink is not None:
            assert self._path is not None
            with on_disk(self._path):
                self._sink.write(json.dumps(line, allow_nan=False).encode() + b"\n")
                self._sink.flush()
            if self._report is not None:
                self._report(line)

    def safe(self) -> int:
        """Its length, once all of it is on the disk."""
        if self._sink is None:
            return 0
        assert self._path is not None
        with on_disk(self._path):
            os.fsync(self._sink.fileno())
        return self._sink.tell()

    def close(self) -> None:
        if self._sink is not None:
            self._sink.close()


class Meter:
    """The terms of the steps since the last look at them. They stay on the device until then, so that a step does not wait for its loss."""

    def __init__(self, pending: list[list[float]] | None = None) -> None:
        self.names: list[str] = []
        self._unread: list[tuple[int, float, Tensor]] = []
        self.window: list[list[float]] = pending or []
        """Read but not yet logged: one row per step."""

    def add(self, step: int, lr: float, names: list[str], values: Tensor) -> None:
        self.names = names
        self._unread.append((step, lr, values))

    def read(self) -> tuple[list[int], list[float], list[list[float]]]:
        """Steps, learning rates and terms, (steps, terms), since the last reading."""
        steps = [s for s, _, _ in self._unread]
        rates = [lr for _, lr, _ in self._unread]
        values = torch.stack([v for _, _, v in self._unread]).tolist() if self._unread else []
        self._unread = []
        return steps, rates, values

    def mean(self) -> dict[str, float]:
        """The window's mean, and the window is empty again."""
        rows, self.window = self.window, []
        return {name: math.fsum(row[i] for row in rows) / len(rows) for i, name in enumerate(self.names)}


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a training's log; a last line that a kill tore is left out."""
    path = Path(folder) / LOG
    if not path.exists():
        return []
    lines = []
    for line in path.read_bytes().split(b"\n"):
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


@contextmanager
def follow(folder: Path, report: Report | None, every: float = 0.5) -> Iterator[None]:
    """Reports the lines that appear in a training's log while the block runs, whoever writes them; from a thread, then the rest."""
    if report is None:
        yield
        return
    path, stop = Path(folder) / LOG, threading.Event()
    at = os.path.getsize(path) if path.exists() else 0

    def pass_on() -> None:
        nonlocal at
        if not path.exists():
            return
        at = min(at, os.path.getsize(path))  # a resumed training has cut it back
        with open(path, "rb") as source:
            source.seek(at)
            content = source.read()
        whole = content[: content.rfind(b"\n") + 1]
        at += len(whole)
        for line in whole.splitlines():
            with suppress(ValueError):  # torn where a resumed training cut it
                report(json.loads(line))

    def watch() -> None:
        while not stop.wait(every):
            pass_on()

    thread = threading.Thread(target=watch, name="follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        pass_on()
