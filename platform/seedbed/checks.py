"""What is looked at before the first stage: combinations of settings and data that can't work are said now, not after an hour."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from seedbed.artefacts import Stage
from seedbed.data.companions import CompanionPool
from seedbed.methods import method_class
from seedbed.pipeline import classifier_task, method_settings, plain
from seedbed.plan import Plan
from seedbed.refine.saliency import check_folder, check_headers
from seedbed.types import UserError


def check(plan: Plan, *, dry: bool = False) -> None:
    """UserError for what can't work; a dry call reads no more than the settings."""
    e = plan.experiment
    for method in plan.methods:
        method_class(plain(method))(*method_settings(e, method))  # what does not fit together is said by the method
    if plan.reaches("mask") and e.refine.method == "affinitynet":
        e.refine.affinitynet.check_used("refine.affinitynet.")
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
    """What the stages after the seeds will ask for: saliency maps, random fields, initial weights, enough pictures for a batch."""
    e = plan.experiment
    if not plan.reaches("mask"):
        return
    if e.refine.saliency:
        check_folder(Path(e.refine.saliency), plan.keys.pseudo_ids)
        check_headers(Path(e.refine.saliency), {i: plan.store.size(i) for i in plan.keys.pseudo_ids})
    fields = e.refine.crf_seeds or e.refine.method != "none" or (plan.reaches("segmentation") and e.segmenter.crf != "none")
    if fields and find_spec("pydensecrf") is None:
        remedy = "make env installs it; or say --refine.method none --refine.no-crf-seeds --segmenter.crf none"
        raise UserError("pydensecrf is not installed, which random fields are made with", field="--refine.method", remedy=remedy)
    if e.refine.has_network:
        check_refinement(plan)
    if plan.reaches("segmentation"):
        check_segmenter(plan)


def check_refinement(plan: Plan) -> None:
    """The refinement's network: its backbone and initial weights, and its batch."""
    refine = plan.experiment.refine
    config = refine.irn if refine.method == "irn" else refine.affinitynet
    flag = f"--refine.{refine.method}"
    check_batch(plan, f"{flag}.batch", config.batch)
    named_file(config.weights, f"{flag}.weights", ("imagenet", "none", "classifier"))
    if config.weights == "classifier" and config.backbone != plan.experiment.classifier.backbone:
        message = (
            f"{flag}.backbone is {config.backbone}, but the classifier whose weights it takes is {plan.experiment.classifier.backbone}"
        )
        raise UserError(message, field=f"{flag}.weights", remedy="choose the same backbone, or other weights")
    if config.weights in ("none", "classifier") or made(plan, lambda p, seed: [p.affinity_stage(m, seed) for m in p.going("mask")]):
        return
    from seedbed.models.weights import load_weights

    if refine.method == "irn":
        from seedbed.models.irn import IrnNet

        load_weights(IrnNet(config.backbone).backbone, config.weights, f"{flag}.weights")
    else:
        from seedbed.models.affinity import AffinityNet

        load_weights(AffinityNet(config.backbone).backbone, config.weights, f"{flag}.weights")


def check_segmenter(plan: Plan) -> None:
    """The segmenter's initial weights, read once before anything is started, and its batch."""
    from seedbed.segment.networks import build_segmenter, initialise

    config = plan.experiment.segmenter
    check_batch(plan, "--segmenter.batch", config.batch)
    named_file(config.weights, "--segmenter.weights", ("imagenet", "none", "coco"))
    if config.weights != "none" and not made(plan, lambda p, seed: [p.final_segmenter(m, seed) for m in p.going("segmentation")]):
        initialise(build_segmenter(config, len(plan.store.info.classes) + 1), config)


def check_batch(plan: Plan, flag: str, batch: int) -> None:
    """No larger than the pictures there are, no smaller than the workers that share it."""
    pictures, workers = len(plan.keys.pseudo_ids), plan.experiment.run.workers
    if batch > pictures:
        message = f"{flag} is {batch}, but only {pictures} pictures get pseudo-labels"
        raise UserError(message, field=flag, remedy=f"say {flag} {max(pictures, 1)} or less, or name a larger --data.map-split")
    if batch < workers:
        raise UserError(
            f"{workers} training workers can't share {flag} {batch}", field=flag, remedy="give a larger batch, or fewer workers"
        )


def named_file(weights: str, flag: str, words: tuple[str, ...]) -> None:
    """One of the words, or a file that is there."""
    if weights not in words and not Path(weights).is_file():
        remedy = f"name a checkpoint, or one of {', '.join(words)}"
        raise UserError(f"{weights} does not exist", file=weights, field=flag, remedy=remedy)


def made(plan: Plan, stages: Callable[[Plan, int], Sequence[Stage]]) -> bool:
    """Whether trainings are whole for every seed, on whichever device: the cluster's is not known yet."""
    plans = [Plan(plan.experiment, plan.store, device) for device in ("cpu", "cuda")]
    return any(all(stage.manifest is not None for seed in plan.seeds for stage in stages(p, seed)) for p in plans)


def check_weights(plan: Plan) -> None:
    """Initial weights are read here first: a missing, hostile or foreign file is said before anything is started."""
    from seedbed.methods import build_for
    from seedbed.models.weights import load_weights

    weights = plan.experiment.classifier.weights
    if weights == "none":
        return
    if weights != "imagenet" and not Path(weights).exists():
        remedy = "name a checkpoint, or say --classifier.weights imagenet or none"
        raise UserError(f"{weights} does not exist", file=weights, field="--classifier.weights", remedy=remedy)
    if made(plan, lambda p, seed: [p.classifier_stage(seed)]):
        return
    model = build_for(plan.experiment.trainer, plan.experiment.classifier.backbone, len(plan.store.info.classes))
    print(f"initial weights: {load_weights(model, weights).text()}", file=sys.stderr)
