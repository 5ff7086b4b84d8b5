"""Measuring for shapes_trial.py: one seed's set and classifier, and the figures of its maps, kept in files and found again."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "experiments"))

from shapes_rib import STUDY  # noqa: E402

from seedbed import loop  # noqa: E402
from seedbed.data import open_store, shapes  # noqa: E402
from seedbed.data.companions import CompanionSource  # noqa: E402
from seedbed.data.shapes_drawing import BODY, HEAD, background_only, body_only, draw, head_only  # noqa: E402
from seedbed.data.transforms import normalise, views  # noqa: E402
from seedbed.methods.cam import Cam  # noqa: E402
from seedbed.methods.maps import high_res, snapshot_maps  # noqa: E402
from seedbed.methods.rib import Rib, margin_step  # noqa: E402
from seedbed.metrics.classification import average_precision  # noqa: E402
from seedbed.metrics.contour import Contour  # noqa: E402
from seedbed.models import build_network  # noqa: E402
from seedbed.pipeline import ShapesExperiment, classifier_task  # noqa: E402
from seedbed.seeds import SweepCounts, label_map, strongest  # noqa: E402
from seedbed.types import Maps  # noqa: E402

GRID = np.round(np.arange(0.01, 0.61, 0.01), 2)
LEVELS = 1000
CLASSES = len(shapes.CLASSES)
MATCHED = 10.0
"""False-positive rate at which recalls are compared, percent of the background."""
MARGINS = (15, 30, 60, 120, 240)
"""Tried when a run has none (`--set rib.margin=1e9`): they all follow from its log."""
VARIANTS: dict[str, dict[str, Any]] = {
    "gndrp": {},
    "gap": {"rib.pooling": "gap"},
    "bce": {"rib.loss": "bce_sigmoid"},
    "alone": {"rib.companions": "none"},
    "wrong": {"rib.wrong_label": True},
}


class Tally:
    """Counts over pictures from which every figure of a map follows, whatever the threshold."""

    def __init__(self) -> None:
        self.sweep = SweepCounts(GRID, CLASSES)
        self.hits = np.zeros((3, LEVELS + 1), np.int64)
        """Pixels whose strongest class is right, by part (background: all pixels) and score."""
        self.pixels = np.zeros(3, np.int64)
        self.called = np.zeros(LEVELS + 1, np.int64)
        self.cams: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, maps: Maps, truth: np.ndarray, parts: np.ndarray) -> None:
        cam = high_res(maps)
        self.sweep.add(cam, maps.classes, truth)
        score, winner = strongest(cam)
        level = np.minimum((score * LEVELS).astype(int), LEVELS)
        right = maps.classes[winner] + 1 == truth
        for part in range(3):
            here = (parts == part) & (right if part else True)
            self.hits[part] += np.bincount(level[here], minlength=LEVELS + 1)
        self.pixels += np.bincount(parts.ravel(), minlength=3)
        self.called += np.bincount(level.ravel(), minlength=LEVELS + 1)
        self.cams.append((cam.astype(np.float16), maps.classes, truth))

    def figures(self, fixed: float | None = None) -> dict[str, float]:
        """Percent. Recalls and false positives at the best threshold, at `fixed`, and recalls at the matched false-positive rate."""
        best = self.sweep.best("skip")
        above = self.hits[:, ::-1].cumsum(1)[:, ::-1] / self.pixels[:, None]  # share of pixels at or above each level
        found = self.hits[1:].sum(0)[::-1].cumsum()
        precision = found / np.maximum(self.called[::-1].cumsum(), 1)
        out = {
            "mIoU": 100 * best.mean_iou,
            "threshold": best.value,
            "F": 100 * self.contour(best.value),
            "AP": 100 * float((np.diff(found, prepend=0) * precision).sum() / self.pixels[1:].sum()),
            "at matched: heads": 100 * float(np.interp(-MATCHED / 100, -above[0], above[1])),
            "at matched: bodies": 100 * float(np.interp(-MATCHED / 100, -above[0], above[2])),
        }
        out["J&F"] = (out["mIoU"] + out["F"]) / 2
        for name, value in (("best", best.value), ("fixed", fixed or best.value)):
            at = round(value * LEVELS)
            out |= {f"at {name}: {p}": 100 * float(above[i, at]) for i, p in enumerate(("false positives", "heads", "bodies"))}
            out[f"at {name}: mIoU"] = 100 * float(self.sweep.ious("skip")[1][int(np.argmin(abs(GRID - value)))])
        return out

    def contour(self, threshold: float) -> float:
        contour = Contour(CLASSES)
        for cam, classes, truth in self.cams:
            contour.add(truth, label_map(cam.astype(np.float32), classes, threshold))
        return contour.f()[1]


class Trial:
    """One seed: its set, its classifier."""

    def __init__(self, out: Path, seed: int, changes: dict[str, Any]) -> None:
        self.settings: ShapesExperiment = STUDY.replace(**changes).replace(**{"shapes.seed": seed})
        self.settings.check()
        self.seed = seed
        self.store = open_store(shapes.make_shapes(out / "stores", self.settings.shapes))
        task = classifier_task(self.settings, self.store, seed)
        task.open()
        folder = out / "classifiers" / task.identity()
        folder.mkdir(parents=True, exist_ok=True)
        began = time.process_time()
        loop.train(task, folder)
        spent = time.process_time() - began
        if not (folder / "seconds").exists():
            (folder / "seconds").write_text(f"{spent:.1f}")
        self.model: Any = build_network("small", CLASSES)
        self.model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
        self.model.freeze_statistics(True).eval()
        self.training = float((folder / "seconds").read_text())
        self.key = folder.name

    def cam_side(self, count: int) -> dict[str, float]:
        """What the classifier looks at, on pictures it has not seen; then its maps on those."""
        config = self.settings.shapes
        scenes = [shapes.scene(i, config) for i in self.store.ids("val")]
        labels = self.store.labels(self.store.ids("val"))
        headed = np.zeros_like(labels)
        for row, content in zip(headed, scenes, strict=True):
            row[[t.label for t in content.objects if t.head is not None]] = 1
        spurious = config.spurious_class
        out = {"mAP": self._map([draw(s)[0] for s in scenes], labels).mean()}
        out["heads alone"] = self._map([head_only(s) for s in scenes], headed).mean()
        out["bodies alone"] = self._map([body_only(s) for s in scenes], labels).mean()
        behind = self._map([background_only(s) for s in scenes], labels)
        out["background alone"], out["spurious class"] = np.delete(behind, spurious).mean(), behind[spurious]
        return {k: float(v) for k, v in out.items()} | self._raw(count) | {"training": self.training}

    def _map(self, pictures: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            batches = [torch.stack([normalise(p) for p in pictures[i : i + 50]]) for i in range(0, len(pictures), 50)]
            scores = torch.cat([self.model(b).mean((2, 3)) for b in batches]).numpy()
        return 100 * np.array(average_precision(scores, labels)[0])

    def _raw(self, count: int) -> dict[str, float]:
        """Mean raw score of a labelled class on the heads of its objects, their bodies, and the background, where it has a head."""
        values: list[tuple[float, float, float]] = []
        cam, tally = Cam(self.settings.cam), Tally()
        for image_id in self.store.ids("val")[:count]:
            sample = self.store[image_id]
            truth, parts = sample.mask("class"), sample.mask("parts")
            maps = cam.localise(self.model, views(image_id, sample.pixels(), self.settings.cam.scales), sample.labels)
            tally.add(maps, truth, parts)
            big = [torch.nn.functional.interpolate(torch.from_numpy(m)[None], truth.shape, mode="bilinear")[0] for m in maps.sums]
            for c, raw in zip(maps.classes, torch.stack(big).sum(0).numpy(), strict=True):
                head, body = (truth == c + 1) & (parts == HEAD), (truth == c + 1) & (parts == BODY)
                if head.any():
                    values.append((raw[head].mean(), raw[body].mean(), raw[truth == 0].mean()))
        head, body, ground = np.mean(values, 0).tolist()
        raw = {"raw head": head, "raw body": body, "raw background": ground, "body over head": body / head}
        return raw | tally.figures()

    def rib_side(self, variant: str, count: int, split: str = "train") -> dict[str, Any]:
        """Over k: figures of the cumulative map; "cam" is k = 1, for theta_0 makes it."""
        settings = self.settings.replace(**VARIANTS.get(variant, {}), **{"rib.snapshots": True})
        rib = Rib(settings.rib, settings.cam)
        source = None
        if settings.rib.companion_rows:
            transform = settings.classifier.resolved().transform
            source = CompanionSource(self.store, "train", transform, settings.rib.companion_rows, self.seed)
        tallies = [Tally() for _ in range(settings.rib.steps)]
        by_margin = {m: Tally() for m in MARGINS} if settings.rib.margin > 1e6 else {}
        ends: dict[str, int] = {}
        spent = 0.0
        for image_id in self.store.ids(split)[:count]:
            sample = self.store[image_id]
            seen = views(image_id, sample.pixels(), settings.cam.scales)
            others = source.for_target(image_id, sample.labels, settings.rib.steps) if source else None
            began = time.process_time()
            maps = rib.localise(self.model, seen, sample.labels, others)
            spent += time.process_time() - began
            reason = f"{maps.ended} {maps.steps}"
            ends[reason] = ends.get(reason, 0) + 1
            truth, parts = sample.mask("class"), sample.mask("parts")
            for k, tally in enumerate(tallies):
                tally.add(snapshot_maps(maps, min(k, len(maps.snapshots) - 1)), truth, parts)
            for margin, tally in by_margin.items():
                tally.add(snapshot_maps(maps, (margin_step(maps, margin) or maps.steps) - 1), truth, parts)
        fixed = tallies[0].sweep.best("skip").value
        margins = {m: t.figures(fixed) for m, t in by_margin.items()}
        return {"over k": [t.figures(fixed) for t in tallies], "margins": margins, "ends": ends, "seconds": spent / count}


def measured(path: Path, make: Any) -> Any:
    """A result that is kept in a file."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(make(), indent=1))
    return json.loads(path.read_text())
