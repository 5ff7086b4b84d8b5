"""What becomes of each trial, as the driver hears it: the line in the terminal, the child run in MLflow, the records of what ended."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from seedbed.local import Tracker
from seedbed.progress import Line
from seedbed.scores import mean_metrics
from seedbed.sweeps.tables import PaperTable
from seedbed.sweeps.trials import Ledger, Record, Trial, claimed
from seedbed.types import UserError


class Watch:
    """Hears what becomes of the trials."""

    def __init__(self, ledger: Ledger, table: PaperTable, record: Tracker) -> None:
        self.ledger, self.table, self.record = ledger, table, record
        self.failed: dict[str, str] = {}
        """Key -> why."""
        self.lost: dict[str, Trial] = {}
        """The trials that failed, by key."""
        self.computed: list[str] = []
        self.line: Line | None = None
        self._children: dict[str, str] = {}
        self._shown: set[str] = set()
        """Keys of the trials that have a child run: one each, whatever rows name them."""

    def started(self, trial: Trial) -> None:
        if trial.key not in self._children:
            self.ledger.forget_failure(trial.key)
            self._children[trial.key] = self._begin(trial)
        self._say()

    def ended(self, trial: Trial, last: Mapping[str, Any] | None = None, crash: str = "") -> None:
        """By the record that the trial left; `last` is what one stopped early said, `crash` what is known where it left nothing."""
        child = self._children.pop(trial.key, None) or self._begin(trial)
        record = self._left(trial, last or {}, crash)
        if record is None:
            self.record.end_stage(child, "FAILED")
            self._fail(trial, self.ledger.failure(trial.key) or crash)
        else:
            self.ledger.write(trial.key, record)
            self.computed.append(trial.key)
            self._log(trial, record, child)
        self._say()
        if record is not None and self.line is not None:
            self.line.advance()

    def _left(self, trial: Trial, last: Mapping[str, Any], crash: str) -> Record | None:
        """The record to keep; None where the trial failed."""
        record, ledger = self.ledger.read(trial.key), self.ledger
        if ledger.failure(trial.key) is None and (record is None or record["status"] == "stopped"):
            if crash or not 0 < last.get("share", 0) < 1:
                ledger.fail(trial.key, crash or "its process ended without a word")
                return None
            record = {
                "status": "stopped",
                "setting": trial.setting,
                "share": last["share"],
                "score": last["score"],
                "rows": [],
                "over_k": {},
                "searches": (record or {}).get("searches", {}),
                "ended": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            }
        if record is None or ledger.failure(trial.key) is not None:
            return None
        return claimed({**record, "score": score_of(self.table, record)}, trial)

    def found(self, trial: Trial) -> None:
        """A trial of an earlier call, or of another table: a child of this call too, so that one view compares all that the call shows."""
        record = self.ledger.read(trial.key)
        if record is not None and trial.key not in self._shown:
            record["score"] = score_of(self.table, record)
            self._log(trial, record, self._begin(trial, {"seedbed.found": "true"}))

    def refuse(self, trial: Trial, error: UserError) -> None:
        """A trial whose settings can't work on these data."""
        self.ledger.fail(trial.key, error.message, error.text())
        if trial.key not in self._shown:
            self.record.end_stage(self._begin(trial), "FAILED")
        self._fail(trial, f"{error.message} ({error.remedy})")

    def _begin(self, trial: Trial, more: Mapping[str, str] | None = None) -> str:
        self._shown.add(trial.key)
        tags = {
            **(more or {}),
            "seedbed.kind": "trial",
            "seedbed.key": trial.key,
            "seedbed.method": trial.experiment.labels[-1],
            "seedbed.seed": str(trial.experiment.seed),
            "seedbed.setting": json.dumps(trial.setting),
            "seedbed.table": self.table.name,
        }
        return self.record.stage(trial.name, tags, trial.experiment.flat())

    def _log(self, trial: Trial, record: Record, child: str) -> None:
        plain = {name: record[name] for name in ("score", "share", "seconds") if isinstance(record.get(name), int | float)}
        if record["status"] == "stopped":  # of some of the pictures: not to be compared with a score of all
            plain["score_so_far"] = plain.pop("score")
        self.record.log({**mean_metrics(record["rows"]), **plain}, child=child)
        self.record.end_stage(child, "FINISHED" if record["status"] == "finished" else "KILLED")

    def _fail(self, trial: Trial, why: str) -> None:
        self.failed[trial.key], self.lost[trial.key] = why, trial
        print(f"trial failed: {trial.name}: {why}", file=sys.stderr, flush=True)

    def _say(self) -> None:
        if self.line is not None:
            running, failed = len(self._children), len(self.failed)
            self.line.note(", ".join(f"{n} {what}" for n, what in ((running, "running"), (failed, "failed")) if n))


def score_of(table: PaperTable, record: Record) -> float | None:
    """The number that a search goes by: the table's first metric at its stage, the mean over random seeds; of a trial that was stopped
    early the score so far."""
    if record.get("status") == "stopped":
        return record["score"]
    mine = [r for r in record["rows"] if (r["stage"], r["metric"]) == (table.stage, table.metrics[0])]
    found = [r["value"] for r in mine if table.split in ("", r["split"])]
    return sum(found) / len(found) if found else None
