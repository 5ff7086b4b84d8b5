"""The stages after the pseudo-labels: a segmenter, its predictions, the second segmenter on filled labels, scores."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seedbed.artefacts import Fragments, Stage, fills_labels
from seedbed.artefacts.records import pixels_hash
from seedbed.label_work import Counted, Known
from seedbed.local import ImageWork
from seedbed.pipeline import absolute_weights
from seedbed.scores import mean_metrics
from seedbed.stage_rows import segmentation_rows
from seedbed.trainings import Training, train_all

if TYPE_CHECKING:
    from seedbed.stages import Study


def segment(study: Study, method: str) -> None:
    """Trains on the pseudo-labels, once more on filled ones where that is asked for, and scores what the last network predicts."""
    train_all(study, [_training(study, "segmenter", study.segmenter_stage(method, s), method, s, None) for s in study.seeds])
    if study.retrains:
        for seed in study.seeds:
            stage = study.filling_stage(method, seed)
            work = predict_work(study, study.segmenter_stage(method, seed), stage)
            study.per_image("predictions", stage, method, seed, work, study.keys.pseudo_ids)
            warn_of_background(study, study.segmenter_stage(method, seed), stage, method, seed, study.experiment.data.map_split)
        second = [(study.retrained_stage(method, s), study.filling_stage(method, s).folder, s) for s in study.seeds]
        train_all(study, [_training(study, "retrained", stage, method, s, filling) for stage, filling, s in second])
    for seed in study.seeds:
        for split, ids in study.keys.segmented_ids.items():
            predict(study, method, seed, split, ids)


def _training(study: Study, name: str, stage: Stage, method: str, seed: int, fill: Path | None) -> Training:
    return Training(name, stage, partial(segmenter_task, study, method, seed, fill), method, seed)


def predict(study: Study, method: str, seed: int, split: str, ids: list[str]) -> None:
    """The last segmenter's predictions of a split, and rows `segmentation` where it has masks."""
    e, last = study.experiment, study.final_segmenter(method, seed)
    stage = study.predictions_stage(method, seed, split)
    work = Counted(predict_work(study, last, stage), study.address, e.data.cache, e.scoring.tolerance)
    with study.per_image("predictions", stage, method, seed, work, ids, keep_open=True) as child:
        seen = warn_of_background(study, last, stage, method, seed, split)
        if not study.store.has_mask(ids).any():
            return  # segmented for the test server; nobody here can score it
        rows = segmentation_rows(study, stage, method, seed, split)
        study.rows += rows
        study.tracker.log(mean_metrics(rows), child=child)
        if seen and not any(r["value"] > 0 for r in rows if r["metric"].startswith("IoU:") and r["metric"] != "IoU:background"):
            label = study.label(last.name, method, seed)
            study.warnings.append(f"{label} finds no object in {split}: nowhere is what it predicts of the right class")


def warn_of_background(study: Study, segmenter: Stage, predictions: Stage, method: str, seed: int, split: str) -> bool:
    """Whether any pixel of a segmenter's predictions is an object; a warning where none is."""
    records = predictions.records()
    seen = has_objects(records)
    if len(records) and not seen:
        filled = " (they fill the open pixels of its labels)" if fills_labels(predictions.settings) else ""
        study.warnings.append(f"{study.label(segmenter.name, method, seed)} predicts only background in {split}{filled}")
    return seen


def has_objects(records: Fragments) -> bool:
    """Whether a label map has anything but background, by the checksums of their pixels: none is decoded."""
    background = cache(lambda size: pixels_hash(np.zeros(size, np.uint8)))
    return any(pixels != background((height, width)) for height, width, pixels in records.columns("height", "width", "pixels"))


def segmenter_task(study: Study, method: str, seed: int, fill: Path | None) -> Any:
    """Training on the labels of the masks' artefact; `fill` are predictions that stand in for its ignored pixels."""
    from seedbed.segment.task import SegmenterTask

    e, masks = study.experiment, study.masks_stage(method, seed)
    have = masks.records()
    return SegmenterTask(
        store=study.address,
        cache=e.data.cache,
        ids=tuple(i for i in study.keys.pseudo_ids if i in have),
        labels=masks.folder,
        config=absolute_weights(e.segmenter),
        seed=study.network_seed(seed),
        num_classes=len(study.store.info.classes) + 1,
        fill=fill,
        stage="segmenter" if fill is None else "retrained",
    )


def predict_work(study: Study, segmenter: Stage, stage: Stage) -> ImageWork:
    """What leaves the segmenter's label maps; those that another predictions' artefact holds are taken from there."""
    from seedbed.segment.predict import PredictWork

    e = study.experiment
    work = PredictWork(
        store=study.address,
        cache=e.data.cache,
        segmenter=segmenter.folder,
        config=e.segmenter,
        num_classes=len(study.store.info.classes) + 1,
        device=study.executor.device,
        threads=e.run.threads,
    )
    there = tuple(records.folder for records in study.related(stage)) if stage.manifest is None else ()
    return Known(work, there) if there else work
