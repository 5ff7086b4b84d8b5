"""What is shown of a sweep: the rows of its table in the paper's shape, for terminal, report and CSV."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedbed.artefacts import write_atomically
from seedbed.keys import BASELINES
from seedbed.metrics.paired import PairedDifference
from seedbed.report import SweepRow, SweepTable
from seedbed.report.summary import method_name
from seedbed.stages import Study
from seedbed.sweeps.differences import Difference, reference_lines, split_of
from seedbed.sweeps.findings import own_set_aside
from seedbed.sweeps.tables import Line, SweepResult
from seedbed.sweeps.trials import Record, Trial

if TYPE_CHECKING:
    from seedbed.sweeps.drive import Driver

Rows = list[dict[str, Any]]


def table_of(driver: Driver, base: Study, result: SweepResult, differences: list[Difference]) -> SweepTable:
    table, split = result.table, split_of(driver, base)
    paired = {id(d.line): d.metrics for d in differences}
    rows = [_row(driver, base, result, line, split, paired.get(id(line), {})) for line in table.lines]
    if driver.sweep.search != "grid":  # a search has no order of its own: the best come first
        first = table.metrics[0]
        rows.sort(key=lambda row: (row.state != "base", -row.values.get(first, (-1.0, None))[0]))
    return SweepTable(
        name=table.name,
        title=table.title,
        stage=table.stage,
        split=split,
        metrics=table.metrics,
        rows=[*rows, *_without_network(base, result, split)],
        reference=" and ".join(line.label for line in reference_lines(result)),
        axis=table.axis,
        axis_name=table.axis_name,
        figure_metric=table.figure_metric,
        over_k=table.over_k,
        search=not driver.table.lines,
        source=table.source,
        notes=notes_of(result),
    )


def _row(driver: Driver, base: Study, result: SweepResult, line: Line, split: str, paired: Mapping[str, PairedDifference]) -> SweepRow:
    table, trial = result.table, result.trial_of(line)
    record = None if trial is None else result.records.get(trial.key)
    mine = base.rows if trial is None else (record or {"rows": []})["rows"]
    method = line.method if trial is None else trial.experiment.labels[-1]
    curves = [[value for value, _ in run] for run in ((record or {}).get("over_k") or {}).values()] if table.over_k else []
    return SweepRow(
        label=line.label,
        method=method,
        values=_values(mine, table.metrics, table.stage, split, method),
        printed=line.printed,
        paired={metric: d.to_record() for metric, d in paired.items()},
        pictures=pictures_of(mine, table.stage, split, method),
        setting=line.setting or {},
        x=line.x,
        group=line.curve,
        reference=next((r.label for r in reference_lines(result) if r.group == line.group), ""),
        curve=[statistics.fmean(values) for values in zip(*curves, strict=True)],
        state="base" if trial is None else state_of(trial, record, result),
        seconds=None if record is None else record.get("seconds"),
        set_aside=[] if record is None else own_set_aside(base, record),
    )


def _without_network(base: Study, result: SweepResult, split: str) -> list[SweepRow]:
    """PROTOCOL.md: every table has the two rows that need no network. They exist of seeds alone."""
    found = []
    for method in BASELINES if result.table.stage == "seed" else ():
        values = _values(base.rows, result.table.metrics, "seed", split, method)
        pictures = pictures_of(base.rows, "seed", split, method)
        found.append(SweepRow(method_name(method), method, values, pictures=pictures, state="without network"))
    return [row for row in found if row.values]


def _values(rows: Rows, metrics: tuple[str, ...], stage: str, split: str, method: str) -> dict[str, tuple[float, float | None]]:
    """Metric -> mean over the random seeds, and standard deviation where there are several."""
    found = {}
    for metric in metrics:
        values = [r["value"] for r in rows if (r["stage"], r["split"], r["method"], r["metric"]) == (stage, split, method, metric)]
        if values:
            found[metric] = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
    return found


def pictures_of(rows: Rows, stage: str, split: str, method: str) -> list[int]:
    """Pictures that each random seed's score counts."""
    where = stage, split, method, "mIoU"
    return [r["protocol"]["images"] for r in rows if (r["stage"], r["split"], r["method"], r["metric"]) == where]


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


# --- the table as a file --------------------------------------------------------------------------------

COLUMNS = (
    "table", "label", "kind", "setting", "stage", "split", "metric", "value", "std", "pictures", "printed", "printed_std", "difference",
    "low", "high", "paired_pictures", "reference", "state",
)  # fmt: skip


def write_csv(path: Path, view: SweepTable) -> Path:
    """A line for each row and metric; numbers in full."""
    sink = io.StringIO()
    writer = csv.DictWriter(sink, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in view.rows:
        for metric in view.metrics:
            value, std = row.values.get(metric, ("", ""))
            printed, printed_std = row.printed.get(metric, ("", ""))
            paired = row.paired.get(metric, {})
            writer.writerow(
                {
                    "table": view.name, "label": row.label, "kind": row.kind, "setting": json.dumps(row.setting), "stage": view.stage,
                    "split": view.split, "metric": metric, "value": value, "std": std, "pictures": min(row.pictures, default=""),
                    "printed": printed, "printed_std": printed_std, **{n: paired.get(n, "") for n in ("difference", "low", "high")},
                    "paired_pictures": paired.get("pictures", ""), "reference": row.reference or view.reference, "state": row.state,
                }
            )  # fmt: skip
    write_atomically(path, sink.getvalue().encode())
    return path
