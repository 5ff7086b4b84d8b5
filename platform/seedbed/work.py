"""The per-image work of each stage: pickled to a worker, opened there once, then called with ids.

A worker maps the store itself (nothing is sent), so that its memory does not grow with the dataset.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from seedbed.artefacts import Fragments
from seedbed.artefacts.records import label_record, maps_from, maps_record, pack, weights_from
from seedbed.local import reason
from seedbed.types import UserError

Record = dict[str, Any]


def load_classifier(folder: Path, network: str, num_classes: int, device: str, method: str = "cam") -> Any:
    """The network of a finished classifier stage, for inference: batch-norm statistics fixed, on its device. `method` trained it."""
    from seedbed.classifier.task import ADDED
    from seedbed.methods import build_for

    model: Any = build_for(method, network, num_classes)
    model.load_state_dict({name: value for name, value in weights_from(folder).items() if not name.startswith(f"{ADDED}.")})
    model.freeze_statistics(True)
    return model.eval().to(device)


@dataclass(frozen=True)
class LocaliseWork:
    """Maps of one method for the labelled classes of a picture."""

    light: ClassVar[bool] = False

    store: str
    cache: str | None
    classifier: Path
    """Folder of the classifier's artefact."""
    network: str
    method: str
    settings: tuple[Any, ...]
    """Settings that the method's class is constructed with."""
    companions: Any
    """Arguments of the companion source (`data/companions.py`) beyond the store; None for a method that has none."""
    device: str
    threads: int
    trained_by: str = ""
    """The method whose network the classifier is; empty: this one."""

    def open(self) -> Callable[[str], Record]:
        import torch

        from seedbed.data import open_store
        from seedbed.data.companions import CompanionSource
        from seedbed.data.transforms import views
        from seedbed.methods import method_class

        torch.set_num_threads(self.threads)
        # fp32 means fp32: a GPU's convolutions would else be done in TF32, which moves the maps in the third digit.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        store = open_store(self.store, cache=self.cache)
        method = method_class(self.method)(*self.settings)
        model = load_classifier(self.classifier, self.network, len(store.info.classes), self.device, self.trained_by or self.method)
        source = CompanionSource(store, **self.companions) if self.companions is not None else None
        cam = self.settings[-1]  # the views that every method's maps are made from

        def localise(ident: str) -> Record:
            began = time.perf_counter()
            sample = store[ident]
            if sample.labels is None:
                raise UserError(f"{ident} has no class labels", field="labels", remedy="leave it out of data.map-split")
            seen = views(ident, sample.pixels(), scales=cam.scales, flip=cam.flip, long_side=cam.long_side or None)
            batches = source.for_target(ident, sample.labels, self.settings[0].steps) if source is not None else None
            return maps_record(method.localise(model, seen, sample.labels, batches), time.perf_counter() - began)

        return localise


@dataclass(frozen=True)
class ThresholdWork:
    """What one picture adds to the threshold sweep; with snapshots, for the cumulative map of every RIB step as well."""

    light: ClassVar[bool] = True

    store: str
    cache: str | None
    maps: Path
    thresholds: tuple[float, ...]
    snapshots: bool

    def open(self) -> Callable[[str], Record]:
        from seedbed.data import open_store
        from seedbed.methods.maps import high_res, snapshot_maps
        from seedbed.seeds import sweep

        store, maps = open_store(self.store, cache=self.cache), Fragments(self.maps)
        thresholds = np.asarray(self.thresholds)
        num_classes = len(store.info.classes)

        def count(ident: str) -> Record:
            began = time.perf_counter()
            truth = truth_of(store, ident)
            found = maps_from(maps[ident])
            own = sweep(np.asarray(high_res(found)), found.classes, truth, thresholds, num_classes, ident)
            steps = {}
            if self.snapshots and found.snapshots is not None:
                for k in range(len(found.snapshots)):
                    cam = np.asarray(high_res(snapshot_maps(found, k)))
                    record = sweep(cam, found.classes, truth, thresholds, num_classes, ident).to_record()
                    steps.update({f"{k:03d}.{name}": values for name, values in record.items()})
            return {
                "id": ident,
                "counts": pack(own.to_record()),
                "snapshots": pack(steps) if steps else None,
                "seconds": time.perf_counter() - began,
            }

        return count


@dataclass(frozen=True)
class SeedWork:
    """A picture's label map at the threshold, and what it adds to the scores.

    `source` is the folder of its maps, or one of the two rows that need no network.
    """

    light: ClassVar[bool] = True

    store: str
    cache: str | None
    source: Path | Literal["whole_picture", "centred_box"]
    threshold: float
    tolerance: float

    def open(self) -> Callable[[str], Record]:
        from seedbed.data import open_store
        from seedbed.methods.maps import high_res
        from seedbed.seeds import centred_box, label_map, whole_picture

        store = open_store(self.store, cache=self.cache)
        baseline = {"whole_picture": whole_picture, "centred_box": centred_box}.get(str(self.source))
        maps = None if baseline else Fragments(Path(self.source))

        def seed(ident: str) -> Record:
            began = time.perf_counter()
            if maps is not None:
                found = maps_from(maps[ident])
                cam = np.asarray(high_res(found))
                labels_hw = label_map(cam, found.classes, self.threshold, ident)
            else:
                sample = store[ident]
                assert baseline is not None and sample.labels is not None
                labels_hw = baseline(sample.labels, (sample.height, sample.width))
            scored = counted(store, ident, labels_hw, self.tolerance)
            return {**label_record(ident, labels_hw, time.perf_counter() - began), **scored}

        return seed


def counts(store: Any, ident: str, labels_hw: np.ndarray, tolerance: float) -> Record:
    """What a label map adds to the scores, packed; nulls where its picture has no mask."""
    from seedbed.metrics.contour import Contour
    from seedbed.metrics.region import Confusion

    truth = store[ident].mask("class")
    if truth is None:
        return {"confusion": None, "contour": None}
    num_classes = len(store.info.classes)
    region, contour = Confusion(num_classes), Contour(num_classes, tolerance)
    region.add(truth, labels_hw, ident)
    contour.add(truth, labels_hw, ident)
    return {"confusion": pack(region.to_record()), "contour": pack(contour.to_record())}


def counted(store: Any, ident: str, labels_hw: np.ndarray, tolerance: float) -> Record:
    """`counts`, for a record that is kept whatever its picture's mask is like: where that can't be scored against, it says why."""
    try:
        return {**counts(store, ident, labels_hw, tolerance), "uncounted": None}
    except Exception as error:
        return {"confusion": None, "contour": None, "uncounted": reason(error)}


def truth_of(store: Any, ident: str) -> np.ndarray:
    """The picture's mask (SegmentationClass); a picture without one can't be scored."""
    truth = store[ident].mask("class")
    if truth is None:
        raise UserError(f"{ident} has no mask", field="SegmentationClass", remedy="score a split whose pictures have masks")
    return truth
