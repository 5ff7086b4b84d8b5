"""What comes out of a sweep: rows of scores.json with their setting, table, report, run.json."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from seedbed import results
from seedbed.artefacts import write_atomically
from seedbed.local import Tracker
from seedbed.report import write_report, write_tables
from seedbed.scores import mean_metrics, repetition_rows
from seedbed.stage_rows import validation_rows, weights_warnings
from seedbed.stages import Study
from seedbed.sweeps.differences import differences, split_of
from seedbed.sweeps.findings import trial_warnings
from seedbed.sweeps.tables import SweepResult
from seedbed.sweeps.trials import Record, Trial
from seedbed.sweeps.view import table_of, write_csv

if TYPE_CHECKING:
    from seedbed.sweeps.drive import Driver

Rows = list[dict[str, Any]]


def conclude(driver: Driver, base: Study, result: SweepResult, began: float, tracker: Tracker) -> None:
    """Writes scores.json, table, figure and report; the rows are put into the result."""
    out, table = driver.sweep.folder(), result.table
    plain = [*base.rows, *validation_rows(base)]
    varied = [row for trial in result.trials for row in rows_of(trial, result.records.get(trial.key), table.over_k)]
    result.rows = [*plain, *varied]
    result.rows += repetition_rows(result.rows)
    result.set_aside = any(s.set_aside for s in base.summaries) or any(r.get("set_aside") for r in result.records.values())
    found = differences(driver, base, result)
    where = table.stage, split_of(driver, base)
    results.write_scores(out, result.rows, paired=[record for difference in found for record in difference.records(*where)])
    view = table_of(driver, base, result, found)
    csv_path = write_csv(out / f"table_{table.name or driver.sweep.search}.csv", view)
    shown = replace(
        results.gathered(base, [*plain, *repetition_rows(plain)], began),
        experiment=driver.shared,
        sweep=view,
        warnings=[*base.warnings, *weights_warnings(result.rows), *trial_warnings(base, result)],
    )
    report = write_report(out, shown)
    write_tables(shown, report=report)
    tracker.log(best_metrics(driver, result))
    for path in (out / "scores.json", report, csv_path, *sorted((out / "figures").glob("*"))):
        tracker.artifact(path)


def rows_of(trial: Trial, record: Record | None, over_k: bool) -> Rows:
    """A trial's rows with its setting; `over_k`: those of the cumulative map of every step k beside, where steps were kept."""
    if record is None or record["status"] != "finished":
        return []
    rows = [{**row, "setting": trial.setting} for row in record["rows"]]
    pattern = next((r for r in rows if (r["stage"], r["metric"]) == ("seed", "mIoU")), None)
    if pattern is None or not over_k:
        return rows
    for seed, run in record["over_k"].items():
        for k, (value, threshold) in enumerate(run):
            protocol = {**pattern["protocol"], "threshold": {**pattern["protocol"]["threshold"], "value": threshold}}
            rows.append({**pattern, "seed": int(seed), "value": value, "protocol": protocol, "setting": {**trial.setting, "k": k}})
    return rows


def best_metrics(driver: Driver, result: SweepResult) -> dict[str, float]:
    """The best trial's scores: what two sweeps are compared by."""
    scored = [r for r in result.records.values() if isinstance(r.get("score"), int | float) and r["status"] == "finished"]
    return mean_metrics(max(scored, key=lambda r: r["score"])["rows"]) if scored else {}


def write_run_record(driver: Driver, base: Study, began: float, status: str, failure: BaseException | None) -> None:
    """run.json of a sweep: the base's settings, the shared stages, and the trials by key."""
    record = results.run_record(base, began, status, failure)
    e = driver.shared
    trials = {key: {"setting": r["setting"], "status": r["status"], "seconds": r.get("seconds")} for key, r in driver.records.items()}
    record |= {"name": e.name, "settings": e.to_dict(), "key": e.key(), "trials": trials, "failed": driver.failed}
    aside = any(s.set_aside for s in base.summaries) or any(r.get("set_aside") for r in driver.records.values())
    record["exit_status"] = results.exit_status(status, failure, partly=aside or bool(driver.failed))
    write_atomically(base.out / "run.json", json.dumps(record, indent=1, default=str).encode())
