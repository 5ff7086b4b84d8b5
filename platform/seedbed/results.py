"""What comes out of a study's stages: rows of scores.json, curves, panels, the report, run.json."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seedbed import provenance
from seedbed.artefacts import Stage, write_atomically
from seedbed.artefacts.records import unpack
from seedbed.metrics.paired import counts_by_picture, paired_over_seeds
from seedbed.panels import panels
from seedbed.pipeline import plain
from seedbed.report import StudyResult, write_report, write_tables
from seedbed.scores import mean_metrics, repetition_rows
from seedbed.seeds import SweepCounts
from seedbed.stage_rows import validation_rows, weights_warnings
from seedbed.types import UserError

if TYPE_CHECKING:
    from seedbed.stages import Study

SCORES_VERSION = 1


def parent_metrics(study: Study) -> dict[str, float]:
    """Scores of the study's last method, the mean over its seeds: what two parents are compared by."""
    last = study.methods[-1]
    mine = [r for r in study.rows if r["method"] == last and isinstance(r["seed"], int)]
    precision = [r["value"] for r in validation_rows(study)]
    return mean_metrics(mine) | ({"val/mAP": float(np.mean(precision))} if precision else {})


def conclude(study: Study, began: float) -> StudyResult:
    """Scores, tables, report and the parent's record, from what the stages left behind."""
    rows = [*study.rows, *validation_rows(study)]
    rows += repetition_rows(rows)
    result = gathered(study, rows, began)
    write_scores(study.out, rows, paired=result.paired)
    report = write_report(study.out, result)
    write_tables(result, report=report)
    study.tracker.log(parent_metrics(study))
    for path in (study.out / "scores.json", report, *sorted((study.out / "figures").glob("*"))):
        study.tracker.artifact(path)
    return result


def write_scores(out: Path, rows: list[dict[str, Any]], **more: Any) -> None:
    content = {"version": SCORES_VERSION, "rows": rows, **more}
    write_atomically(out / "scores.json", json.dumps(content, indent=1, allow_nan=False).encode())


def gathered(study: Study, rows: list[dict[str, Any]], began: float) -> StudyResult:
    """All that the report shows of a study."""
    info = study.store.info
    return StudyResult(
        experiment=study.experiment,
        rows=rows,
        curves=curves(study),
        over_k=over_k(study),
        ends=ends(study),
        coverage=coverage(study),
        panels=panels(study),
        stages=study.summaries,
        provenance=run_record(study, began, "FINISHED", None),
        paper_rows=paper_rows(study),
        classes=info.classes,
        palette=info.palette,
        warnings=[*study.warnings, *weights_warnings(rows)],
        paired=paired(study),
    )


def paired(study: Study) -> list[dict[str, Any]]:
    """The study's method against the plain CAM, picture by picture, at every stage that both reach; the mean over random seeds."""
    scored = study.experiment.data.score_split
    found = [_difference(study, "seed", scored, lambda method, seed: study.seeds_stages.get((method, seed)))]
    if len(study.going("mask")) > 1:
        found.append(_difference(study, "mask", scored, study.scored_stage))
    if len(study.going("segmentation")) > 1:
        found += [_difference(study, "segmentation", s, partial(study.predictions_stage, split=s)) for s in study.keys.segmented_ids]
    return [d for d in found if d is not None]


def _difference(study: Study, stage: str, split: str, of: Callable[[str, int], Stage | None]) -> dict[str, Any] | None:
    """Of one stage; `of` (method, seed) is the artefact with the counts of every picture."""
    e, classes, names = study.experiment, len(study.store.info.classes), study.methods
    runs = []
    for seed in study.seeds:
        stages = [of(method, seed) for method in names]
        if len(names) > 1 and all(stages):
            runs.append(tuple(counts_by_picture(s.folder, classes, e.scoring.tolerance) for s in stages if s is not None))
    if not runs or not set.intersection(*(set(side) for run in runs for side in run)):
        return None
    sides = {"first": {"method": names[0]}, "second": {"method": names[-1]}}
    found = paired_over_seeds([(run[0], run[-1]) for run in runs], absent=e.scoring.absent(study.subset))["mIoU"]
    seeds = {"seeds": len(runs), "seeds_vary": e.seeds_vary}
    return {**sides, "stage": stage, "split": split, "metric": found.metric, **found.to_record(), **seeds}


def curves(study: Study) -> dict[str, dict[str, list[float]]]:
    """Per method the mean IoU at every threshold, the mean over seeds, percent."""
    out = {}
    absent = study.experiment.scoring.absent(study.subset)
    for method in study.methods:
        found = [study.counts[m, seed].ious(absent)[1] for m, seed in study.counts if m == method]
        if found:
            out[method] = {"thresholds": study.experiment.scoring.grid().tolist(), "mIoU": (100 * np.mean(found, axis=0)).tolist()}
            if len(found) > 1:
                out[method]["std"] = (100 * np.std(found, axis=0, ddof=1)).tolist()
    return out


def over_k(study: Study) -> dict[str, list[dict[str, float]]]:
    """Per method with snapshots the mean IoU of the cumulative map of every k, each at its best threshold; the mean over seeds."""
    out: dict[str, list[dict[str, float]]] = {}
    for method in study.methods:
        if runs := [*runs_over_k(study, method).values()]:
            values = np.asarray(runs)  # (runs, k, 2)
            out[method] = [
                {"k": k, "mIoU": float(values[:, k, 0].mean()), "threshold": float(values[:, k, 1].mean())}
                | ({"std": float(values[:, k, 0].std(ddof=1))} if len(runs) > 1 else {})
                for k in range(values.shape[1])
            ]
    return out


def runs_over_k(study: Study, method: str) -> dict[int, list[tuple[float, float]]]:
    """Random seed -> for every k the mean IoU (percent) of the cumulative map and its best threshold; nothing without snapshots."""
    grid, names = study.experiment.scoring.grid(), len(study.store.info.classes)
    absent = study.experiment.scoring.absent(study.subset)
    out: dict[int, list[tuple[float, float]]] = {}
    for m, seed in study.sweeps:
        if m != method:
            continue
        steps: dict[int, SweepCounts] = {}
        for (packed,) in study.sweeps[m, seed].records().columns("snapshots"):
            if packed is None:
                continue
            arrays = unpack(packed)
            last = max(int(name.split(".")[0]) for name in arrays)
            for k in range(study.experiment.rib.steps):
                # A run that ended early keeps its last map: that is what it would be scored by.
                prefix = f"{min(k, last):03d}."
                mine = {name[len(prefix) :]: values for name, values in arrays.items() if name.startswith(prefix)}
                steps.setdefault(k, SweepCounts(grid, names)).merge(SweepCounts.from_record(mine, grid, names))
        if best := [steps[k].best(absent) for k in sorted(steps)]:
            out[seed] = [(100 * b.mean_iou, b.value) for b in best]
    return out


def ends(study: Study) -> dict[str, dict[str, dict[int, int]]]:
    """Per method with a loop: reason for its end -> steps entered -> pictures."""
    out: dict[str, dict[str, dict[int, int]]] = {}
    for (method, _), stage in study.maps_stages.items():
        if plain(method) != "rib":
            continue
        counts: Counter[tuple[str, int]] = Counter()
        counts.update(stage.records().columns("ended", "steps"))
        mine = out.setdefault(method, {})
        for (why, steps), n in sorted(counts.items()):
            mine.setdefault(why, {})
            mine[why][steps] = mine[why].get(steps, 0) + n
    return out


def coverage(study: Study) -> dict[str, dict[str, float]]:
    """Of the labels that networks are trained on, those of all seeds: shares of their pixels in percent."""
    out, trained = {}, set(study.keys.pseudo_ids)
    for method in study.going("mask"):
        records = [study.masks_stage(method, seed).records() for seed in study.seeds]
        found = [row for seen in records for row in seen.columns("id", "height", "width", "shares")]
        pixels = np.array([height * width for ident, height, width, _ in found if ident in trained], np.float64)
        shares = np.array([row for ident, *_, row in found if ident in trained]).reshape(-1, 4)
        means = 100 * pixels @ shares / max(pixels.sum(), 1)
        out[method] = dict(zip(("object", "background", "ignored", "changed"), means.tolist(), strict=True))
    return out


def paper_rows(study: Study) -> list[dict[str, Any]]:
    """The papers' rows of the same dataset and stages, for the tables."""
    from seedbed.papers import class_rows_of, later_rows_of, seed_rows_of

    dataset, stages = study.store.info.dataset, sorted({r["stage"] for r in study.rows})
    later = [*later_rows_of(dataset, study.methods, stages), *class_rows_of(dataset, study.methods, stages)]
    return [*seed_rows_of(dataset, study.methods), *later]


def run_record(study: Study, began: float, status: str, failure: BaseException | None) -> dict[str, Any]:
    """The content of run.json."""
    return {
        "name": study.experiment.name,
        "command": provenance.command(),
        "settings": study.experiment.to_dict(),
        "key": study.experiment.key(),
        "seeds": list(study.seeds),
        "git": provenance.git_commit(),
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
        "device": study.keys.device,
        "dataset": {
            "name": study.store.info.dataset,
            "store": str(study.store.path),
            "splits": dict(study.store.info.splits),
            "palette": [list(c) for c in study.store.info.palette],
        },
        "stages": [
            {"name": s.name, "key": s.key, "digest": s.digest, "computed": s.computed, "seconds": s.seconds} for s in study.summaries
        ],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(began)),
        "seconds": round(time.time() - began, 1),
        "status": status,
        "failure": None if failure is None else f"{type(failure).__name__}: {failure}",
    }


def write_run_record(study: Study, began: float, status: str, failure: BaseException | None) -> None:
    aside = any(s.set_aside for s in study.summaries)
    record = {**run_record(study, began, status, failure), "exit_status": exit_status(status, failure, partly=aside)}
    write_atomically(study.out / "run.json", json.dumps(record, indent=1, default=str).encode())


def exit_status(status: str, failure: BaseException | None, *, partly: bool) -> int:
    """The process's, as run.json has it: `partly` done is 3."""
    return {"FINISHED": 3 if partly else 0, "KILLED": 130}.get(status, 2 if isinstance(failure, UserError) else 1)
