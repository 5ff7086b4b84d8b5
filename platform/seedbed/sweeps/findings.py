"""What must be warned about in the trials of a sweep: failures, pictures set aside, thresholds at the edge, runs that ended early."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from seedbed.report.reading import companions_share
from seedbed.report.summary import COMPANIONS_LIMIT
from seedbed.stages import Study
from seedbed.sweeps.tables import SweepResult
from seedbed.sweeps.trials import Record

TRIALS = 4
"""Named one by one; of more the report's tables and OUT/trials tell."""
PICTURES = 3
REASON = 120
"""Characters of a reason that a warning has."""


def trial_warnings(base: Study, result: SweepResult) -> list[str]:
    """Each trial by its label in the table. What the base's own stages set aside is not said again."""
    labels = {trial.key: f"“{_label(result, trial)}”" for trial in reversed(result.trials)}
    finished = [(labels[key], r) for key, r in result.records.items() if key in labels]
    failed = [f"Trial {labels.get(key, key)} failed: {why}" for key, why in result.failed.items()]
    return [*failed, *_set_aside(base, finished), *_edges(result, finished), *_ended_early(finished)]


def _label(result: SweepResult, trial: Any) -> str:
    return next(
        (line.label for line in result.table.lines if line.setting is not None and dict(line.setting) == dict(trial.setting)), trial.name
    )


def own_set_aside(base: Study, record: Record) -> list[dict[str, str]]:
    """Pictures that the trial lost and what all trials share did not; each once."""
    shared = {(entry["id"], entry["reason"]) for summary in base.summaries for entry in summary.set_aside}
    found = {e["id"]: e for e in reversed(record.get("set_aside") or []) if (e["id"], e["reason"]) not in shared}
    return [found[ident] for ident in sorted(found)]


def _set_aside(base: Study, finished: Sequence[tuple[str, Record]]) -> list[str]:
    lost = [(label, entries) for label, record in finished if (entries := own_set_aside(base, record))]
    found = []
    for label, entries in lost[:TRIALS]:
        reasons: dict[str, list[str]] = {}
        for entry in entries:
            reasons.setdefault(entry["reason"], []).append(entry["id"])
        why = "; ".join(f"{some(ids, PICTURES)}: {_short(reason)}" for reason, ids in list(reasons.items())[:PICTURES])
        count = f"{len(entries)} pictures were" if len(entries) > 1 else "a picture was"
        found.append(f"{label}: {count} set aside ({why}): its scores do not count {'them' if len(entries) > 1 else 'it'}.")
    if more := [f"{label} ({len(entries)})" for label, entries in lost[TRIALS:]]:
        found.append(f"{len(more)} more trial{'s' if len(more) > 1 else ''} set pictures aside: {some(more, 2 * TRIALS)}.")
    return found


def _edges(result: SweepResult, finished: Sequence[tuple[str, Record]]) -> list[str]:
    """Best thresholds at an end of the grid: the true best may lie outside. Of a figure over k those of every shown k too."""
    at: list[str] = []
    for label, record in finished:
        thresholds = [r["protocol"].get("threshold") or {} for r in record["rows"] if (r["stage"], r["metric"]) == ("seed", "mIoU")]
        found = [f"{value:.2f}" for value in sorted({t["value"] for t in thresholds if t.get("edge")})]
        if result.table.over_k and (steps := _steps_at_the_edge(result, record)):
            found.append(f"at k = {some(map(str, steps), TRIALS)}")
        if found:
            at.append(f"{label} ({', '.join(found)})")
    if not at:
        return []
    what = "thresholds of" if len(at) > 1 else "threshold of"
    where = "are at the edges of their grids: better ones" if len(at) > 1 else "is at the edge of its grid: a better one"
    return [f"The best {what} {some(at, TRIALS, 'trial')} {where} may lie outside."]


def _steps_at_the_edge(result: SweepResult, record: Record) -> list[int]:
    """Steps before the last, whose threshold is the trial's own."""
    grid = next(t.experiment.scoring.grid() for t in result.trials if t.key == record["key"])
    runs = (record.get("over_k") or {}).values()
    ends = {
        k for run in runs for k, (_, threshold) in enumerate(run[:-1]) if min(abs(threshold - grid[0]), abs(threshold - grid[-1])) < 1e-6
    }
    return sorted(ends)


def _ended_early(finished: Sequence[tuple[str, Record]]) -> list[str]:
    shares = [(label, companions_share(ends)) for label, record in finished for ends in (record.get("ends") or {}).values()]
    early = [f"{label} ({share:.1%})" for label, share in shares if share > COMPANIONS_LIMIT]
    if not early:
        return []
    return [
        f"Runs that ended early because disjoint companions ran out, more than {COMPANIONS_LIMIT:.0%}: {some(early, TRIALS, 'trial')}. "
        "Their maps had fewer steps than the setting says."
    ]


def some(names: Iterable[str], most: int, what: str = "") -> str:
    """`a, b and c`; of many `a, b and 3 more`, with `what` in one word `a, b and 3 more trials`."""
    names = list(names)
    if (more := len(names) - most) > 0:
        return f"{', '.join(names[:most])} and {more} more" + (f" {what}{'s' if more > 1 else ''}" if what else "")
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= REASON else text[: REASON - 1] + "…"
