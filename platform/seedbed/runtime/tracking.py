"""The record in MLflow: one parent run per call, a child per stage. Only the driver writes to it, and it never stops a run.

Everything is an event. As long as the tracking store answers, events are applied at once; from the first failure on they are kept in
`mlflow_pending.jsonl` of the output folder and applied at the end, or at the next start.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import math
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from seedbed.provenance import git_commit
from seedbed.runtime.mlflow_delivery import Delivery, Event, deliver_pending, now, refused
from seedbed.runtime.mlflow_store import answers, default_address, open_database, quiet_mlflow, settle, tracking_address
from seedbed.runtime.mlflow_ui import open_ui

__all__ = ["MlflowTracker", "open_ui"]

PARAM_LIMIT, TAG_LIMIT, NAME_LIMIT = 6000, 5000, 250
FLUSH_SECONDS, FLUSH_METRICS = 2.0, 500


def say_on_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class MlflowTracker:
    """The Tracker of a run. `out`: its output folder; `tracking_uri`: see `tracking_address` (a bad one raises UserError here)."""

    def __init__(self, out: Path, tracking_uri: str = "", say: Callable[[str], None] = say_on_stderr) -> None:
        self.out, self.say = Path(out).absolute(), say
        self.uri = tracking_address(self.out, tracking_uri)
        self.pending, self.opened = self.out / "mlflow_pending.jsonl", self.out / ".mlflow_open.json"
        self.delivery: Delivery | None = None
        self.parent = ""
        self._open: list[str] = []
        self._metrics: dict[str, list[list[Any]]] = {}
        self._flushed = time.monotonic()
        self._odd: set[str] = set()
        self._told: set[str] = set()
        self._earlier: dict[str, tuple[str, int]] = {}
        self.experiment = ""

    def start(self, experiment: str, run_name: str | None, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Opens the store, brings an earlier run's record in order, and begins the parent run."""
        quiet_mlflow()
        self.out.mkdir(parents=True, exist_ok=True)
        if self.uri.startswith("sqlite:"):
            open_database(self.uri, self.out)
        self._put_earlier_runs_in_order()
        if answers(self.uri):
            self.delivery = Delivery(self.out)
        else:
            self._go_offline("nobody answers")
        own = {"seedbed.kind": "study", "mlflow.source.name": Path(sys.argv[0]).name or "python", "mlflow.source.type": "LOCAL"}
        own["mlflow.user"] = _user()
        if commit := git_commit().get("commit"):
            own["mlflow.source.git.commit"] = commit
        self.parent = self._begin(experiment, run_name, None, {**own, **tags}, params)
        self.experiment = experiment

    def stage(self, name: str, tags: Mapping[str, str], params: Mapping[str, Any] | None = None) -> str:
        """Begins a child of the parent run; returns what `log`, `artifact` and `end_stage` call it by."""
        own = {"seedbed.kind": "stage"} | ({"seedbed.stage": name} if "seedbed.kind" not in tags else {})
        return self._begin(self.experiment, name, self.parent, {**own, **tags}, params or {})

    def log(self, metrics: Mapping[str, float], step: int | None = None, child: str | None = None) -> None:
        """Metrics of the parent or of a child, sent in batches. What is not finite becomes a tag that names it, not a point of a curve."""
        run, moment = child or self.parent, now()
        for name, value in metrics.items():
            number = float(value)
            if math.isfinite(number):
                self._metrics.setdefault(run, []).append([safe_name(name), number, moment, step or 0])
            elif name not in self._odd:
                self._odd.add(name)
                where = "" if step is None else f" at step {step}"
                self._emit({"do": "tags", "run": run, "tags": {safe_name(f"seedbed.not_finite.{name}"): f"{number}{where}"}})
        waiting = sum(map(len, self._metrics.values()))
        if waiting >= FLUSH_METRICS or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush()

    def artifact(self, path: Path, child: str | None = None) -> None:
        """A file, or a folder with all in it, as an artifact of the parent or of a child."""
        path = Path(path).absolute()
        shown = str(path.relative_to(self.out)) if path.is_relative_to(self.out) else str(path)
        self._emit({"do": "artifact", "run": child or self.parent, "path": shown})

    def end_stage(self, child: str, status: str = "FINISHED") -> None:
        self._flush()
        self._emit({"do": "end", "run": child, "status": status, "time": now()})
        if child in self._open:
            self._open.remove(child)
            self._note_open()

    def end(self, status: str = "FINISHED") -> None:
        """Ends the parent, and with it what is still open; then delivers what a silent store could not take, if it can now."""
        if not self.parent:
            return
        for run in reversed(self._open.copy()):
            self.end_stage(run, status)
        self.parent = ""
        if self.delivery is None:
            left = deliver_pending(self.pending, self.out)
            where = f"kept in {self.pending}; the next start with this folder delivers it"
            self.say(f"MLflow: the record is {where if left else f'now delivered to {self._shown_uri()}'}")
        settle(self.uri)

    def _begin(self, experiment: str, name: str | None, parent: str | None, tags: Mapping[str, str], params: Mapping[str, Any]) -> str:
        run = uuid.uuid4().hex
        self._open.append(run)
        self._note_open()  # before it exists: a kill right after its creation must find it here
        self._emit(
            {
                "do": "run",
                "run": run,
                "uri": self._kept_uri(),
                "experiment": experiment,
                "name": name,
                "parent": parent,
                "time": now(),
                "tags": {safe_name(k): cut(str(v), TAG_LIMIT) for k, v in tags.items()},
                "params": safe_params(params),
            }
        )
        return run

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        waiting, self._metrics = self._metrics, {}
        for run, metrics in waiting.items():
            self._emit({"do": "metrics", "run": run, "metrics": metrics})

    def _emit(self, event: Event) -> None:
        if not event["run"]:
            return
        if self.delivery is not None:
            try:
                self.delivery.apply(event)
                if self.opened.exists():
                    os.utime(self.opened)  # the time of the last sign of life, should we be killed
                return
            except Exception as error:  # whatever is wrong with the record, the run goes on
                if refused(error):
                    self._tell(f"MLflow at {self._shown_uri()} refuses a part of the record ({_first_line(error)}); the run goes on")
                    return
                self._go_offline(_first_line(error))
        with open(self.pending, "a") as sink:
            sink.write(json.dumps(event) + "\n")

    def _go_offline(self, why: str) -> None:
        known = self.delivery.known if self.delivery is not None else {}
        self.delivery = None
        with open(self.pending, "a") as sink:
            for run, ident in known.items():
                sink.write(json.dumps({"do": "known", "run": run, "uri": self._kept_uri(), "id": ident}) + "\n")
        self._tell(f"MLflow at {self._shown_uri()} does not take the record ({why}); the run goes on and keeps it in {self.pending}")

    def _tell(self, text: str) -> None:
        """Once for each kind of trouble."""
        kind = text.partition("(")[0]
        if kind not in self._told:
            self._told.add(kind)
            self.say(text)

    def _put_earlier_runs_in_order(self) -> None:
        """Delivers what an earlier call kept; marks KILLED what a killed driver of this folder left RUNNING."""
        if self.pending.exists() and deliver_pending(self.pending, self.out, ended="KILLED"):
            self.say(f"MLflow: the record of an earlier call is still kept in {self.pending}")
        try:
            died = int(self.opened.stat().st_mtime * 1000)
            self._earlier = {run: (uri, moment or died) for run, (uri, moment) in json.loads(self.opened.read_text()).items()}
        except (OSError, ValueError):
            return
        delivery = Delivery(self.out)
        for run, (uri, moment) in list(self._earlier.items()):
            if not answers(uri or default_address(self.out)):
                continue
            try:
                delivery.mark_killed(run, uri, moment)
            except Exception as error:  # the next start tries again
                if not refused(error):
                    continue
            del self._earlier[run]
        self._note_open()

    def _note_open(self) -> None:
        """The runs that are open in the tracking store, in a file that the next start reads if this driver is killed."""
        entries = {**self._earlier, **{run: (self._kept_uri(), None) for run in self._open}}
        if not entries:
            self.opened.unlink(missing_ok=True)
            return
        temporary = self.opened.with_suffix(".tmp")
        temporary.write_text(json.dumps(entries))
        temporary.replace(self.opened)

    def _kept_uri(self) -> str:
        """The address as files of the output folder hold it: empty for the folder's own database, which may be moved."""
        return "" if self.uri == default_address(self.out) else self.uri

    def _shown_uri(self) -> str:
        return re.sub(r"//[^/@]*@", "//", self.uri)  # no passwords in the terminal


def safe_params(params: Mapping[str, Any]) -> dict[str, str]:
    """Names that MLflow takes and values that it does not cut; two names that become one are told apart."""
    out: dict[str, str] = {}
    for name, value in params.items():
        safe = safe_name(name)
        while safe in out:
            safe += "_"
        out[safe] = cut(str(value), PARAM_LIMIT)
    return out


def safe_name(name: str) -> str:
    """MLflow's names hold letters, digits, / _ - . : and spaces, at most 250 of them, and are no paths upwards."""
    safe = re.sub(r"[^\w/ .:\-]", "_", name).strip("/") or "_"
    safe = "/".join("_" if part in ("", ".", "..") else part for part in safe.split("/"))
    return cut(safe, NAME_LIMIT, mark="_")


def cut(text: str, limit: int, mark: str = " ... sha256 ") -> str:
    """A text that is too long ends with the digest of the whole, so that two that differ stay different."""
    if len(text) <= limit:
        return text
    tail = mark + hashlib.sha256(text.encode()).hexdigest()[:16]
    return text[: limit - len(tail)] + tail


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without an entry for this user
        return str(os.getuid())


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"
