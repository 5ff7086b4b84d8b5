"""One trial: what it is, how it is run in a process of its own, and the record that says that it is finished."""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seedbed.artefacts import write_atomically
from seedbed.config import digest
from seedbed.local import LocalExecutor, NullTracker, Shown, reason
from seedbed.pipeline import Experiment
from seedbed.plan import Plan
from seedbed.progress import Progress
from seedbed.results import ends, runs_over_k
from seedbed.stages import Study
from seedbed.sweeps.cut import cutting
from seedbed.sweeps.space import Setting

Record = dict[str, Any]
Report = Callable[[float, float], None]
"""Called with a share of the pictures and the score so far on them; may end the trial by raising."""

SHARES = (0.125, 0.25, 0.5, 1.0)
"""Of the pictures, in one order for all trials, after which a trial that may be stopped early says its score."""


@dataclass(frozen=True)
class Trial:
    """An experiment with its setting; picklable, and all that another process needs."""

    experiment: Experiment
    setting: Setting
    key: str
    device: str
    cut_from: Experiment | None = None
    """The trial whose maps hold this one's (cut.py)."""
    search: str = ""
    """The optimizer's search that chose it (optimize.py)."""
    part: int | None = None
    """The one random seed of it that is meant (parts.py); none: all of it."""

    @property
    def name(self) -> str:
        return setting_text(self.setting)

    @property
    def ident(self) -> str:
        """Of a trial, or of a part of it, among all of a call."""
        return self.key if self.part is None else f"{self.key} {self.part}"


def setting_text(setting: Setting) -> str:
    """`tau 0.3, pooling gndrp, addons isl+fsl`; names whose ends are the same in full."""
    ends = [name.rpartition(".")[2] for name in setting]
    shown = (name if ends.count(end) > 1 else end for name, end in zip(setting, ends, strict=True))
    return ", ".join(f"{name} {_value_text(value)}" for name, value in zip(shown, setting.values(), strict=True))


def _value_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "+".join(map(_value_text, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def trial_key(plan: Plan) -> str:
    """Content key: hash of the keys of all stages, so of settings, pictures, masks and code. The same in any table and folder."""
    return digest([stage.key for _, stage in plan.plan()])


class Ledger:
    """OUT/trials: KEY.json of each finished trial (or one stopped early), KEY.failed of one that failed."""

    def __init__(self, out: Path) -> None:
        self.folder = out / "trials"

    def _path(self, key: str, kind: str) -> Path:
        return self.folder / f"{key}.{kind}"

    def read(self, key: str) -> Record | None:
        try:
            record: Record = json.loads(self._path(key, "json").read_text())
            return record
        except (OSError, ValueError):
            return None

    def all(self) -> list[Record]:
        keys = sorted(p.stem for p in self.folder.glob("*.json"))
        return [r for r in map(self.read, keys) if r is not None]

    def write(self, key: str, record: Record) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path(key, "json"), json.dumps({"version": 1, "key": key, **record}, indent=1, default=str).encode())
        self._path(key, "failed").unlink(missing_ok=True)

    def fail(self, key: str, message: str, details: str = "") -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path(key, "failed"), f"{message}\n{details}".encode())

    def failure(self, key: str) -> str | None:
        """Why the last try failed, in one line."""
        with contextlib.suppress(OSError):
            return self._path(key, "failed").read_text().partition("\n")[0]
        return None

    def forget_failure(self, key: str) -> None:
        self._path(key, "failed").unlink(missing_ok=True)

    def measured(self, own: Callable[[Record], bool]) -> tuple[int, int]:
        """Bytes of GPU memory that a trial took at most, and what the smallest GPU has: of the sweep's own trials where that is known,
        else of all in the folder; (0, 0) where nothing is."""
        known = [r for r in self.all() if r.get("gpu_bytes") and r.get("gpu_total") and not r.get("cut_from")]
        known = [r for r in known if own(r)] or known
        return max((r["gpu_bytes"] for r in known), default=0), min((r["gpu_total"] for r in known), default=0)


def claimed(record: Record, trial: Trial) -> Record:
    """The record, with the search that chose the trial, and the setting under which it did."""
    return {**record, "searches": {**record.get("searches", {}), trial.search: trial.setting}} if trial.search else record


def study_of(trial: Trial, report: Report | None = None) -> tuple[Study, TrialExecutor]:
    """The trial's study, of its one random seed where it is a part, and who does the work: this process."""
    e = trial.experiment
    store = e.open_data()
    source = None if trial.cut_from is None else Plan(trial.cut_from, store, trial.device)
    study = Study(e, store, trial.device, maps_work=None if source is None else cutting(e, source))
    study.only, study.progress = trial.part, Progress("off")
    return study, TrialExecutor(trial, study, report)


@contextlib.contextmanager
def recorded_failure(trial: Trial) -> Iterator[None]:
    """An error is written down in the ledger before it goes on its way."""
    try:
        yield
    except Exception as error:
        Ledger(trial.experiment.folder()).fail(trial.key, reason(error), traceback.format_exc())
        raise


def run_trial(trial: Trial, report: Report | None = None, parts: Sequence[Mapping[str, Any]] = ()) -> Record:
    """Runs a trial to its end in this process and writes its record, or why it failed; returns the record.

    Everything lies in the common output folder: stages that another trial has made are found, one that it makes just now is waited for.
    `parts`: what its random seeds took that were run apart (parts.py).
    """
    e, source, began = trial.experiment, trial.cut_from, time.time()
    ledger = Ledger(e.folder())
    with recorded_failure(trial), quiet_gpu(trial.device) as memory:
        study, executor = study_of(trial, report)
        rows = [r for r in study.collect(executor, NullTracker()) if r["method"] == study.method]
        computed = {s.key: s.computed + sum(p.get("computed", {}).get(s.key, 0) for p in parts) for s in study.summaries}
        record: Record = {
            "status": "finished",
            "setting": trial.setting,
            "rows": rows,
            "ends": ends(study),
            "over_k": {str(seed): run for seed, run in runs_over_k(study, study.method).items()},
            "stages": [{"name": s.name, "key": s.key, "digest": s.digest, "computed": computed[s.key]} for s in study.summaries],
            "scored": {str(seed): scored_stage(study, seed) for seed in study.seeds},
            "set_aside": [dict(entry) for s in study.summaries for entry in s.set_aside],
            "cut_from": source and Plan(source, study.store, trial.device).maps_stage(study.method, e.seed).key,
            "experiment": e.key(),
            "ended": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
    record["seconds"] = round(time.time() - began + sum(p.get("seconds", 0) for p in parts), 3)
    record["gpu_bytes"] = max(memory.get("bytes", 0), *(p.get("gpu_bytes", 0) for p in parts), 0)
    record["gpu_total"] = max(memory.get("total", 0), *(p.get("gpu_total", 0) for p in parts), 0)
    if searches := (ledger.read(trial.key) or {}).get("searches"):
        record["searches"] = searches
    record = claimed(record, trial)
    ledger.write(trial.key, record)
    return record


def scored_split(e: Experiment) -> str:
    """The one split whose score counts: --data.score-split, of a segmentation without it the first of --data.segment-splits."""
    splits, scored = e.data.segment_splits, e.data.score_split
    return scored if e.until != "segmentation" or scored in splits or not splits else splits[0]


def scored_stage(study: Study, seed: int) -> list[str]:
    """Name and key of the artefact that holds the counts of every picture at the last scored stage."""
    method = study.method
    made = {
        "seed": study.seeds_stage,
        "mask": study.scored_stage,
        "segmentation": lambda m, s: study.predictions_stage(m, s, scored_split(study.experiment)),
    }.get(study.experiment.until)
    if made is None:
        return []
    stage = made(method, seed)
    return [stage.name, stage.key]


@contextlib.contextmanager
def quiet_gpu(device: str) -> Any:
    """On a GPU: `bytes` is afterwards the most memory that this process held, with what CUDA itself needs, `total` what the GPU has; trials
    share by it. A cluster's head, which only cuts maps, may have none."""
    import torch

    memory: dict[str, int] = {}
    if device != "cuda" or not torch.cuda.is_available():
        yield memory
        return
    torch.cuda.reset_peak_memory_stats()
    yield memory
    memory["bytes"] = torch.cuda.max_memory_reserved() + CONTEXT_BYTES
    memory["total"] = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.empty_cache()


CONTEXT_BYTES = 600 << 20
"""What CUDA takes of a GPU's memory for each process, beside torch's own."""


class TrialExecutor(LocalExecutor):
    """This process; with `report`, the maps that the trial is about are made in growing shares of the pictures, each with its score."""

    def __init__(self, trial: Trial, study: Study, report: Report | None) -> None:
        run = trial.experiment.run
        super().__init__(device=trial.device, threads=run.threads, workers=run.workers, commit_every=run.commit_every)
        self.trial, self.study, self.report = trial, study, report

    def map_images(self, work: Any, ids: Sequence[str], stage: Any, shown: Shown) -> int:
        e = self.trial.experiment
        mine = self.report is not None and stage.key == self.study.maps_stage(self.study.method, e.seed).key
        if not mine or self.report is None:
            return super().map_images(work, ids, stage, shown)
        order, computed = in_fixed_order(ids), 0
        scored, counts = set(self.study.keys.score_ids), None
        done = 0
        for share in SHARES:
            part = order[done : -(-len(order) * int(1000 * share) // 1000)]
            computed += super().map_images(work, part, stage, shown)
            done += len(part)
            counts = running_counts(self.study, stage, [i for i in part if i in scored], counts)
            if counts.counts.any():
                self.report(share, 100 * counts.best(e.scoring.absent(self.study.subset)).mean_iou)
        return computed


def in_fixed_order(ids: Sequence[str]) -> list[str]:
    """Shuffled, always in the same way: every trial's first eighth are the same pictures."""
    return [sorted(ids)[i] for i in np.random.default_rng(20210701).permutation(len(ids))]


def running_counts(study: Study, maps: Any, ids: Sequence[str], before: Any) -> Any:
    """The threshold sweep's counts of these pictures, added to those before."""
    from seedbed.artefacts.records import unpack
    from seedbed.seeds import SweepCounts
    from seedbed.work import ThresholdWork

    e, classes = study.experiment, len(study.store.info.classes)
    grid = e.scoring.grid()
    counts = SweepCounts(grid, classes) if before is None else before
    have = maps.records()
    count = ThresholdWork(study.address, e.data.cache, maps.folder, tuple(float(t) for t in grid), False).open()
    for ident in ids:
        if ident in have and study.store.has_mask([ident])[0]:
            counts.merge(SweepCounts.from_record(unpack(count(ident)["counts"]), grid, classes))
    return counts
