"""The stages between the maps and the pseudo-labels: CRF'd seeds, confidence labels, the refinement's network, masks, their scores."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedbed.label_work import ConfidenceWork, CrfWork, MaskWork, ScoreWork
from seedbed.pipeline import absolute_weights
from seedbed.scores import mean_metrics
from seedbed.seeds import Threshold
from seedbed.stage_rows import crf_rows, mask_rows
from seedbed.trainings import Training, train_all

if TYPE_CHECKING:
    from seedbed.stages import Study


def crf_seeds(study: Study, method: str, seed: int, threshold: Threshold) -> None:
    """Rows `crf`: the seeds after IRN's label CRF."""
    e = study.experiment
    stage, maps = study.crf_stage(method, seed), study.maps_stage(method, seed)
    work = CrfWork(study.address, e.data.cache, maps.folder, threshold.value, e.scoring.tolerance, e.refine.label_crf)
    have = maps.records()
    ids = [i for i in study.keys.score_ids if i in have]
    with study.per_image("crf", stage, method, seed, work, ids, keep_open=True) as child:
        rows = crf_rows(study, stage, method, seed, threshold)
        study.rows += rows
        study.tracker.log(mean_metrics(rows), child=child)


def refine(study: Study, method: str) -> None:
    """Pseudo-labels of every mapped picture, and the scores of those that are scored."""
    if study.experiment.refine.has_network:
        for seed in study.seeds:
            confidence_labels(study, method, seed)
        train_all(
            study,
            [
                Training("affinity", study.affinity_stage(method, s), partial(affinity_task, study, method, s), method, s)
                for s in study.seeds
            ],
        )
    for seed in study.seeds:
        make_masks(study, method, seed)
        score_masks(study, method, seed)


def confidence_labels(study: Study, method: str, seed: int) -> None:
    """What the refinement's network is trained on."""
    e, maps = study.experiment, study.maps_stage(method, seed)
    have = maps.records()
    work = ConfidenceWork(study.address, e.data.cache, maps.folder, e.refinement)
    ids = [i for i in study.keys.pseudo_ids if i in have]
    study.per_image("confidence", study.confidence_stage(method, seed), method, seed, work, ids)


def make_masks(study: Study, method: str, seed: int) -> None:
    """The pseudo-labels, by the maps and, where there is one, the refinement's network."""
    e, maps = study.experiment, study.maps_stage(method, seed)
    have = maps.records()
    trained, scored = study.keys.pseudo_ids, study.keys.score_ids
    settings = e.refine.replace(saliency=str(Path(e.refine.saliency).absolute())) if e.refine.saliency else e.refine
    work = MaskWork(
        store=study.address,
        cache=e.data.cache,
        maps=maps.folder,
        network=study.affinity_stage(method, seed).folder if e.refine.has_network else None,
        settings=settings,
        only_scored=frozenset(scored) - frozenset(trained),
        device=study.executor.device,
        threads=e.run.threads,
    )
    ids = [i for i in dict.fromkeys([*trained, *scored]) if i in have]
    study.per_image("masks", study.masks_stage(method, seed), method, seed, work, ids)


def affinity_task(study: Study, method: str, seed: int) -> Any:
    """The training of the refinement's network on the confidence labels."""
    e, labels = study.experiment, study.confidence_stage(method, seed)
    have = labels.records()
    ids = tuple(i for i in study.keys.pseudo_ids if i in have)
    own = study.classifier_stage(seed).folder if e.refine.network_weights == "classifier" else None
    place: dict[str, Any] = {
        "store": study.address,
        "cache": e.data.cache,
        "ids": ids,
        "labels": labels.folder,
        "seed": study.network_seed(seed),
        "classifier": own,
    }
    if e.refine.method == "irn":
        from seedbed.refine.irn_task import IrnTask

        return IrnTask(**place, config=absolute_weights(e.refine.irn))
    from seedbed.refine.affinitynet_task import AffinityTask

    return AffinityTask(**place, config=absolute_weights(e.refine.affinitynet))


def score_masks(study: Study, method: str, seed: int) -> None:
    """Rows `mask`. Apart from the masks themselves, which must not depend on any truth."""
    e, masks = study.experiment, study.masks_stage(method, seed)
    stage = study.scored_stage(method, seed)
    have = masks.records()
    ids = [i for i in study.keys.score_ids if i in have]
    work = ScoreWork(study.address, e.data.cache, masks.folder, e.scoring.tolerance)
    with study.per_image("scored", stage, method, seed, work, ids, keep_open=True) as child:
        rows = mask_rows(study, stage, method, seed)
        study.rows += rows
        study.tracker.log(mean_metrics(rows), child=child)
