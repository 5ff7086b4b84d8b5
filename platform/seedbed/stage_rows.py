"""Rows of scores.json from a stage's records, each with its protocol: seeds, CRF'd seeds, masks, segmentations, the classifier."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedbed.artefacts import Stage
from seedbed.artefacts.records import unpack
from seedbed.loop import read_log
from seedbed.metrics.contour import Contour
from seedbed.metrics.region import Confusion
from seedbed.scores import protocol_record, score_rows
from seedbed.seeds import Threshold

if TYPE_CHECKING:
    from seedbed.stages import Study

Rows = list[dict[str, Any]]


def seed_rows(study: Study, records: Stage, method: str, seed: int, threshold: Threshold | None) -> Rows:
    """Without a threshold: a row that needs no network."""
    return counted_rows(study, records, "seed", method, seed, threshold=threshold, network=threshold is not None)


def crf_rows(study: Study, records: Stage, method: str, seed: int, threshold: Threshold) -> Rows:
    crf = study.experiment.refine.label_crf
    name = f"label CRF of the seed, {crf.iterations} iterations (our reading: RIB's repository has none)"
    return counted_rows(study, records, "crf", method, seed, threshold=threshold, crf=name)


def mask_rows(study: Study, records: Stage, method: str, seed: int) -> Rows:
    """Scores of the pseudo-labels, nothing ignored."""
    refine = study.experiment.refine
    fixed = None if refine.method == "affinitynet" else Threshold(refine.mask_background, "fixed")
    crf = f"label CRF, {refine.label_crf.iterations} iterations" if refine.method == "crf" else None
    facts = refinement_facts(study, method, seed)
    return counted_rows(study, records, "mask", method, seed, threshold=fixed, crf=crf, **facts)


def segmentation_rows(study: Study, records: Stage, method: str, seed: int, split: str) -> Rows:
    """Scores of what the last segmenter predicts. No class label of the split is used."""
    e, keys = study.experiment, study.keys
    segmenter = e.segmenter.resolved()
    # Class labels of scored pictures that no classifier was trained on, but that pseudo-labels were made from: nobody has those.
    oracle = bool((set(keys.pseudo_ids) & set(keys.segmented_ids[split])) - set(keys.train_ids))
    facts = refinement_facts(study, method, seed)
    facts["from_scratch"] = facts["from_scratch"] and segmenter.weights == "none"
    return counted_rows(
        study,
        records,
        "segmentation",
        method,
        seed,
        split=split,
        crf=None if segmenter.crf == "none" else f"{segmenter.crf} (segmentation)",
        retrained=study.retrains,
        **facts,
        segmenter=segmenter.model,
        **segmenter_facts(study, method, seed),
        weights_of_maps=initial_weights(study),
        weights_of_maps_trained_on=initial_weights_trained_on(study),
        scales=[float(s) for s in segmenter.test_scales],
        flip=segmenter.test_flip,
        labels={"source": "+".join(study.store.label_sources(study.keys.pseudo_ids)), "oracle": oracle},
    )


def counted_rows(
    study: Study,
    records: Stage,
    stage: str,
    method: str,
    seed: int,
    *,
    split: str = "",
    threshold: Threshold | None = None,
    network: bool = True,
    **protocol: Any,
) -> Rows:
    """The rows of one artefact with counts; those of its records are added up. `protocol` is laid over the study's record."""
    e, names = study.experiment, study.store.info.classes
    split = split or e.data.score_split
    region = Confusion(len(names))
    contour = Contour(len(names), e.scoring.tolerance)
    images = 0
    for confusion, contours in records.records().columns("confusion", "contour"):
        if confusion is not None:
            region.merge(Confusion.from_record(unpack(confusion), len(names)))
            contour.merge(Contour.from_record(unpack(contours), len(names), e.scoring.tolerance))
            images += 1
    record = protocol_of(study, images=images, split=split, threshold=threshold, network=network) | protocol
    return score_rows(region, contour, stage=stage, method=method, split=split, seed=seed, protocol=record, names=names)


def protocol_of(study: Study, *, images: int, split: str, threshold: Threshold | None, network: bool) -> dict[str, Any]:
    """The protocol record of one row; a row without a network has no weights, scales or threshold."""
    e, info = study.experiment, study.store.info
    trained_on = set(study.keys.train_ids)
    return protocol_record(
        dataset=info.dataset,
        split=split,
        images=images,
        subset=study.subset,
        initial_weights=initial_weights(study) if network else "none",
        initial_weights_trained_on=initial_weights_trained_on(study) if network else "none",
        scales=e.cam.scales if network else (),
        flip=e.cam.flip and network,
        crf=None,
        threshold=threshold,
        label_source=label_source(study),
        oracle_labels=not set(study.keys.score_ids) <= trained_on,
        contour_tolerance=e.scoring.tolerance,
        absent_classes=e.scoring.absent(study.subset),
        settings_key=e.key(),
        git=study.git,
        network=network,
        from_scratch=network and e.classifier.weights == "none",
        seeds_vary=e.seeds_vary,
    )


def label_source(study: Study) -> str:
    """Where the class labels of the scored pictures came from; several sources are named together."""
    return "+".join(study.store.label_sources(study.keys.score_ids))


def initial_weights(study: Study) -> str:
    """imagenet, none, or a file by name and content."""
    weights = study.experiment.classifier.weights
    if weights in ("imagenet", "none"):
        return weights
    return f"{Path(weights).name} ({study.experiment.classifier.to_dict(only_key=True)['weights']})"


def initial_weights_trained_on(study: Study) -> str:
    """imagenet, none, masks or unknown, of the classifier; empty where its training is of before this was recorded."""
    weights = study.experiment.classifier.weights
    if weights in ("imagenet", "none"):
        return weights
    return str(training_facts(study.classifier_stage(study.experiment.seed)).get("initial_weights_trained_on", ""))


def refinement_facts(study: Study, method: str, seed: int) -> dict[str, Any]:
    """How the pseudo-labels were refined, with what initial weights of its network, and whether saliency maps had a say."""
    e = study.experiment
    out: dict[str, Any] = {"refinement": e.refine.method, "saliency": bool(e.refine.saliency)}
    scratch = e.classifier.weights == "none" and e.refine.network_weights in ("", "none", "classifier")
    if e.refine.has_network:
        facts = training_facts(study.affinity_stage(method, seed))
        source = out["refinement_weights"] = facts.get("initial_weights", "")
        origin = initial_weights_trained_on(study) if source == "classifier" else facts.get("initial_weights_trained_on", "")
        out["refinement_weights_trained_on"] = origin
    return out | {"from_scratch": scratch}


def segmenter_facts(study: Study, method: str, seed: int) -> dict[str, Any]:
    """The segmenter's initial weights by its own training log, and what they were trained on: as the settings say, else as was guessed
    when they were read."""
    facts, said = training_facts(study.final_segmenter(method, seed)), study.experiment.segmenter.weights_from
    trained_on = facts.get("initial_weights_trained_on", "") if said == "auto" else said
    return {"initial_weights": facts.get("initial_weights", ""), "initial_weights_trained_on": trained_on}


def weights_warnings(rows: Rows) -> list[str]:
    """What scores are not weakly supervised, because a network of theirs starts from weights trained on masks; each file once.

    Of a segmenter's file that does not tell, too: there is a setting that does.
    """
    found = []
    for record in (row["protocol"] for row in rows):
        segmented = "segmenter" in record
        networks = {"segmenter" if segmented else "classifier": "initial_weights", "refinement": "refinement_weights"}
        for network, name in (*networks.items(), ("classifier", "weights_of_maps")):
            origin, text = record.get(f"{name}_trained_on"), ""
            if origin == "masks":
                text = "were trained on segmentation masks: these scores are not weakly supervised"
            elif origin == "unknown" and network == "segmenter":
                text = "are a file that does not say what it was trained on; --segmenter.weights-from does"
            if text:
                found.append(f"The {network}'s initial weights ({record.get(name)}) {text}.")
    return list(dict.fromkeys(found))


def training_facts(stage: Stage) -> dict[str, Any]:
    """What a training said of itself at its beginning."""
    return next((entry["facts"] for entry in read_log(stage.folder) if "facts" in entry), {})


def validation_rows(study: Study) -> list[dict[str, Any]]:
    """Mean average precision of each classifier on its validation split, where there was one."""
    rows = []
    for seed in study.seeds:
        figures = (study.classifier_stage(seed).manifest or {}).get("summary", {}).get("validation", {})
        if "val/mAP" in figures:
            split = figures["split"]
            protocol = protocol_of(study, images=figures["images"], split=split, threshold=None, network=True)
            protocol |= {
                "labels": {**protocol["labels"], "oracle": False},
                "scales": [1.0],
                "flip": False,
                "classes": list(study.store.info.classes),
            }
            row = {"stage": "classifier", "method": "cam", "split": split, "seed": seed, "metric": "mAP", "value": figures["val/mAP"]}
            rows.append({**row, "protocol": protocol})
    return rows
