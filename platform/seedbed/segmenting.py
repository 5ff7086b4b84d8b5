"""The stages after the pseudo-labels: a segmenter, its predictions, the second segmenter on filled labels, scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedbed.artefacts import Stage
from seedbed.label_work import Counted
from seedbed.pipeline import absolute_weights
from seedbed.stage_rows import score_metrics, segmentation_rows

if TYPE_CHECKING:
    from seedbed.stages import Study


def segment(study: Study, method: str, seed: int) -> None:
    """Trains on the pseudo-labels, once more on filled ones where that is asked for, and scores what the last network predicts."""
    e = study.experiment
    first = study.segmenter_stage(method, seed)
    study.train("segmenter", first, lambda: segmenter_task(study, method, seed, None), method, seed)
    if study.retrains:
        filling = study.filling_stage(method, seed)
        study.per_image("predictions", filling, method, seed, predict_work(study, first), study.keys.pseudo_ids)
        second = study.retrained_stage(method, seed)
        study.train("retrained", second, lambda: segmenter_task(study, method, seed, filling.folder), method, seed)
    last = study.final_segmenter(method, seed)
    for split, ids in study.keys.segmented_ids.items():
        stage = study.predictions_stage(method, seed, split)
        work = Counted(predict_work(study, last), study.address, e.data.cache, e.scoring.tolerance)
        with study.per_image("predictions", stage, method, seed, work, ids, keep_open=True) as child:
            if not study.store.has_mask(ids).any():
                continue  # segmented for the test server; nobody here can score it
            rows = segmentation_rows(study, stage, method, seed, split)
            warn_of_weights(study, rows)
            study.rows += rows
            study.tracker.log(score_metrics(rows), child=child)
            if not any(r["value"] > 0 for r in rows if r["metric"].startswith("IoU:") and r["metric"] != "IoU:background"):
                label = study.label(last.name, method, seed)
                study.warnings.append(f"{label} finds no object in {split}: it predicts only background, or always the wrong class")


def warn_of_weights(study: Study, rows: list[dict[str, Any]]) -> None:
    """A segmenter that starts from weights trained on masks is no weakly supervised one; that is said, not only recorded."""
    protocol = rows[0]["protocol"]
    text = {
        "masks": "were trained on segmentation masks: these scores are not weakly supervised",
        "unknown": "are a file that does not say what it was trained on; --segmenter.weights-from does",
    }.get(protocol.get("initial_weights_trained_on", ""))
    warning = f"The segmenter's initial weights ({protocol.get('initial_weights')}) {text}."
    if text and warning not in study.warnings:
        study.warnings.append(warning)


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
        seed=seed,
        num_classes=len(study.store.info.classes) + 1,
        fill=fill,
        stage="segmenter" if fill is None else "retrained",
    )


def predict_work(study: Study, segmenter: Stage) -> Any:
    from seedbed.segment.predict import PredictWork

    e = study.experiment
    return PredictWork(
        store=study.address,
        cache=e.data.cache,
        segmenter=segmenter.folder,
        config=e.segmenter,
        num_classes=len(study.store.info.classes) + 1,
        device=study.executor.device,
        threads=e.run.threads,
    )
