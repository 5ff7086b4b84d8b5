"""A study's stages in order, each asked for by its key: found where it is whole, gone on with where it was cut short, else made.

Here classifier -> maps -> thresholds -> seeds; refining.py and segmenting.py go on from there.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from seedbed import progress, provenance
from seedbed.artefacts import Fragments, Stage, fills_labels
from seedbed.artefacts.records import unpack
from seedbed.checks import check
from seedbed.data import Store
from seedbed.keys import BASELINES, Keys
from seedbed.local import Executor, ImageWork, Tracker, make_missing
from seedbed.pipeline import Experiment, classifier_task, method_settings, plain
from seedbed.plan import COPIED, TAKEN_OVER, Plan
from seedbed.report import StageSummary, StudyResult
from seedbed.scores import mean_metrics
from seedbed.seeds import SweepCounts, Threshold, choose_threshold
from seedbed.stage_rows import seed_rows
from seedbed.trainings import Training, train_all
from seedbed.types import UserError
from seedbed.work import LocaliseWork, SeedWork, ThresholdWork

MapsWork = Callable[[int, ImageWork], ImageWork]
"""Random seed and the work of making the maps -> other work that leaves the same records."""


class Study(Plan):
    """One study on its way: its plan, and what its stages left behind so far."""

    def __init__(self, experiment: Experiment, store: Store, device: str, maps_work: MapsWork | None = None) -> None:
        """`maps_work`: a shorter way to the maps of the study's method, where there is one (sweeps/cut.py)."""
        super().__init__(experiment, store, device)
        self.maps_work = maps_work
        self.git = str(provenance.git_commit()["commit"])
        self.summaries: list[StageSummary] = []
        self.rows: list[dict[str, Any]] = []
        self.sweeps: dict[tuple[str, int], Stage] = {}
        self.counts: dict[tuple[str, int], SweepCounts] = {}
        self.maps_stages: dict[tuple[str, int], Stage] = {}
        self.seeds_stages: dict[tuple[str, int], Stage] = {}
        self.thresholds: dict[tuple[str, int], Threshold] = {}
        where = experiment.data.store
        self.address = where if "://" in where else str(store.path)  # every node brings a remote store to itself
        self.warnings: list[str] = []
        self.executor: Executor
        self.tracker: Tracker
        self.progress = progress.Progress()

    @classmethod
    def open(cls, experiment: Experiment, *, device: str = "cpu", dry: bool = False) -> Study:
        """Looks at data and settings before anything is started; raises UserError for what can't work."""
        study = cls(experiment, experiment.open_data(dry=dry), device)
        check(study, dry=dry)
        return study

    def collect(self, executor: Executor, tracker: Tracker) -> list[dict[str, Any]]:
        """All stages and their rows, and nothing else: no scores.json, no report, no run.json."""
        self.executor, self.tracker = executor, tracker
        self.keys = Keys(self.experiment, self.store, executor.device)
        self.walk()
        return self.rows

    def run(self, executor: Executor, tracker: Tracker) -> StudyResult:
        """All stages, then scores, report and record. An error or Ctrl-C leaves what is finished."""
        from seedbed import results

        began, status, failure = time.time(), "FAILED", None
        e = self.experiment
        name = e.run.name or f"{e.name} {e.key()[:8]}"
        tags = {"seedbed.kind": "study", "seedbed.key": e.key(), "seedbed.method": self.method, "seedbed.seed": str(e.seed)}
        tracker.start(e.name, name, e.flat(), tags)
        try:
            self.collect(executor, tracker)
            result = results.conclude(self, began)
            status = "FINISHED"
            return result
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        except BaseException as error:
            failure = error
            raise
        finally:
            with contextlib.suppress(UserError) if failure is not None else contextlib.nullcontext():  # the first error counts
                results.write_run_record(self, began, status, failure)
            tracker.end(status)

    def walk(self) -> None:
        """The way of all repetitions, stage by stage: what they train is trained side by side."""
        from seedbed import refining, segmenting

        train_all(self, [Training("classifier", self.classifier_stage(s), partial(self.task, s), None, s) for s in self.seeds])
        for seed in self.seeds:
            for method in self.methods:
                self.localise(method, seed)
                if self.reaches("seed"):
                    threshold = self.choose_threshold(method, seed)
                    self.make_seeds(method, seed, threshold)
                    if self.reaches("mask") and self.experiment.refine.crf_seeds:
                        refining.crf_seeds(self, method, seed, threshold)
        for method in self.going("mask"):
            refining.refine(self, method)
        for method in self.going("segmentation"):
            segmenting.segment(self, method)
        if self.reaches("seed"):
            for method in BASELINES:
                self.make_seeds(method, self.experiment.seed, None)

    def task(self, seed: int) -> Any:
        return classifier_task(self.experiment, self.store, self.network_seed(seed), self.keys.left_out_of_training)

    def label(self, name: str, method: str | None, seed: int) -> str:
        """A stage's name in terminal and summary."""
        return " ".join(str(part) for part in (name, method, seed if len(self.seeds) > 1 else None) if part is not None)

    def localise(self, method: str, seed: int) -> None:
        e = self.experiment
        companions = None
        if plain(method) == "rib" and e.rib.companion_rows > 0:
            companions = {
                "split": e.data.select(self.store, e.data.companion_split)[0],
                "transform": e.classifier.resolved().transform,
                "batch": e.rib.companion_rows,
                "seed": seed,
                "exhausted": e.rib.companions_exhausted,
                "disjoint": e.rib.companions == "disjoint",
            }
        stage = self.maps_stages[method, seed] = self.maps_stage(method, seed)
        for ident, reason in self.keys.left_out.items() if stage.manifest is None else ():
            stage.set_aside(ident, reason)
        work: ImageWork = LocaliseWork(
            store=self.address,
            cache=e.data.cache,
            classifier=self.classifier_stage(seed).folder,
            network=e.classifier.backbone,
            method=plain(method),
            trained_by=e.trainer,
            settings=method_settings(e, method),
            companions=companions,
            device=self.executor.device,
            threads=e.run.threads,
        )
        if self.maps_work is not None and method == self.method:
            work = self.maps_work(seed, work)
        self.per_image("maps", stage, method, seed, work, self.keys.map_ids)

    def choose_threshold(self, method: str, seed: int) -> Threshold:
        """The sweep over the scored split (and over the held-out one, where that chooses), and the threshold taken from it."""
        e = self.experiment
        counts = self.counts[method, seed] = self.sweep(method, seed, e.data.score_split, self.keys.score_ids)
        held_out = None
        if e.scoring.threshold_source == "held-out":
            held_out = self.sweep(method, seed, e.scoring.held_out_split, self.keys.held_out_ids)
        absent = e.scoring.absent(self.subset)
        threshold = self.thresholds[method, seed] = choose_threshold(e.scoring, absent, e.data.score_split, counts, held_out)
        return threshold

    def sweep(self, method: str, seed: int, split: str, ids: list[str]) -> SweepCounts:
        """Counts of every threshold of the grid on these pictures."""
        e = self.experiment
        grid, maps = e.scoring.grid(), self.maps_stage(method, seed)
        stage = self.thresholds_stage(method, seed, split, ids)
        if split == e.data.score_split:
            self.sweeps[method, seed] = stage
        snapshots = plain(method) == "rib" and e.rib.snapshots
        work = ThresholdWork(self.address, e.data.cache, maps.folder, tuple(float(t) for t in grid), snapshots)
        have = maps.records()
        self.per_image("thresholds", stage, method, seed, work, [i for i in ids if i in have])
        counts = SweepCounts(grid, len(self.store.info.classes))
        for (packed,) in stage.records().columns("counts"):
            counts.merge(SweepCounts.from_record(unpack(packed), grid, len(self.store.info.classes)))
        return counts

    def make_seeds(self, method: str, seed: int, threshold: Threshold | None) -> None:
        e = self.experiment
        source: Any = method if method in BASELINES else self.maps_stage(method, seed).folder
        value = threshold.value if threshold is not None else 0.0
        work = SeedWork(self.address, e.data.cache, source, value, e.scoring.tolerance)
        stage = self.seeds_stages[method, seed] = self.seeds_stage(method, seed)
        ids = self.keys.score_ids
        if method not in BASELINES:
            have = self.maps_stage(method, seed).records()
            ids = [i for i in ids if i in have]
        with self.per_image("seeds", stage, method, seed, work, ids, keep_open=True) as child:
            rows = seed_rows(self, stage, method, seed, threshold)
            self.rows += rows
            self.tracker.log(mean_metrics(rows), child=child)

    # --- what every stage needs ----------------------------------------------------------------------

    def per_image(self, name: str, stage: Stage, method: str, seed: int, work: ImageWork, ids: list[str], keep_open: bool = False) -> Any:
        context = self._per_image_stage(name, stage, method, seed, work, ids)
        if keep_open:
            return context
        with context:
            return None

    @contextmanager
    def _per_image_stage(self, name: str, stage: Stage, method: str, seed: int, work: ImageWork, ids: list[str]) -> Iterator[str]:
        with self.recorded(name, stage, method, seed) as child:
            if stage.manifest is None:
                with stage.alone():
                    if stage.manifest is None:
                        self._make(name, stage, method, seed, work, ids)
            yield child

    def _make(self, name: str, stage: Stage, method: str, seed: int, work: ImageWork, ids: list[str]) -> None:
        began = time.perf_counter()
        if name in COPIED:
            self._take_over(stage, ids)
        computed = make_missing(self.executor, work, ids, stage, self.progress, self.label(name, method.upper(), seed))
        summary = {
            **(getattr(work, "summary", None) or {}),
            **({"pictures": self._pictures(stage.records())} if name in TAKEN_OVER else {}),
        }
        stage.finish(computed=computed, seconds=time.perf_counter() - began, summary=summary)

    def _take_over(self, stage: Stage, ids: list[str]) -> None:
        """Another split is scored, and most of the pictures are the same: their records are there already, of the same bits."""
        wanted = set(stage.pending(ids))
        for records in self.related(stage) if wanted else ():
            stage.take_over(records, [i for i in records.ids() if i in wanted])
            wanted -= set(records.ids())
            if not wanted:
                return  # the others' pictures need not be read

    def related(self, stage: Stage) -> Iterator[Fragments]:
        """Records that differ from the stage's in nothing but their pictures and scores, if the pictures are still what they were."""
        for other in stage.relatives():
            records = Fragments(Path(other["folder"]))
            if other["summary"].get("pictures") == self._pictures(records):
                yield records

    def _pictures(self, records: Fragments) -> str:
        """Checksum of the pictures that these records are of, as the store has them now; empty where it lacks one."""
        ids = records.ids()
        return self.store.inputs_checksum(ids) if all(i in self.store for i in ids) else ""

    @contextmanager
    def recorded(self, name: str, stage: Stage, method: str | None, seed: int) -> Iterator[str]:
        """A child run in the tracker and a line in the summary; a whole artefact is marked as found."""
        child = self.begin(name, stage, method, seed)
        try:
            yield child
        except BaseException as error:
            self.failed(child, error)
            raise
        self.finished(child, name, stage, method, seed)

    def begin(self, name: str, stage: Stage, method: str | None, seed: int) -> str:
        """Begins the stage's child run, whose name in the tracker is returned."""
        if stage.manifest is not None and not any(s.key == stage.key for s in self.summaries):
            stage.found()
        tags = {"seedbed.kind": "stage", "seedbed.stage": name, "seedbed.key": stage.key, "seedbed.seed": str(seed)}
        if method is not None:
            tags["seedbed.method"] = method
        pictures = "filling" if name == "predictions" and fills_labels(stage.settings) else stage.settings.get("split")
        return self.tracker.stage(" ".join(str(part) for part in (name, method, seed, pictures) if part is not None), tags)

    def failed(self, child: str, error: BaseException) -> None:
        self.tracker.end_stage(child, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")

    def finished(self, child: str, name: str, stage: Stage, method: str | None, seed: int) -> None:
        """Ends the child run; the summary gets a line for the stage."""
        manifest = stage.manifest
        assert manifest is not None
        if not any(s.key == stage.key for s in self.summaries):
            figures = {k: manifest[k] for k in ("key", "count", "computed", "seconds", "set_aside", "digest")}
            self.summaries.append(StageSummary(name=self.label(name, method, seed), **figures))
        self.tracker.log({"records": manifest["count"], "computed": manifest["computed"], "seconds": manifest["seconds"]}, child=child)
        self.tracker.end_stage(child)
