"""What the numbers say, in sentences: the headline, what must be warned about, and what a reader must know before comparing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seedbed.report.result import StudyResult
from seedbed.report.summary import COMPANIONS_LIMIT, Row, Table, Value, from_scratch, method_name, tables, without_network


@dataclass(frozen=True)
class Headline:
    """The one comparison that the study was made for."""

    metric: str
    base: Row | None
    best: Row
    apart: Value | None
    bare: Row | None
    """The better one of the rows without a network."""
    sentence: str


def headline(study: StudyResult) -> Headline | None:
    """The last scored stage: its last method against the plain CAM. None without scores."""
    for table in reversed(tables(study)):
        methods = [r for r in table.rows if r.kind == "method" and "mIoU" in r.values]
        if methods:
            break
    else:
        return None
    best = methods[-1]
    base = next((r for r in methods if r.method.lower().partition("+")[0] == "cam" and r is not best), None)
    apart = next((r.values.get("mIoU") for r in table.rows if r.kind == "difference" and r.method == best.method), None)
    bare = max((r for r in table.rows if r.kind == "without network"), key=lambda r: r.values["mIoU"].mean, default=None)
    return Headline("mIoU", base, best, apart, bare, _sentence(table, base, best, apart))


def _sentence(table: Table, base: Row | None, best: Row, apart: Value | None) -> str:
    """`The seeds of RIB reach 46.0% mIoU, 3.3 points above CAM's ...`"""
    what = {"seed": "seeds", "crf": "seeds after the CRF", "mask": "pseudo-labels", "segmentation": "segmentations"}.get(
        table.stage, table.stage
    )
    text = f"On {table.split}, the {what} of {best.label} reach {best.values['mIoU'].text()}% mIoU"
    if base is None or apart is None:
        return text + "."
    distance = abs(apart.mean)
    where = "the same as" if distance < 0.005 else f"{distance:.2f} points {'above' if apart.mean > 0 else 'below'}"
    text += f", {where} the {base.label} of the same classifier ({base.values['mIoU'].text()}%)."
    if len(apart.runs) > 1:
        ahead = sum(v > 0 for v in apart.runs.values())
        text += f" {best.label} is ahead in {ahead} of {len(apart.runs)} repetitions; the paired difference is {apart.text(sign=True)}."
        if apart.std is not None and distance < 2 * apart.std / len(apart.runs) ** 0.5:
            text += " That is less than two standard errors: these repetitions alone do not settle which is better."
    return text


def warnings(study: StudyResult) -> list[str]:
    """What may be wrong with the numbers themselves. The study's own first, then what the tables show; nothing twice."""
    found = [*study.warnings, *_edges(study), *_companions(study), *_shown_nothing(study), *_trials_show_nothing(study), *_set_aside(study)]
    return list(dict.fromkeys(found))


def _edges(study: StudyResult) -> list[str]:
    """A best threshold at the end of its grid: the true best may lie outside."""
    found = []
    for row in _scored(study, "mIoU"):
        threshold, grid = row["protocol"].get("threshold") or {}, (study.curves.get(str(row["method"])) or {}).get("thresholds")
        value = threshold.get("value")
        if grid is None or len(grid) < 2 or value is None or threshold.get("source") == "fixed":
            continue
        if any(abs(value - end) < 1e-6 for end in (grid[0], grid[-1])):
            found.append(
                f"The best threshold of {method_name(str(row['method']))} (random seed {row['seed']}), {value:.2f}, is the edge of the "
                f"grid {grid[0]:.2f} to {grid[-1]:.2f}: a better one may lie outside."
            )
    return found


def companions_share(ends: Mapping[str, Mapping[int, int]]) -> float:
    """Share of the runs that ended because disjoint companions ran out."""
    total = sum(sum(steps.values()) for steps in ends.values())
    return sum((ends.get("companions") or {}).values()) / total if total else 0.0


def _companions(study: StudyResult) -> list[str]:
    return [
        f"{share:.1%} of the runs of {method_name(method)} ended early because disjoint companions ran out (more than "
        f"{COMPANIONS_LIMIT:.0%}): their maps had fewer steps than the setting says."
        for method, ends in study.ends.items()
        if (share := companions_share(ends)) > COMPANIONS_LIMIT
    ]


def _shown_nothing(study: StudyResult) -> list[str]:
    """PROTOCOL.md: a method that does not beat the rows without a network has shown nothing."""
    found = []
    for table in tables(study):
        bare = [r for r in table.rows if r.kind == "without network" and "mIoU" in r.values]
        for row in table.rows:
            above = [b for b in bare if row.kind == "method" and "mIoU" in row.values and row.values["mIoU"].mean <= b.values["mIoU"].mean]
            if above:
                best = max(above, key=lambda b: b.values["mIoU"].mean)
                found.append(
                    f"{row.label} ({row.values['mIoU'].text()}% mIoU) does not beat the {best.label}, which needs no network "
                    f"({best.values['mIoU'].text()}%): it has shown nothing."
                )
    return found


def _trials_show_nothing(study: StudyResult) -> list[str]:
    """The same of the trials of a sweep."""
    rows = [row for row in study.sweep.rows if "mIoU" in row.values] if study.sweep is not None else []
    bare = max((row for row in rows if row.kind == "without network"), key=lambda row: row.values["mIoU"][0], default=None)
    below = [row.label for row in rows if bare is not None and row.kind == "trial" and row.values["mIoU"][0] <= bare.values["mIoU"][0]]
    if bare is None or not below:
        return []
    one, more, names = len(below) == 1, len(below) - 4, ", ".join(f"“{label}”" for label in below[:4])
    rest = f" and {more} more trial{'s' if more > 1 else ''}" if more > 0 else ""
    return [
        f"{names}{rest} {'does' if one else 'do'} not beat the {bare.label}, which needs no network ({bare.values['mIoU'][0]:.2f}% mIoU): "
        f"{'it has' if one else 'they have'} shown nothing."
    ]


def _set_aside(study: StudyResult) -> list[str]:
    ids = {entry["id"] for stage in study.stages for entry in stage.set_aside}
    if not ids:
        return []
    some = ", ".join(sorted(ids)[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
    return [f"{len(ids)} picture{'s were' if len(ids) > 1 else ' was'} set aside ({some}): the scores do not count them."]


def notes(study: StudyResult) -> list[str]:
    """What a reader must know before setting these numbers beside others."""
    rows, records = tables(study), [row["protocol"] for row in _scored(study, "mIoU")]
    found = [_interval(d) for d in study.paired]
    if any((r.get("threshold") or {}).get("source") == "oracle" for r in records):
        found.append("° oracle: the threshold is the best on the scored split, found with its masks, as the papers do for seeds.")
    if any((r.get("labels") or {}).get("oracle") for r in records):
        found.append("Oracle class labels: the scored split is not trained on, yet its maps are made for its true classes.")
    scratch = any(from_scratch(r) for r in records)
    if scratch and any(row.kind == "paper" for table in rows for row in table.rows):
        found.append("Our networks start from scratch, the papers' from ImageNet weights: these scores are not comparable with a paper's.")
    elif scratch:
        found.append("The networks start from scratch, without ImageNet weights: these scores are not comparable with a paper's.")
    if any(r.get("subset") for r in records):
        found.append("Only a subset of the dataset was scored: these are not the scores of the whole.")
    seeds = {row["seed"] for row in _scored(study, "mIoU")}
    if len(seeds) == 1 and len(records) > 1:
        found.append("One random seed: nothing is known of the spread. Repeat with --seeds 3.")
    return found


def _interval(d: Mapping[str, Any]) -> str:
    """`Paired over the pictures: RIB − CAM, seeds on train, is +2.10 points mIoU, 95% interval +1.20 to +3.01 (bootstrap); ...`"""
    difference, low, high = (Value(d[name]).text(sign=True) for name in ("difference", "low", "high"))
    sides = f"{method_name(d['second']['method'])} − {method_name(d['first']['method'])}"
    return (
        f"Paired over the pictures: {sides}, {d['stage']}s on {d['split']}, is {difference} points {d['metric']}, "
        f"{d['level']:.0%} interval {low} to {high} (bootstrap); "
        f"of {d['pictures']:,} pictures {d['better']:,} are better, {d['worse']:,} worse."
    )


def _scored(study: StudyResult, metric: str) -> Sequence[Mapping[str, Any]]:
    """Rows of methods with a network, one per repetition."""
    return [
        r
        for r in study.rows
        if r["metric"] == metric and r["seed"] not in ("mean", "std") and not without_network(str(r["method"])) and r.get("protocol")
    ]
