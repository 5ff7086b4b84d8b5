"""The refinements by name: from a picture and its maps to the mask that is scored and the labels that are trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from seedbed.methods.maps import high_res, strided_cam
from seedbed.refine import pseudo_labels
from seedbed.refine.settings import RefineConfig
from seedbed.types import Maps

Refinement = Callable[[Maps, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(maps, pixels (h, w, 3) uint8) -> mask and labels, both (h, w) uint8."""


def refinement(settings: RefineConfig, folder: Path | None, device: str) -> Refinement:
    """The chosen refinement. `folder` is the artefact with the trained network of `irn` and `affinitynet`, None for the others."""
    network = None if folder is None else load_network(settings, folder, device)
    return {"irn": _irn, "affinitynet": _affinitynet, "crf": _crf, "none": _none}[settings.method](settings, network)


def load_network(settings: RefineConfig, folder: Path, device: str) -> Any:
    """The refinement's trained network, for inference."""
    if settings.method == "affinitynet":
        from seedbed.refine.affinitynet import load_affinitynet

        return load_affinitynet(folder, settings.affinitynet, device)
    from seedbed.refine.irn import load_irn

    return load_irn(folder, settings.irn, device)


def _labels(settings: RefineConfig, scores_nhw: np.ndarray, maps: Maps, mask: np.ndarray) -> np.ndarray:
    if not settings.ignores():
        return mask
    pair = settings.ignore_foreground, settings.ignore_background
    return pseudo_labels.training_labels(scores_nhw, maps.classes, *pair, maps.id)


def _scored(settings: RefineConfig, scores_nhw: np.ndarray, maps: Maps) -> tuple[np.ndarray, np.ndarray]:
    mask = pseudo_labels.mask(scores_nhw, maps.classes, settings.mask_background, maps.id)
    return mask, _labels(settings, scores_nhw, maps, mask)


def _irn(settings: RefineConfig, network: Any) -> Refinement:
    from seedbed.refine.irn import walk_maps

    def refine(maps: Maps, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not len(maps.classes):
            return _empty(maps)
        walked = walk_maps(network, pixels, strided_cam(maps) ** np.float32(settings.power), settings.irn)
        return _scored(settings, pseudo_labels.normalized(walked), maps)

    return refine


def _affinitynet(settings: RefineConfig, network: Any) -> Refinement:
    from seedbed.refine.affinitynet import walk_maps

    def refine(maps: Maps, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not len(maps.classes):
            return _empty(maps)
        walked = walk_maps(network, pixels, np.asarray(high_res(maps)), settings.affinitynet)
        mask = pseudo_labels.argmax_with_background(walked, maps.classes)
        return mask, _labels(settings, pseudo_labels.normalized(walked[1:]), maps, mask)

    return refine


def _crf(settings: RefineConfig, network: Any) -> Refinement:
    from seedbed.refine.confidence import crf_of_label_map, irn_confidence

    def refine(maps: Maps, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not len(maps.classes):
            return _empty(maps)
        cam = np.asarray(high_res(maps))
        seed = pseudo_labels.mask(cam, maps.classes, settings.mask_background, maps.id)
        mask = crf_of_label_map(pixels, seed, maps.classes, settings.label_crf)
        if not settings.ignores():
            return mask, mask
        pair = settings.ignore_foreground, settings.ignore_background
        return mask, irn_confidence(pixels, cam, maps.classes, *pair, settings.label_crf)

    return refine


def _none(settings: RefineConfig, network: Any) -> Refinement:
    return lambda maps, pixels: _scored(settings, np.asarray(high_res(maps)), maps) if len(maps.classes) else _empty(maps)


def _empty(maps: Maps) -> tuple[np.ndarray, np.ndarray]:
    """A picture without a class is background, and surely so."""
    nothing = np.zeros((maps.height, maps.width), np.uint8)
    return nothing, nothing
