"""Which stages a study has, and their content keys: all known before any of them runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from seedbed.artefacts import MAPS, SEEDS, THRESHOLDS, WEIGHTS, Stage
from seedbed.config import digest
from seedbed.data import Store
from seedbed.pipeline import Experiment, code_version

VERSIONS = {"classifier": 1, "thresholds": 1, "seeds": 1}
"""Code versions of the stages whose code has no constant of its own; a golden test fails when output changes without a new one."""

BASELINES = ("whole_picture", "centred_box")


class Keys:
    """Content keys of the stages, known before any of them runs: a stage's settings, its inputs' keys, and the code's version."""

    def __init__(self, experiment: Experiment, store: Store, device: str) -> None:
        self.experiment, self.store, self.device = experiment, store, device
        data = experiment.data
        self.left_out: dict[str, str] = {}
        """Pictures that --data.skip-unreadable found damaged, and why."""
        self.map_ids = self._select(data.map_split)
        self.score_ids = self._select(data.score_split)
        scoring = experiment.scoring
        held_out = scoring.threshold_source == "held-out"
        self.held_out_ids = self._select(scoring.held_out_split) if held_out else []
        # Scored pictures need maps even where they get no pseudo-labels; on a split that is not trained on they are marked as oracle.
        self.train_ids, damaged = data.select(store, data.train_split)
        self.left_out_of_training = tuple(damaged)
        self.map_ids = list(dict.fromkeys([*self.map_ids, *self.score_ids, *self.held_out_ids]))

    def _select(self, split: str) -> list[str]:
        ids, left_out = self.experiment.data.select(self.store, split, mapped=True)
        self.left_out |= left_out
        return ids

    def resources(self) -> dict[str, Any]:
        return {"device": self.device, "threads": self.experiment.run.threads}

    def classifier_settings(self, seed: int) -> dict[str, Any]:
        e = self.experiment
        return {
            "classifier": e.classifier.resolved().to_dict(only_key=True),
            "method": "cam",
            "seed": seed,
            "workers": e.run.workers,
            "inputs": self.store.inputs_checksum(self.train_ids),
            **self.resources(),
        }

    def maps_settings(self, method: str, seed: int) -> dict[str, Any]:
        e = self.experiment
        out = {
            "method": method,
            "cam": e.cam.to_dict(only_key=True),
            "inputs": self.store.inputs_checksum(self.map_ids),
            **self.resources(),
        }
        if method == "rib":
            companions = e.data.select(self.store, e.data.companion_split)[0]
            out |= {"rib": e.rib.to_dict(only_key=True), "seed": seed, "companions": self.store.inputs_checksum(companions)}
            out |= {"transform": e.classifier.resolved().transform.to_dict(only_key=True)}
        return out

    def sweep_settings(self, ids: list[str], split: str) -> dict[str, Any]:
        scoring = self.experiment.scoring
        grid = [float(t) for t in scoring.grid()]
        return {"grid": grid, "split": split, "truth": self.store.truth_checksum(ids)}

    def seeds_settings(self, method: str, subset: bool) -> dict[str, Any]:
        """What label maps and their counts depend on, beyond the maps and the sweep that chose the threshold."""
        scoring, ids = self.experiment.scoring, self.score_ids
        common = {"method": method, "tolerance": scoring.tolerance, "truth": self.store.truth_checksum(ids)}
        if method in ("whole_picture", "centred_box"):
            return {**common, "labels": self.store.inputs_checksum(ids)}
        source = scoring.threshold_source
        chosen = {"threshold": scoring.threshold} if source == "fixed" else {"absent": scoring.absent(subset)}
        return {**common, "source": source, **chosen}


class Plan:
    """The stages of a study in order, each under its key."""

    def __init__(self, experiment: Experiment, store: Store, device: str) -> None:
        self.experiment, self.store = experiment, store
        self.out = experiment.folder()
        self.keys = Keys(experiment, store, device)
        self.subset = store.info.subset or bool(experiment.data.limit or experiment.data.map_limit)

    @property
    def methods(self) -> tuple[str, ...]:
        return ("cam",) if self.experiment.method == "cam" else ("cam", self.experiment.method)

    @property
    def seeds(self) -> range:
        return range(self.experiment.seed, self.experiment.seed + self.experiment.seeds)

    def classifier_seed(self, seed: int) -> int:
        return seed if self.experiment.seeds_vary == "all" else self.experiment.seed

    def _stage(
        self, name: str, settings: dict[str, Any], schema: pa.Schema, inputs: dict[str, str], version: int, method: str | None
    ) -> Stage:
        key = digest({"stage": name, "settings": settings, "inputs": inputs, "version": version})
        return Stage(self.out, name, key, schema, settings=settings, inputs=inputs, version=version, method=method)

    def classifier_stage(self, seed: int) -> Stage:
        settings = self.keys.classifier_settings(self.classifier_seed(seed))
        return self._stage("classifier", settings, WEIGHTS, {}, VERSIONS["classifier"], None)

    def maps_stage(self, method: str, seed: int) -> Stage:
        inputs = {"classifier": self.classifier_stage(seed).key}
        return self._stage("maps", self.keys.maps_settings(method, seed), MAPS, inputs, code_version(method), method)

    def thresholds_stage(self, method: str, seed: int, split: str | None = None, ids: list[str] | None = None) -> Stage:
        split, ids = split or self.experiment.data.score_split, self.keys.score_ids if ids is None else ids
        inputs = {"maps": self.maps_stage(method, seed).key}
        return self._stage("thresholds", self.keys.sweep_settings(ids, split), THRESHOLDS, inputs, VERSIONS["thresholds"], method)

    def seeds_stage(self, method: str, seed: int) -> Stage:
        inputs = {}
        if method not in BASELINES:
            inputs = {"maps": self.maps_stage(method, seed).key}
            inputs |= {f"thresholds {stage.settings['split']}": stage.key for stage in self.choosing(method, seed)}
        return self._stage("seeds", self.keys.seeds_settings(method, self.subset), SEEDS, inputs, VERSIONS["seeds"], method)

    def choosing(self, method: str, seed: int) -> list[Stage]:
        """The sweeps that a method's threshold is taken from: none where it is fixed."""
        e = self.experiment
        if e.scoring.threshold_source == "held-out":
            return [self.thresholds_stage(method, seed, e.scoring.held_out_split, self.keys.held_out_ids)]
        return [self.thresholds_stage(method, seed)] if e.scoring.threshold_source == "oracle" else []

    def plan(self) -> Iterator[tuple[str, Stage]]:
        """Every stage of the study in order, with its label; a stage that two repetitions share comes once."""
        seen: set[str] = set()
        for seed in self.seeds:
            stages = [("classifier", self.classifier_stage(seed))]
            for method in self.methods:
                stages.append((f"maps {method}", self.maps_stage(method, seed)))
                if self.experiment.until != "maps":
                    sweeps = {s.key: s for s in (self.thresholds_stage(method, seed), *self.choosing(method, seed))}
                    stages += [(f"thresholds {method}", sweep) for sweep in sweeps.values()]
                    stages.append((f"seeds {method}", self.seeds_stage(method, seed)))
            if self.experiment.until != "maps":
                stages += [(f"seeds {method}", self.seeds_stage(method, seed)) for method in BASELINES]
            for label, stage in stages:
                if stage.key not in seen:
                    seen.add(stage.key)
                    yield f"{label} {seed}" if len(self.seeds) > 1 and "maps" in f"{stage.inputs} {label}" else label, stage

    def explanation(self) -> Iterator[str]:
        """name, key, state, reason: one line for each stage."""
        for label, stage in self.plan():
            if stage.manifest is not None:
                state, why = "found", f"{stage.manifest['count']:,} records with these settings and inputs"
            elif stage.folder.exists():
                state, why = "goes on", f"{len(stage.records()):,} records are committed, the artefact is not whole"
            else:
                others = [p.name for p in stage.folder.parent.glob("*") if p.is_dir()]
                state = "runs"
                why = f"no artefact with this key (there are {len(others)} with other settings or inputs)" if others else "no artefact yet"
            yield f"{label:24} {stage.key}  {state:8} {why}"

    def finished_on(self) -> str | None:
        """A device for which every stage is whole already: then nobody has to be asked for work."""
        wanted = self.experiment.run.device
        for device in ("cuda", "cpu") if wanted == "auto" else (wanted,):
            plan = Plan(self.experiment, self.store, device)
            if all(stage.manifest is not None for _, stage in plan.plan()):
                return device
        return None
