"""What each stage's result depends on, as plain values: from these, the keys of its inputs and its code's version comes its content key."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from seedbed.data import Store
from seedbed.pipeline import Experiment, addons_key, code_version, plain
from seedbed.refine.saliency import folder_digest

BASELINES = ("whole_picture", "centred_box")


class Keys:
    """Content keys of the stages, known before any of them runs: a stage's settings, its inputs' keys, and the code's version."""

    def __init__(self, experiment: Experiment, store: Store, device: str) -> None:
        self.experiment, self.store, self.device = experiment, store, device
        data = experiment.data
        self._checksums: dict[tuple[str, tuple[str, ...]], str] = {}
        self.left_out: dict[str, str] = {}
        """Pictures that --data.skip-unreadable found damaged, and why."""
        self.map_ids = self._select(data.map_split)
        self.score_ids = self._select(data.score_split)
        scoring = experiment.scoring
        held_out = scoring.threshold_source == "held-out"
        self.held_out_ids = self._select(scoring.held_out_split) if held_out else []
        self.segmented_ids: dict[str, list[str]] = {}
        """Split -> its pictures that are segmented and scored at the end."""
        if experiment.until == "segmentation":
            self.segmented_ids = {split: self._select(split) for split in dict.fromkeys(data.segment_splits)}
        # Scored pictures need maps even where they get no pseudo-labels; on a split that is not trained on they are marked as oracle.
        self.train_ids, damaged = data.select(store, data.train_split)
        self.left_out_of_training = tuple(damaged)
        self.pseudo_ids = self.map_ids
        """Pictures that get pseudo-labels, and that refinement and segmenter are trained on."""
        self.map_ids = list(dict.fromkeys([*self.pseudo_ids, *self.score_ids, *self.held_out_ids]))
        self.mask_ids = list(dict.fromkeys([*self.pseudo_ids, *self.score_ids]))

    def _select(self, split: str) -> list[str]:
        ids, left_out = self.experiment.data.select(self.store, split, mapped=True)
        self.left_out |= left_out
        return ids

    @cached_property
    def companion_ids(self) -> list[str]:
        """Pictures that RIB takes its companions from."""
        return self.experiment.data.select(self.store, self.experiment.data.companion_split)[0]

    @cached_property
    def _saliency(self) -> str:
        return folder_digest(Path(self.experiment.refine.saliency), self.pseudo_ids)

    def _inputs(self, ids: list[str]) -> str:
        return self._checksum(self.store.inputs_checksum, ids)

    def _truth(self, ids: list[str]) -> str:
        return self._checksum(self.store.truth_checksum, ids)

    def _checksum(self, of: Callable[[list[str]], str], ids: list[str]) -> str:
        """A store's checksums are asked for by every stage's key and do not change: taken once for each list of pictures."""
        asked = of.__name__, tuple(ids)
        if asked not in self._checksums:
            self._checksums[asked] = of(ids)
        return self._checksums[asked]

    def resources(self) -> dict[str, Any]:
        return {"device": self.device, "threads": self.experiment.run.threads}

    def _workers(self) -> dict[str, Any]:
        """Of trainings whose loss divides by counts of the whole batch (`loop.Counting`). With several workers they were a share's once."""
        workers = self.experiment.run.workers
        return {"workers": workers, **({"counts": "of the whole batch"} if workers > 1 else {})}

    def classifier_settings(self, seed: int) -> dict[str, Any]:
        e = self.experiment
        return {
            "classifier": e.classifier.resolved().to_dict(only_key=True),
            "method": e.trainer,
            **self._trained_by(),
            **addons_key(e),
            "seed": seed,
            "workers": e.run.workers,
            "inputs": self._inputs(self.train_ids),
            **self.resources(),
        }

    def _trained_by(self) -> dict[str, Any]:
        """A method's own training: its settings and its code's version. CAM's is the classifier's."""
        if self.experiment.trainer == "cam":
            return {}
        settings = {k: v for k, v in self.experiment.seam.to_dict(only_key=True).items() if k != "output"}
        return {self.experiment.trainer: settings, "code": code_version(self.experiment.trainer)}

    def maps_settings(self, method: str, seed: int, ids: list[str]) -> dict[str, Any]:
        e = self.experiment
        out = {
            "method": method,
            "cam": e.cam.to_dict(only_key=True),
            "inputs": self._inputs(ids),
            **self.resources(),
        }
        if plain(method) == "seam":
            out |= {"seam": e.seam.to_dict(only_key=True)}
        if plain(method) == "rib":
            out |= {"rib": e.rib.to_dict(only_key=True), "seed": seed, "companions": self._inputs(self.companion_ids)}
            out |= {"transform": e.classifier.resolved().transform.to_dict(only_key=True)}
        return out

    def sweep_settings(self, ids: list[str], split: str) -> dict[str, Any]:
        scoring = self.experiment.scoring
        grid = [float(t) for t in scoring.grid()]
        return {"grid": grid, "split": split, "truth": self._truth(ids)}

    def seeds_settings(self, method: str, subset: bool) -> dict[str, Any]:
        """What label maps and their counts depend on, beyond the maps and the sweep that chose the threshold."""
        scoring, ids = self.experiment.scoring, self.score_ids
        common = {"method": method, "tolerance": scoring.tolerance, "truth": self._truth(ids)}
        if method in BASELINES:
            return {**common, "labels": self._inputs(ids)}
        source = scoring.threshold_source
        chosen = {"threshold": scoring.threshold} if source == "fixed" else {"absent": scoring.absent(subset)}
        return {**common, "source": source, **chosen}

    def crf_settings(self, method: str, subset: bool) -> dict[str, Any]:
        return {**self.seeds_settings(method, subset), "crf": self.experiment.refine.label_crf.to_dict(only_key=True)}

    def confidence_settings(self) -> dict[str, Any]:
        refine = self.experiment.refinement
        if refine.method == "irn":
            own = {"confident": [refine.confident_foreground, refine.confident_background], "crf": refine.label_crf.to_dict(only_key=True)}
        else:
            own = {"alphas": list(refine.alphas), "crf": refine.score_crf.to_dict(only_key=True)}
            own["labels"] = "scores"  # averaged before they are decided on; an older form kept the decision of each pixel
        return {"refinement": refine.method, **own, "inputs": self._inputs(self.pseudo_ids)}

    def affinity_settings(self, seed: int) -> dict[str, Any]:
        e = self.experiment
        config = e.refine.irn if e.refine.method == "irn" else e.refine.affinitynet
        return {
            "refinement": e.refine.method,
            "network": config.training_key(),
            "seed": seed,
            **self._workers(),
            "inputs": self._inputs(self.pseudo_ids),
            **self.resources(),
        }

    def masks_settings(self, method: str, ids: list[str]) -> dict[str, Any]:
        refine = self.experiment.refine
        used = refine.to_dict(only_key=True)
        for name in ("confident_foreground", "confident_background", "alpha_low", "alpha_high", "score_crf", "crf_seeds"):
            del used[name]
        del used["irn"], used["affinitynet"]
        if refine.has_network:  # its training stands in the key of its weights
            used["walk"] = (refine.irn if refine.method == "irn" else refine.affinitynet).walk_key()
        if not refine.ignores():
            del used["ignore_foreground"], used["ignore_background"]
        if refine.saliency:
            used["saliency"] = self._saliency
        else:
            del used["salient"], used["saliency"]
        if refine.method != "crf":
            del used["label_crf"]
        if refine.method != "irn":
            del used["power"]
        return {"method": method, "refine": used, "inputs": self._inputs(ids), **self.resources()}

    def scored_settings(self, ids: list[str]) -> dict[str, Any]:
        return {"tolerance": self.experiment.scoring.tolerance, "truth": self._truth(ids)}

    def segmenter_settings(self, seed: int) -> dict[str, Any]:
        e = self.experiment
        return {
            "segmenter": e.segmenter.training_dict(),
            "seed": seed,
            **self._workers(),
            "inputs": self._inputs(self.pseudo_ids),
            **self.resources(),
        }

    def predictions_settings(self, ids: list[str], split: str, *, scored: bool) -> dict[str, Any]:
        """Predictions that are not scored (they fill labels) do not depend on any mask."""
        own = {"segmenter": self.experiment.segmenter.inference_dict(), "split": split, "inputs": self._inputs(ids)}
        return {**own, **(self.scored_settings(ids) if scored else {}), **self.resources()}
