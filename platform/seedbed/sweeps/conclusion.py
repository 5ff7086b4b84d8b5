"""What comes out of a sweep: rows of scores.json with their setting, the table in the paper's shape (terminal, CSV, report), run.json."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedbed import results
from seedbed.artefacts import write_atomically
from seedbed.local import Tracker
from seedbed.metrics.paired import Counts, PairedDifference, counts_by_picture, paired_over_seeds
from seedbed.report import SweepRow, SweepTable, write_report, write_tables
from seedbed.scores import mean_metrics, repetition_rows
from seedbed.stage_rows import validation_rows
from seedbed.stages import Study
from seedbed.sweeps.tables import Line, SweepResult
from seedbed.sweeps.trials import Record, Trial

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
    differences = paired(driver, base, result)
    where = table.stage, table.split or driver.base.data.score_split
    results.write_scores(out, result.rows, paired=[_plain_difference(d, line, reference, *where) for line, reference, d in differences])
    view = table_of(driver, base, result, {line.label: d for line, _, d in differences})
    csv_path = write_csv(out / f"table_{table.name or driver.sweep.search}.csv", view)
    shown = replace(
        results.gathered(base, [*plain, *repetition_rows(plain)], began),
        experiment=driver.base,
        sweep=view,
        warnings=[*base.warnings, *(f"Trial {_name(result, key)} failed: {why}" for key, why in result.failed.items())],
    )
    report = write_report(out, shown)
    write_tables(shown, report=report)
    tracker.log(best_metrics(driver, result))
    for path in (out / "scores.json", report, csv_path, *sorted((out / "figures").glob("*"))):
        tracker.artifact(path)


def _name(result: SweepResult, key: str) -> str:
    return next((t.name for t in result.trials if t.key == key), key)


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


# --- the table ------------------------------------------------------------------------------------------


def table_of(driver: Driver, base: Study, result: SweepResult, differences: Mapping[str, PairedDifference]) -> SweepTable:
    table = result.table
    split = table.split or driver.base.data.score_split
    rows = []
    for line in table.lines:
        trial = result.trial_of(line)
        record = None if trial is None else result.records.get(trial.key)
        mine = base.rows if trial is None else (record or {"rows": []})["rows"]
        method = line.method if trial is None else trial.experiment.labels[-1]
        curves = [[value for value, _ in run] for run in ((record or {}).get("over_k") or {}).values()] if table.over_k else []
        rows.append(
            SweepRow(
                label=line.label,
                method=method,
                values={m: value for m in table.metrics if (value := over_seeds(mine, table.stage, split, method, m)) is not None},
                printed=line.printed,
                paired=None if (d := differences.get(line.label)) is None else d.to_record(),
                setting=line.setting or {},
                curve=[statistics.fmean(values) for values in zip(*curves, strict=True)],
                state="base" if trial is None else state_of(trial, record, result),
                seconds=None if record is None else record.get("seconds"),
            )
        )
    if driver.sweep.search != "grid":  # a search has no order of its own: the best come first
        first = table.metrics[0]
        rows.sort(key=lambda row: (row.state != "base", -row.values.get(first, (-1.0, None))[0]))
    return SweepTable(
        name=table.name,
        title=table.title,
        stage=table.stage,
        split=split,
        metrics=table.metrics,
        rows=rows,
        reference=next((line.label for line in reference_lines(result)), ""),
        axis=table.axis,
        over_k=table.over_k,
        search=not driver.table.lines,
        source=table.source,
        notes=notes_of(result),
    )


def over_seeds(rows: Rows, stage: str, split: str, method: str, metric: str) -> tuple[float, float | None] | None:
    values = [r["value"] for r in rows if (r["stage"], r["split"], r["method"], r["metric"]) == (stage, split, method, metric)]
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def state_of(trial: Trial, record: Record | None, result: SweepResult) -> str:
    if record is None:
        return "failed" if trial.key in result.failed else "not run"
    if record["status"] == "stopped":
        return f"stopped after {record['share']:.0%} of the pictures"
    return ("cut, " if record.get("cut_from") else "") + ("run now" if trial.key in result.computed else "found")


def notes_of(result: SweepResult) -> list[str]:
    notes = [f"{result.table.note}."] if result.table.note else []
    if any(line.printed for line in result.table.lines):
        threshold = ", threshold oracle" if result.table.stage == "seed" else ""
        where = f"PASCAL VOC 2012 {result.table.split or 'train'}"
        notes.append(f"paper: as printed ({result.table.source}), ImageNet weights, {where}{threshold}.")
    if reference_lines(result):
        notes.append("* reference: differences are of the same pictures, the interval is a bootstrap over them (1,000 resamples).")
    if any(r.get("cut_from") for r in result.records.values()):
        notes.append("cut: the maps were taken out of a longer trial's, bit by bit what a run of its own gives (docs/sweeps.md).")
    return notes


# --- paired differences ---------------------------------------------------------------------------------


def reference_lines(result: SweepResult) -> list[Line]:
    """The paper's own setting; of a search the base."""
    lines = [line for line in result.table.lines if line.default] or [line for line in result.table.lines if line.setting is None]
    return lines[:1]


def paired(driver: Driver, base: Study, result: SweepResult) -> list[tuple[Line, Line, PairedDifference]]:
    """Every row against the reference: the same pictures, drawn again and again; the mean over the random seeds."""
    scoring, classes = driver.base.scoring, len(base.store.info.classes)
    out = driver.sweep.folder()

    def counts(line: Line) -> list[dict[str, Counts]]:
        trial = result.trial_of(line)
        if trial is None:
            if driver.table.stage != "seed" or line.method not in base.methods:
                return []
            folders = [base.seeds_stage(line.method, seed).folder for seed in base.seeds]
        else:
            record = result.records.get(trial.key) or {}
            folders = [out / "stages" / name / key for name, key in (record.get("scored") or {}).values()]
        return [counts_by_picture(folder, classes, scoring.tolerance) for folder in folders if folder.exists()]

    found = []
    for reference in reference_lines(result):
        first = counts(reference)
        for line in result.table.lines:
            second = counts(line) if line is not reference and first else []
            if second and len(first) == len(second):
                runs = list(zip(first, second, strict=True))
                found.append((line, reference, paired_over_seeds(runs, absent=scoring.absent(base.subset))))
    return found


def _plain_difference(d: PairedDifference, line: Line, reference: Line, stage: str, split: str) -> dict[str, Any]:
    sides = {name: {"label": side.label, "setting": side.setting or {}} for name, side in (("first", reference), ("second", line))}
    return {**sides, "stage": stage, "split": split, "metric": d.metric, **d.to_record()}


# --- files ----------------------------------------------------------------------------------------------

COLUMNS = ("table", "label", "setting", "stage", "split", "metric", "value", "std", "printed", "printed_std", "difference", "low", "high",
           "reference", "state")  # fmt: skip


def write_csv(path: Path, view: SweepTable) -> Path:
    """A line for each row and metric; numbers in full."""
    sink = io.StringIO()
    writer = csv.DictWriter(sink, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in view.rows:
        for metric in view.metrics:
            value, std = row.values.get(metric, ("", ""))
            printed, printed_std = row.printed.get(metric, ("", ""))
            paired_ = {name: (row.paired or {}).get(name, "") for name in ("difference", "low", "high")} if metric == "mIoU" else {}
            writer.writerow(
                {
                    "table": view.name, "label": row.label, "setting": json.dumps(row.setting), "stage": view.stage, "split": view.split,
                    "metric": metric, "value": value, "std": std, "printed": printed, "printed_std": printed_std, **paired_,
                    "reference": view.reference, "state": row.state,
                }
            )  # fmt: skip
    write_atomically(path, sink.getvalue().encode())
    return path


def write_run_record(driver: Driver, base: Study, began: float, status: str, failure: BaseException | None) -> None:
    """run.json of a sweep: the base's settings, the shared stages, and the trials by key."""
    record = results.run_record(base, began, status, failure)
    e = driver.base
    trials = {key: {"setting": r["setting"], "status": r["status"], "seconds": r.get("seconds")} for key, r in driver.records.items()}
    record |= {"name": e.name, "settings": e.to_dict(), "key": e.key(), "trials": trials, "failed": driver.failed}
    aside = any(s.set_aside for s in base.summaries) or any(r.get("set_aside") for r in driver.records.values())
    record["exit_status"] = results.exit_status(status, failure, partly=aside or bool(driver.failed))
    write_atomically(base.out / "run.json", json.dumps(record, indent=1, default=str).encode())
