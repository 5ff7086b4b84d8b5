"""The per-image work of the stages after the seeds: CRF'd seeds, confidence labels, pseudo-labels, and counting any label map."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from seedbed.artefacts import LABELS, Fragments
from seedbed.artefacts.records import decode_png, label_record, maps_from, pixels_hash, png, scored_label_record
from seedbed.local import ImageWork
from seedbed.refine.settings import RefineConfig
from seedbed.types import Maps
from seedbed.work import Record, counted, counts


def _full(maps: Maps) -> np.ndarray:
    from seedbed.methods.maps import high_res

    return np.asarray(high_res(maps))


@dataclass(frozen=True)
class CrfWork:
    """The seed at its threshold after IRN's label CRF, and what it adds to the scores."""

    light: ClassVar[bool] = False

    store: str
    cache: str | None
    maps: Path
    threshold: float
    tolerance: float
    crf: Any

    def open(self) -> Callable[[str], Record]:
        from seedbed.data import open_store
        from seedbed.refine.confidence import crf_of_label_map
        from seedbed.seeds import label_map

        store, maps = open_store(self.store, cache=self.cache), Fragments(self.maps)

        def refine(ident: str) -> Record:
            began = time.perf_counter()
            found = maps_from(maps[ident])
            seed = label_map(_full(found), found.classes, self.threshold, ident)
            refined = crf_of_label_map(store[ident].pixels(), seed, found.classes, self.crf)
            scored = counted(store, ident, refined, self.tolerance)
            return {**label_record(ident, refined, time.perf_counter() - began), **scored}

        return refine


@dataclass(frozen=True)
class ConfidenceWork:
    """The labels that the refinement's network is trained on: object or background where the CRF'd maps are sure, ignored elsewhere."""

    light: ClassVar[bool] = False

    store: str
    cache: str | None
    maps: Path
    settings: RefineConfig

    def open(self) -> Callable[[str], Record]:
        from seedbed.data import open_store
        from seedbed.refine.confidence import affinity_labels, affinity_scores, irn_confidence

        store, maps, settings = open_store(self.store, cache=self.cache), Fragments(self.maps), self.settings

        def label(ident: str) -> Record:
            began = time.perf_counter()
            found, pixels = maps_from(maps[ident]), store[ident].pixels()
            cam = _full(found)
            if settings.method == "irn":
                pair = settings.confident_foreground, settings.confident_background
                labels = irn_confidence(pixels, cam, found.classes, *pair, settings.label_crf)
            else:
                scores = affinity_scores(pixels, cam, *settings.alphas, settings.score_crf)
                return scored_label_record(ident, affinity_labels(scores, found.classes), scores, time.perf_counter() - began)
            return label_record(ident, labels, time.perf_counter() - began)

        return label


@dataclass(frozen=True)
class MaskWork:
    """A picture's pseudo-label: the mask that is scored, and the labels that the segmenter is trained on."""

    light: ClassVar[bool] = False

    store: str
    cache: str | None
    maps: Path
    network: Path | None
    """Folder of the refinement's trained network; None for a refinement without one."""
    settings: RefineConfig
    only_scored: frozenset[str]
    """Pictures that no segmenter is trained on: they need no saliency map."""
    device: str
    threads: int

    def open(self) -> Callable[[str], Record]:
        import torch

        from seedbed.data import open_store
        from seedbed.refine.masks import refinement
        from seedbed.refine.pseudo_labels import ignore_disagreement, shares
        from seedbed.refine.saliency import salient
        from seedbed.seeds import label_map

        torch.set_num_threads(self.threads)
        # fp32 means fp32, whatever ran in this process before: see LocaliseWork.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        store, maps, settings = open_store(self.store, cache=self.cache), Fragments(self.maps), self.settings
        refine = refinement(settings, self.network, self.device)

        def make(ident: str) -> Record:
            began = time.perf_counter()
            found, pixels = maps_from(maps[ident]), store[ident].pixels()
            mask, labels = refine(found, pixels)
            if settings.saliency and ident not in self.only_scored:
                labels = ignore_disagreement(labels, salient(Path(settings.saliency), ident, labels.shape, settings.salient))
            seed = label_map(_full(found), found.classes, settings.mask_background, ident)
            return {
                **label_record(ident, mask, time.perf_counter() - began),
                "label_pixels": pixels_hash(labels),
                "labels": png(labels),
                "shares": [round(share, 6) for share in shares(mask, labels, seed)],
            }

        return make


@dataclass(frozen=True)
class ScoreWork:
    """What the label maps of a stage add to the scores."""

    light: ClassVar[bool] = True

    store: str
    cache: str | None
    labels: Path
    tolerance: float

    def open(self) -> Callable[[str], Record]:
        from seedbed.data import open_store

        store, labels = open_store(self.store, cache=self.cache), Fragments(self.labels)

        def count(ident: str) -> Record:
            began = time.perf_counter()
            found = counts(store, ident, decode_png(labels[ident]["label_map"]), self.tolerance)
            return {"id": ident, **found, "seconds": time.perf_counter() - began}

        return count


@dataclass(frozen=True)
class Known:
    """Work that leaves a label map, where those of some pictures are there already: the work is opened for the others alone."""

    light: ClassVar[bool] = False

    work: ImageWork
    folders: tuple[Path, ...]
    """Artefacts with label maps that the work would leave, too."""

    def open(self) -> Callable[[str], Record]:
        there, opened = [Fragments(folder) for folder in self.folders], cache(self.work.open)

        def make(ident: str) -> Record:
            record = next((records[ident] for records in there if ident in records), None)
            return opened()(ident) if record is None else {name: record[name] for name in LABELS.names if name != "hash"}

        return make


@dataclass(frozen=True)
class Counted:
    """Work that leaves a label map, and what each of them adds to the scores."""

    light: ClassVar[bool] = False

    work: ImageWork
    store: str
    cache: str | None
    tolerance: float

    def open(self) -> Callable[[str], Record]:
        from seedbed.data import open_store

        inner, store = self.work.open(), open_store(self.store, cache=self.cache)

        def count(ident: str) -> Record:
            record = inner(ident)
            return {**record, **counted(store, ident, decode_png(record["label_map"]), self.tolerance)}

        return count
