"""Pictures for the report: what every stage made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from seedbed.artefacts import Fragments
from seedbed.artefacts.records import decode_png, maps_from, seeds_from
from seedbed.report import Panel
from seedbed.types import Sample, UserError

if TYPE_CHECKING:
    from seedbed.stages import Study

PANELS = 8
"""Pictures shown in the report."""


def later_stages(study: Study, seed: int) -> list[tuple[Fragments, dict[str, str]]]:
    """The stages after the seeds that leave label maps: their records, and name -> column of what is shown of them."""
    method, out = study.method, []
    if study.reaches("mask"):
        out.append((study.masks_stage(method, seed).records(), {"mask": "label_map", "labels": "labels"}))
    for split in study.keys.segmented_ids:
        out.append((study.predictions_stage(method, seed, split).records(), {"prediction": "label_map"}))
    return out


def later_label_maps(stages: list[tuple[Fragments, dict[str, str]]], ident: str) -> dict[str, np.ndarray]:
    """What the stages after the seeds made of a picture."""
    found = [(records[ident], columns) for records, columns in stages if ident in records]
    return {name: decode_png(record[column]) for record, columns in found for name, column in columns.items()}


def panels(study: Study) -> list[Panel]:
    """Pictures for the report, evenly over the scored ones, of the first seed."""
    from seedbed.methods.maps import high_res, snapshot_maps

    seed = study.experiment.seed
    stages = {method: study.maps_stages[method, seed].records() for method in study.methods if (method, seed) in study.maps_stages}
    label_maps = {method: study.seeds_stages[method, seed].records() for method in study.methods if (method, seed) in study.seeds_stages}
    later = later_stages(study, seed)
    ids = [i for i in study.keys.score_ids if all(i in records for records in stages.values())]
    chosen = [ids[i * len(ids) // PANELS] for i in range(min(PANELS, len(ids)))] if len(ids) > PANELS else ids
    out = []
    for ident in chosen:
        sample = study.store[ident]
        shown: dict[str, np.ndarray] = {}
        for method, records in stages.items():
            maps = maps_from(records[ident])
            if maps.snapshots is not None:
                last = len(maps.snapshots) - 1
                for k in sorted({1, last // 2} - {last, 0}):
                    if 0 < k < last:
                        shown[f"{method.upper()} k={k}"] = strongest(
                            np.asarray(high_res(snapshot_maps(maps, k))), sample.height, sample.width
                        )
            label = method.upper() if maps.snapshots is None else f"{method.upper()} k={len(maps.snapshots) - 1}"
            shown[label] = strongest(np.asarray(high_res(maps)), sample.height, sample.width)
        seeds = {method.upper(): seeds_from(records[ident]).label_map for method, records in label_maps.items() if ident in records}
        out.append(
            Panel(
                id=ident,
                picture=sample.pixels(),
                truth=shown_truth(sample),
                maps=shown,
                seeds=seeds,
                later=later_label_maps(later, ident),
            )
        )
    return out


def shown_truth(sample: Sample) -> np.ndarray | None:
    """A picture's mask, None where it has none that fits: the stage that scored it has named it."""
    try:
        truth = sample.mask("class")
    except UserError:
        return None
    return truth if truth is not None and truth.shape == (sample.height, sample.width) else None


def strongest(cam_nhw: np.ndarray, height: int, width: int) -> np.ndarray:
    return cam_nhw.max(axis=0) if len(cam_nhw) else np.zeros((height, width), np.float32)
