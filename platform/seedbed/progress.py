"""How far a stage is: one line per stage, with what is done, what was set aside, the rate and the time left.

On a terminal the line is alive (rich); elsewhere (a file, CI, NO_COLOR, no rich) plain lines are printed at the start, about every
ten seconds, and at the end. All of it goes to stderr: stdout belongs to the results.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TextIO

Mode = Literal["auto", "rich", "plain", "off"]

WINDOW = 60.0
"""Seconds that the rate looks back: long enough for blocks of pictures that come in at once, short enough to follow a change."""


class Line:
    """State and words of one stage's line; how it is shown is the business of the display. Safe to call from several threads."""

    def __init__(self, show: Callable[[Line, str], None], name: str, total: int, done: int, unit: str, clock: Callable[[], float]) -> None:
        self.name, self.total, self.done, self.unit = name, total, done, unit
        self.set_aside = 0
        self.text = ""
        self._show, self._clock = show, clock
        self._opened = self._began = clock()
        self._found = self._before = done
        self._marks: deque[tuple[float, int]] = deque([(self._began, done)])
        self._lock = threading.RLock()

    def advance(self, n: int = 1, set_aside: int = 0) -> None:
        """n more are done; of further ones, `set_aside` were given up. Both count towards the total."""
        with self._lock:
            self.done += n
            self.set_aside += set_aside
            self._mark()
        self._show(self, "step")

    def note(self, text: str) -> None:
        """A word shown at the end of the line (what it waits for, the loss); replaces the last one."""
        with self._lock:
            self.text = text
        self._show(self, "step")

    def _mark(self) -> None:
        now = self._clock()
        self._marks.append((now, self.settled))
        while len(self._marks) > 2 and now - self._marks[1][0] > WINDOW:
            self._marks.popleft()

    @property
    def settled(self) -> int:
        return self.done + self.set_aside

    def rate(self) -> float | None:
        """Per second over the last minute; None before anything came."""
        with self._lock:
            (then, before), now = self._marks[0], self._clock()
            gained = self.settled - before
        return gained / (now - then) if gained > 0 and now > then else None

    def left(self) -> float | None:
        """Seconds left at the present rate."""
        rate = self.rate()
        return None if rate is None else max(self.total - self.settled, 0) / rate

    def state(self, unit: bool = True) -> str:
        """The line without its name: `180 of 437 pictures, 2 set aside, 1.3/s, 3:12 left`."""
        parts = [f"{self.done:,} of {self.total:,}" + (f" {self.unit}" if unit else "")]
        if self.set_aside:
            parts.append(f"{self.set_aside:,} set aside")
        if (rate := self.rate()) is not None:
            parts.append(_rate(rate))
        if self.settled < self.total and (left := self.left()) is not None:
            parts.append(f"{duration(left)} left")
        elif self.settled == self._found < self.total:
            parts.append("waiting for the first")
        if self.text:
            parts.append(self.text)
        return ", ".join(parts)

    def opening(self) -> str:
        if self.total and self._found >= self.total:
            return f"all {self.total:,} {self.unit} found"
        return f"{self.total:,} {self.unit}" + (f", {self._found:,} found from before" if self._found else "")

    def closing(self, problem: str) -> str:
        """Said at the end, with the rate over the whole of it."""
        now, new = self._clock(), self.settled - self._before
        if not problem and self._found >= self.total:
            return self.opening()
        parts = [f"{problem} at {self.settled:,} of {self.total:,} {self.unit}" if problem else f"{self.done:,} {self.unit}"]
        if self._found and self.settled > self._found:
            parts[0] += f", {self.settled - self._found:,} of them"
        parts[0] += f" in {duration(now - self._opened)}"
        if new > 0 and now > self._began:
            parts.append(_rate(new / (now - self._began)))
        if self.set_aside:
            parts.append(f"{self.set_aside:,} set aside")
        if self.text:
            parts.append(self.text)
        return ", ".join(parts)


class TrainingLine(Line):
    """A training's line: counts steps, shows the loss terms, and closes with the validation's figures."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._terms: list[str] = []
        self._validation: list[str] = []
        self._lost: set[str] = set()
        self._heard = False

    def report(self, entry: Mapping[str, Any]) -> None:
        """A line of the training's log (`loop/record.py`): steps with their terms, validations, pictures set aside; else nothing."""
        with self._lock:
            if isinstance(entry.get("terms"), Mapping):
                self._terms = [f"{name} {value:.4f}" for name, value in entry["terms"].items()]
            found = [f"{name} {value:.4g}" for name, value in entry.items() if name.startswith("val/") and isinstance(value, int | float)]
            self._validation = found or self._validation
            if isinstance(entry.get("set_aside"), Mapping):
                self._lost.add(str(entry["set_aside"].get("id")))
            lost = [f"{len(self._lost)} picture{'s' if len(self._lost) > 1 else ''} set aside"] if self._lost else []
            self.text = ", ".join([*self._terms, *self._validation, *lost])
            if "step" in entry:
                self._reach(min(int(entry["step"]), self.total))
        self._show(self, "step")

    def _reach(self, step: int) -> None:
        if not self._heard:  # a resumed training starts to speak in the middle: what was done before it is no work of this call
            self._heard, self._before, self._began = True, step, self._clock()
            self._marks = deque([(self._began, step)])
        self.done = max(self.done, step)
        self._mark()


class Progress:
    """The lines of a study. `with progress.stage("maps rib", total=437, done=120) as line: line.advance()`."""

    def __init__(
        self,
        mode: Mode = "auto",
        *,
        stream: TextIO | None = None,
        interval: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stream = stream if stream is not None else sys.stderr
        self.interval, self._clock = interval, clock
        self.mode = _resolve(mode, self.stream)
        self._lock = threading.RLock()
        self._spoke: dict[int, float] = {}
        self._live: Any = None
        self._tasks: dict[int, Any] = {}

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0, unit: str = "pictures") -> Iterator[Line]:
        """The line of per-picture work; `done` of the total were found from an earlier call."""
        yield from self._run(Line(self._show, name, total, done, unit, self._clock))

    @contextmanager
    def training(self, name: str, steps: int, done: int = 0) -> Iterator[TrainingLine]:
        """The line of a training; `done` steps were found in a checkpoint."""
        yield from self._run(TrainingLine(self._show, name, steps, done, "steps", self._clock))

    def _run(self, line: Any) -> Iterator[Any]:
        self._show(line, "open")
        try:
            yield line
        except BaseException as error:
            self._show(line, "stopped" if isinstance(error, KeyboardInterrupt | GeneratorExit) else "failed")
            raise
        self._show(line, "close")

    def _show(self, line: Line, event: str) -> None:
        if self.mode == "off":
            return
        with self._lock:
            if self.mode == "rich":
                self._show_live(line, event)
            else:
                self._show_plain(line, event)

    def _show_plain(self, line: Line, event: str) -> None:
        now = self._clock()
        if event == "step" and now - self._spoke.get(id(line), -math.inf) < self.interval:
            return
        self._spoke[id(line)] = now
        if event == "open":
            words = line.opening()
        elif event == "step":
            words = line.state()
        else:
            self._spoke.pop(id(line), None)
            words = line.closing("" if event == "close" else event)
            if words == line.opening():  # all was found: said when it began
                return
        print(f"{line.name:<18} {words}", file=self.stream, flush=True)

    def _show_live(self, line: Line, event: str) -> None:
        if event == "open":
            if self._live is None:
                self._live = _live(self.stream)
                self._live.start()
            self._tasks[id(line)] = self._live.add_task(line.name, total=line.total or 1, completed=line.settled, words=line.opening())
            return
        task = self._tasks.get(id(line))
        if self._live is None or task is None:
            return
        if event == "step":
            self._live.update(task, completed=line.settled, words=line.state(unit=False))
            return
        # A finished line is printed once and for all; only what still moves stays alive beneath it.
        self._live.remove_task(self._tasks.pop(id(line)))
        _print_closing(self._live.console, line, event)
        if not self._tasks:
            self._live.stop()
            self._live = None


def _live(stream: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column
    from rich.text import Text

    class Words(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(task.fields["words"], no_wrap=True, overflow="ellipsis")

    return RichProgress(
        TextColumn("  {task.description:<18}", markup=False),
        BarColumn(bar_width=12, complete_style="green", finished_style="green", table_column=Column(width=12, no_wrap=True)),
        Words(),
        console=Console(file=stream),
        refresh_per_second=8,
        transient=True,
    )


def _print_closing(console: Any, line: Line, event: str) -> None:
    from rich.text import Text

    mark, style = ("✓", "green") if event == "close" else ("✗", "red")
    words = line.closing("" if event == "close" else event)
    console.print(Text.assemble((f"{mark} ", style), f"{line.name:<18} ", (words, "" if event == "close" else style)), soft_wrap=True)


def _resolve(mode: Mode, stream: TextIO) -> Mode:
    if mode != "auto":
        return mode
    environment = os.environ
    if not stream.isatty() or environment.get("CI") or environment.get("NO_COLOR") or environment.get("TERM") == "dumb":
        return "plain"
    try:
        import rich.progress  # noqa: F401
    except ImportError:
        return "plain"
    return "rich"


def _rate(rate: float) -> str:
    """Below one in ten seconds the time of one says more."""
    if rate >= 100:
        return f"{rate:,.0f}/s"
    return f"{rate:.1f}/s" if rate >= 0.1 else f"{1 / rate:.0f} s each"


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3:07, 2:03:07."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
