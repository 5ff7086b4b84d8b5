"""The smallest study that reaches its end, for tests of the late stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seedbed.pipeline import ShapesExperiment

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
