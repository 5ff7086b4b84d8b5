"""The smallest study that reaches its end, and what tests of whole studies look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from seedbed.artefacts import find_stages
from seedbed.artefacts.records import png
from seedbed.data import StoreWriter, open_store
from seedbed.pipeline import ShapesExperiment
from seedbed.types import Sample

WHOLE: dict[str, Any] = {
    "shapes.train": 24, "shapes.val": 8, "shapes.size": 48,
    "classifier.backbone": "small", "classifier.weights": "none", "classifier.epochs": 30, "classifier.batch": 5,
    "classifier.optimizer": "adam", "classifier.lr": 4e-3, "classifier.validate": "never",
    "classifier.transform.resize_low": 0, "classifier.transform.resize_high": 0, "classifier.transform.crop": 48,
    "data.train_split": "train", "data.map_split": "train", "data.companion_split": "train", "data.score_split": "train",
    "data.limit": 10, "cam.scales": (1.0, 0.5), "method": "cam",
    "scoring.low": 0.02, "scoring.high": 0.4, "scoring.step": 0.02,
    "refine.mask_background": 0.2, "refine.ignore_foreground": 0.3, "refine.ignore_background": 0.1,
    "refine.irn.backbone": "small", "refine.irn.weights": "classifier", "refine.irn.epochs": 2, "refine.irn.batch": 4,
    "refine.irn.crop": 64, "refine.irn.radius": 4, "refine.irn.walk.pad": 0, "refine.irn.walk.squarings": 4,
    "refine.affinitynet.backbone": "small", "refine.affinitynet.weights": "classifier", "refine.affinitynet.epochs": 2,
    "refine.affinitynet.batch": 4, "refine.affinitynet.crop": 48,
    "segmenter.model": "small", "segmenter.weights": "none", "segmenter.steps": 30, "segmenter.batch": 4, "segmenter.crop": 48,
    "segmenter.crf": "none", "segmenter.lr": 3e-3, "segmenter.optimizer": "adam", "segmenter.schedule": "cosine",
    "segmenter.scales": (1.0,),
    "run.executor": "local", "run.tracking_uri": "none",
}  # fmt: skip


def whole(out: Path, **changes: Any) -> ShapesExperiment:
    return ShapesExperiment(name="whole", out=str(out)).replace(**{**WHOLE, **changes})


def digests(out: Path) -> dict[str, list[str]]:
    """Stage -> the digests of its artefacts."""
    found: dict[str, list[str]] = {}
    for m in find_stages(out):
        found.setdefault(m["stage"], []).append(m["digest"])
    return {stage: sorted(values) for stage, values in found.items()}


def scrambled(out: Path, copy: Path, splits: tuple[str, ...] = ()) -> str:
    """A copy of a study's store whose masks (those of `splits` alone, where any are named) stand on their head; all else is as it was."""
    store = open_store(next((out / "data").iterdir()))
    there: dict[str, list[str]] = {i: [s for s in store.info.splits if i in set(store.ids(s))] for i in store.ids()}
    turned = {i for split in splits for i in store.ids(split)} if splits else set(store.ids())
    with StoreWriter(copy, store.info) as writer:
        for ident in store.ids():
            s = store[ident]
            masks: dict[str, bytes | memoryview] = {k: bytes(v) for k, v in s.masks.items()}
            if ident in turned:
                masks = {k: png(np.ascontiguousarray(s.mask(k)[::-1])) for k in s.masks}  # type: ignore[index]
            writer.add(Sample(s.id, bytes(s.picture), s.height, s.width, s.labels, s.label_source, masks), there[ident])
    return str(copy)
