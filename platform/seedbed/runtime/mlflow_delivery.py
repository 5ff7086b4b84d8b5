"""Events of a record applied to MLflow, at once or later: the same code, so that a delivered run equals one that was never interrupted."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from seedbed.runtime.mlflow_store import answers, artifact_root, default_address, open_database, quiet_mlflow

Event = dict[str, Any]
RECORD = "seedbed.record"
"""Tag with our own name of a run: whether a creation that got no answer has happened can be asked for later."""
BATCH, PARAMS = 900, 100
"""Metrics and parameters a call; MLflow takes at most 1,000 and 100."""


def now() -> int:
    return int(time.time() * 1000)


class Delivery:
    """Applies events to tracking stores. `known`: our name of a run -> MLflow's."""

    def __init__(self, out: Path, *, look_first: bool = False) -> None:
        self.out, self.look_first = out, look_first
        self.known: dict[str, str] = {}
        self.where: dict[str, str] = {}
        self._clients: dict[str, Any] = {}
        self._experiments: dict[tuple[str, str], str] = {}

    def apply(self, event: Event) -> None:
        run = event["run"]
        if event["do"] == "run":
            self._begin(event)
        elif event["do"] == "known":
            self.known[run], self.where[run] = event["id"], event["uri"]
        elif run in self.known:  # else its creation was refused
            getattr(self, "_" + event["do"])(self.client(self.where[run]), self.known[run], event)

    def client(self, uri: str) -> Any:
        """A client of a kept address: the empty one is the output folder's own database."""
        if uri not in self._clients:
            quiet_mlflow()
            from mlflow.tracking import MlflowClient

            self._clients[uri] = MlflowClient(tracking_uri=uri or default_address(self.out))
        return self._clients[uri]

    def experiment(self, uri: str, name: str) -> str:
        """Id of an experiment by name, made when it is missing. Several processes may do so at once: one of them makes it."""
        if (uri, name) in self._experiments:
            return self._experiments[uri, name]
        from mlflow.exceptions import MlflowException

        client = self.client(uri)
        found = client.get_experiment_by_name(name)
        if found is None:
            root = artifact_root(uri or default_address(self.out), self.out)
            try:
                ident = client.create_experiment(name, artifact_location=root and f"{root}/{_folder(name)}")
            except MlflowException:
                found = client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found is not None:
            ident = found.experiment_id
            if found.lifecycle_stage == "deleted":
                client.restore_experiment(ident)
        self._experiments[uri, name] = ident
        return ident

    def _begin(self, event: Event) -> None:
        run, uri = event["run"], event["uri"]
        client = self.client(uri)
        experiment = self.experiment(uri, event["experiment"])
        ident = self.find(uri, [experiment], run) if self.look_first else None
        if ident is None:
            tags = {**event["tags"], RECORD: run}
            if event["parent"] in self.known:
                tags["mlflow.parentRunId"] = self.known[event["parent"]]
            ident = client.create_run(experiment, start_time=event["time"], tags=tags, run_name=event["name"]).info.run_id
        self.known[run], self.where[run] = ident, uri
        from mlflow.entities import Param

        params = [Param(name, value) for name, value in event["params"].items()]
        for i in range(0, len(params), PARAMS):
            client.log_batch(ident, params=params[i : i + PARAMS])

    def find(self, uri: str, experiments: list[str], run: str) -> str | None:
        """MLflow's name of a run by ours."""
        found = self.client(uri).search_runs(experiments, filter_string=f"tags.`{RECORD}` = '{run}'", max_results=1)
        return found[0].info.run_id if found else None

    def mark_killed(self, run: str, uri: str, moment: int) -> None:
        """Ends a run that its driver could not end; where it was never created there is nothing to do."""
        client = self.client(uri)
        ident = self.find(uri, [e.experiment_id for e in client.search_experiments()], run)
        if ident is not None and client.get_run(ident).info.status == "RUNNING":
            client.set_terminated(ident, "KILLED", end_time=moment)

    @staticmethod
    def _metrics(client: Any, ident: str, event: Event) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(*m) for m in event["metrics"]]
        for i in range(0, len(metrics), BATCH):
            client.log_batch(ident, metrics=metrics[i : i + BATCH])

    @staticmethod
    def _tags(client: Any, ident: str, event: Event) -> None:
        for name, value in event["tags"].items():
            client.set_tag(ident, name, value)

    def _artifact(self, client: Any, ident: str, event: Event) -> None:
        path = self.out / event["path"]
        if path.is_dir():
            client.log_artifacts(ident, str(path), path.name)
        elif path.exists():
            client.log_artifact(ident, str(path))

    @staticmethod
    def _end(client: Any, ident: str, event: Event) -> None:
        client.set_terminated(ident, event["status"], end_time=event["time"])


def refused(error: Exception) -> bool:
    """Whether the store is well and will never take this one event (a run that somebody deleted, a value it forbids)."""
    codes = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "PERMISSION_DENIED")
    return getattr(error, "error_code", None) in codes


def _folder(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def deliver_pending(path: Path, out: Path, ended: str | None = None) -> bool:
    """Applies kept events and removes the file; True where some are left because their store does not answer.

    ended: the status for runs that have no end, since their driver was killed.
    """
    events = list(read_events(path))
    if ended is not None:
        last = {e["run"]: e for e in events}
        moment = max((t for e in events for t in _times(e)), default=now())
        # A run of which only its name was kept had ended before, or is among those that the tracker marks by itself.
        open_runs = {e["run"] for e in events if e["do"] != "known"} - {e["run"] for e in events if e["do"] == "end"}
        events += [{"do": "end", "run": run, "status": ended, "time": moment} for run in last if run in open_runs]
    where = {e["run"]: e["uri"] for e in events if "uri" in e}
    deliveries: dict[str, Delivery] = {}
    silent: set[str] = set()
    left: list[Event] = []
    for event in events:
        uri = where.get(event["run"])
        if uri is None:
            continue  # the beginning of its run was lost
        if uri not in deliveries and uri not in silent:
            if answers(uri or default_address(out)):
                deliveries[uri] = Delivery(out, look_first=True)
                if (uri or default_address(out)).startswith("sqlite:"):
                    open_database(uri or default_address(out), out)
            else:
                silent.add(uri)
        if uri not in silent:
            try:
                deliveries[uri].apply(event)
                continue
            except Exception as error:
                if refused(error):
                    continue
                silent.add(uri)
                left += [{"do": "known", "run": r, "uri": uri, "id": i} for r, i in deliveries[uri].known.items()]
        left.append(event)
    write_events(path, left)
    return bool(left)


def read_events(path: Path) -> Iterator[Event]:
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except ValueError:  # the last line of a killed driver
                continue


def write_events(path: Path, events: Iterable[Event]) -> None:
    lines = [json.dumps(e) + "\n" for e in events]
    if not lines:
        path.unlink(missing_ok=True)
        return
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(lines))
    temporary.replace(path)


def _times(event: Event) -> Iterator[int]:
    if "time" in event:
        yield event["time"]
    yield from (m[2] for m in event.get("metrics", ()))
