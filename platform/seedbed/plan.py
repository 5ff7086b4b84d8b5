"""Which stages a study has, and their content keys: all known before any of them runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from seedbed.artefacts import LABELS, MAPS, MASKS, PREDICTIONS, SCORED, SCORED_LABELS, SEEDS, THRESHOLDS, WEIGHTS, Stage
from seedbed.config import digest
from seedbed.data import Store
from seedbed.keys import BASELINES, Keys
from seedbed.pipeline import UNTIL, Experiment, code_version

VERSIONS = {
    "classifier": 1,
    "thresholds": 1,
    "seeds": 1,
    "crf": 1,
    "confidence": 1,
    "affinity": 1,
    "masks": 1,
    "scored": 1,
    "segmenter": 1,
    "retrained": 1,
    "predictions": 1,
}
"""Code versions of the stages whose code has no constant of its own; a golden test fails when output changes without a new one."""

COPIED = ("maps", "masks")
"""Stages with long work for each picture, whose records are taken from an artefact that differs in nothing but its pictures."""
TAKEN_OVER = (*COPIED, "predictions")
"""Predictions too, where how they are scored may differ: then their label maps are counted anew (label_work.Known)."""


class Plan:
    """The stages of a study in order, each under its key."""

    only: int | None = None
    """The one random seed of a part of a sweep's trial (sweeps/parts.py)."""

    def __init__(self, experiment: Experiment, store: Store, device: str) -> None:
        self.experiment, self.store = experiment, store
        self.out = experiment.folder()
        self.keys = Keys(experiment, store, device)
        self.subset = store.info.subset or bool(experiment.data.limit or experiment.data.map_limit)

    @property
    def methods(self) -> tuple[str, ...]:
        """Named with their add-ons; the last is the study's own."""
        return self.experiment.labels

    @property
    def method(self) -> str:
        return self.methods[-1]

    @property
    def seeds(self) -> range:
        """The random seeds that are repeated; of a part of a sweep's trial `only` its own."""
        return self.experiment.random_seeds if self.only is None else range(self.only, self.only + 1)

    def network_seed(self, seed: int) -> int:
        """Of classifier, refinement's network and segmenters: with `--seeds-vary rib` the first one, so that RIB alone varies."""
        return seed if self.experiment.seeds_vary == "all" else self.experiment.seed

    def _stage(
        self, name: str, settings: dict[str, Any], schema: pa.Schema, inputs: dict[str, str], version: int, method: str | None
    ) -> Stage:
        key = digest({"stage": name, "settings": settings, "inputs": inputs, "version": version})
        return Stage(self.out, name, key, schema, settings=settings, inputs=inputs, version=version, method=method)

    def classifier_stage(self, seed: int) -> Stage:
        settings = self.keys.classifier_settings(self.network_seed(seed))
        return self._stage("classifier", settings, WEIGHTS, {}, VERSIONS["classifier"], None)

    def maps_stage(self, method: str, seed: int, ids: list[str] | None = None) -> Stage:
        inputs = {"classifier": self.classifier_stage(seed).key}
        settings = self.keys.maps_settings(method, seed, self.keys.map_ids if ids is None else ids)
        return self._stage("maps", settings, MAPS, inputs, code_version(method), method)

    def trained_maps(self, method: str, seed: int) -> str:
        """Key of the maps that pseudo-labels come from: what is trained on them does not depend on what else is scored.

        An artefact of that key need not be there: its records are among those of `maps_stage`.
        """
        return self.maps_stage(method, seed, self.keys.pseudo_ids).key

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

    # --- from maps to a segmenter, of the study's method ----------------------------------------------

    def crf_stage(self, method: str, seed: int) -> Stage:
        inputs = {"seeds": self.seeds_stage(method, seed).key}
        return self._stage("crf", self.keys.crf_settings(method, self.subset), SEEDS, inputs, VERSIONS["crf"], method)

    def confidence_stage(self, method: str, seed: int) -> Stage:
        inputs = {"maps": self.trained_maps(method, seed)}
        schema = SCORED_LABELS if self.experiment.refine.method == "affinitynet" else LABELS
        return self._stage("confidence", self.keys.confidence_settings(), schema, inputs, VERSIONS["confidence"], method)

    def affinity_stage(self, method: str, seed: int) -> Stage:
        inputs = {"confidence": self.confidence_stage(method, seed).key}
        if self.experiment.refine.network_weights == "classifier":
            inputs["classifier"] = self.classifier_stage(seed).key
        return self._stage("affinity", self.keys.affinity_settings(self.network_seed(seed)), WEIGHTS, inputs, VERSIONS["affinity"], method)

    def masks_stage(self, method: str, seed: int, ids: list[str] | None = None) -> Stage:
        inputs = {"maps": self.trained_maps(method, seed)}
        if self.experiment.refine.has_network:
            inputs["affinity"] = self.affinity_stage(method, seed).key
        settings = self.keys.masks_settings(method, self.keys.mask_ids if ids is None else ids)
        return self._stage("masks", settings, MASKS, inputs, VERSIONS["masks"], method)

    def trained_masks(self, method: str, seed: int) -> str:
        """Key of the pseudo-labels that segmenters are trained on, as `trained_maps`."""
        return self.masks_stage(method, seed, self.keys.pseudo_ids).key

    def scored_stage(self, method: str, seed: int) -> Stage:
        inputs = {"masks": self.masks_stage(method, seed).key}
        return self._stage("scored", self.keys.scored_settings(self.keys.score_ids), SCORED, inputs, VERSIONS["scored"], method)

    def segmenter_stage(self, method: str, seed: int) -> Stage:
        inputs = {"masks": self.trained_masks(method, seed)}
        return self._stage(
            "segmenter", self.keys.segmenter_settings(self.network_seed(seed)), WEIGHTS, inputs, VERSIONS["segmenter"], method
        )

    def filling_stage(self, method: str, seed: int) -> Stage:
        """What the first segmenter says of the pictures that it was trained on: it fills their ignored pixels."""
        inputs = {"segmenter": self.segmenter_stage(method, seed).key}
        settings = self.keys.predictions_settings(self.keys.pseudo_ids, self.experiment.data.map_split, scored=False)
        return self._stage("predictions", settings, PREDICTIONS, inputs, VERSIONS["predictions"], method)

    def retrained_stage(self, method: str, seed: int) -> Stage:
        inputs = {"masks": self.trained_masks(method, seed), "predictions": self.filling_stage(method, seed).key}
        return self._stage(
            "retrained", self.keys.segmenter_settings(self.network_seed(seed)), WEIGHTS, inputs, VERSIONS["retrained"], method
        )

    def final_segmenter(self, method: str, seed: int) -> Stage:
        return (self.retrained_stage if self.retrains else self.segmenter_stage)(method, seed)

    @property
    def retrains(self) -> bool:
        """Whether a second segmenter is trained: by itself only where there are pixels to fill, and not with saliency (RIB, appendix)."""
        wanted, refine = self.experiment.segmenter.retrain, self.experiment.refine
        return wanted == "yes" or (wanted == "auto" and refine.ignores() and not refine.saliency)

    def predictions_stage(self, method: str, seed: int, split: str) -> Stage:
        inputs = {"segmenter": self.final_segmenter(method, seed).key}
        settings = self.keys.predictions_settings(self.keys.segmented_ids[split], split, scored=True)
        return self._stage("predictions", settings, PREDICTIONS, inputs, VERSIONS["predictions"], method)

    def reaches(self, last: str) -> bool:
        """Whether the study goes as far as `seed`, `mask` or `segmentation`."""
        return UNTIL.index(self.experiment.until) >= UNTIL.index(last)

    def going(self, last: str) -> tuple[str, ...]:
        """The methods that go as far as this: the study's own, and the plain one before it where `--baseline` says so."""
        if not self.reaches(last):
            return ()
        return self.methods if UNTIL.index(self.experiment.baseline) >= UNTIL.index(last) else (self.method,)

    def _late(self, method: str, seed: int) -> Iterator[tuple[str, Stage]]:
        if method in self.going("mask"):
            if self.experiment.refine.has_network:
                yield f"confidence {method}", self.confidence_stage(method, seed)
                yield f"affinity {method}", self.affinity_stage(method, seed)
            yield f"masks {method}", self.masks_stage(method, seed)
            yield f"scored {method}", self.scored_stage(method, seed)
        if method in self.going("segmentation"):
            yield f"segmenter {method}", self.segmenter_stage(method, seed)
            if self.retrains:
                yield f"predictions {method}", self.filling_stage(method, seed)
                yield f"retrained {method}", self.retrained_stage(method, seed)
            for split in self.keys.segmented_ids:
                yield f"predictions {method}", self.predictions_stage(method, seed, split)

    # --- all of them ----------------------------------------------------------------------------------

    def plan(self) -> Iterator[tuple[str, Stage]]:
        """Every stage of the study in order, with its label; a stage that two repetitions share comes once."""
        seen: set[str] = set()
        for seed in self.seeds:
            stages = [("classifier", self.classifier_stage(seed))]
            for method in self.methods:
                stages.append((f"maps {method}", self.maps_stage(method, seed)))
                if self.reaches("seed"):
                    sweeps = {s.key: s for s in (self.thresholds_stage(method, seed), *self.choosing(method, seed))}
                    stages += [(f"thresholds {method}", sweep) for sweep in sweeps.values()]
                    stages.append((f"seeds {method}", self.seeds_stage(method, seed)))
                if self.reaches("mask") and self.experiment.refine.crf_seeds:
                    stages.append((f"crf {method}", self.crf_stage(method, seed)))
            for method in self.methods:
                stages += self._late(method, seed)
            if self.reaches("seed"):
                stages += [(f"seeds {method}", self.seeds_stage(method, seed)) for method in BASELINES]
            for label, stage in stages:
                if stage.key not in seen:
                    seen.add(stage.key)
                    yield f"{label} {seed}" if len(self.seeds) > 1 and not label.endswith(BASELINES) else label, stage

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
                if stage.name in TAKEN_OVER and (there := stage.relatives()):
                    why = f"other pictures or scores than in {', '.join(o['key'] for o in there)}: records in common are taken over"
            yield f"{label:24} {stage.key}  {state:8} {why}"

    def finished_on(self) -> str | None:
        """A device for which every stage is whole already: then nobody has to be asked for work."""
        wanted = self.experiment.run.device
        for device in ("cuda", "cpu") if wanted == "auto" else (wanted,):
            plan = Plan(self.experiment, self.store, device)
            if all(stage.manifest is not None for _, stage in plan.plan()):
                return device
        return None
