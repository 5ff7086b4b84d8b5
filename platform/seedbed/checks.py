"""What is looked at before the first stage: combinations of settings and data that can't work are said now, not after an hour."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from seedbed.data.companions import CompanionPool
from seedbed.methods import method_class
from seedbed.pipeline import classifier_task, method_settings
from seedbed.plan import Plan
from seedbed.refine.saliency import check_folder
from seedbed.types import UserError


def check(plan: Plan, *, dry: bool = False) -> None:
    """UserError for what can't work; a dry call reads no more than the settings."""
    e = plan.experiment
    for method in plan.methods:
        method_class(method)(*method_settings(e, method))  # what does not fit together is said by the method
    if dry:
        return
    check_weights(plan)
    classifier_task(e, plan.store, e.seed, plan.keys.left_out_of_training).open()
    check_scored(plan)
    check_companions(plan)
    check_late(plan)
    if not plan.keys.score_ids:
        raise UserError(f"{e.data.score_split} has no pictures", field="--data.score-split", remedy="name a split that has some")


def check_companions(plan: Plan) -> None:
    """RIB's companion batch is not larger than the companions that any picture can have."""
    e = plan.experiment
    if e.method != "rib" or e.rib.companion_rows <= 0:
        return
    most = most_companions(plan)
    if e.rib.companion_rows > most:
        message = f"--rib.batch is {e.rib.batch:,}, but no picture has more than {most:,} companions in {e.data.companion_split}"
        raise UserError(message, field="--rib.batch", remedy="give a smaller number, or a larger --data.companion-split")


def most_companions(plan: Plan) -> int:
    """The largest number of companions that any picture of the map split can have."""
    e, store = plan.experiment, plan.store
    ids = e.data.select(store, e.data.companion_split)[0]
    ids = [i for i, there in zip(ids, store.has_label(ids), strict=True) if there]
    if e.rib.companions == "random":
        return max(len(ids) - 1, 0)
    counts = CompanionPool(store.labels(ids), ids).disjoint_counts(store.labels(plan.keys.map_ids))
    return int(counts.max()) if len(counts) else 0


def check_scored(plan: Plan) -> None:
    """A split that is scored, or that chooses the threshold, has masks; and they are two."""
    e = plan.experiment
    if e.until == "maps":
        return
    for flag, split, ids in (
        ("--data.score-split", e.data.score_split, plan.keys.score_ids),
        ("--scoring.held-out-split", e.scoring.held_out_split, plan.keys.held_out_ids),
    ):
        if ids and not plan.store.has_mask(ids).any():
            raise UserError(f"the pictures of {split} have no masks", field=flag, remedy="name a split with masks, or say --until maps")
    if e.scoring.threshold_source == "held-out" and e.scoring.held_out_split == e.data.score_split:
        message = f"the threshold of {e.data.score_split} would be chosen on {e.data.score_split} itself"
        remedy = "name another split, or say --scoring.threshold-source oracle"
        raise UserError(message, field="--scoring.held-out-split", remedy=remedy)


def check_late(plan: Plan) -> None:
    """What the stages after the seeds will ask for: saliency maps, random fields, files of weights."""
    e = plan.experiment
    if not plan.reaches("mask"):
        return
    if e.refine.saliency:
        check_folder(Path(e.refine.saliency), plan.keys.map_ids)
    fields = e.refine.crf_seeds or e.refine.method != "none" or (plan.reaches("segmentation") and e.segmenter.crf != "none")
    if fields and find_spec("pydensecrf") is None:
        remedy = "make env installs it; or say --refine.method none --refine.no-crf-seeds --segmenter.crf none"
        raise UserError("pydensecrf is not installed, which random fields are made with", field="--refine.method", remedy=remedy)
    files = {"--segmenter.weights": e.segmenter.weights} if plan.reaches("segmentation") else {}
    if e.refine.has_network:
        files[f"--refine.{e.refine.method}.weights"] = e.refine.network_weights
    for flag, weights in files.items():
        if weights not in ("imagenet", "none", "coco", "classifier") and not Path(weights).is_file():
            raise UserError(
                f"{weights} does not exist", file=weights, field=flag, remedy=f"name a checkpoint, or say {flag} imagenet or none"
            )


def check_weights(plan: Plan) -> None:
    """Initial weights are read here first: a missing, hostile or foreign file is said before anything is started."""
    from seedbed.models import build_network
    from seedbed.models.weights import load_weights

    weights = plan.experiment.classifier.weights
    if weights == "none":
        return
    if weights != "imagenet" and not Path(weights).exists():
        remedy = "name a checkpoint, or say --classifier.weights imagenet or none"
        raise UserError(f"{weights} does not exist", file=weights, field="--classifier.weights", remedy=remedy)
    for device in ("cpu", "cuda"):  # which of them the cluster has is not known yet
        trained = Plan(plan.experiment, plan.store, device)
        if all(trained.classifier_stage(seed).manifest is not None for seed in plan.seeds):
            return
    model = build_network(plan.experiment.classifier.backbone, len(plan.store.info.classes))
    print(f"initial weights: {load_weights(model, weights).text()}", file=sys.stderr)
