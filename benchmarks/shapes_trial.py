"""The figures that docs/shapes.md quotes: what the classifier looks at on the shapes set, and what RIB makes of it.

    python benchmarks/shapes_trial.py cam --seeds 0 1 2 3 4        # mAP of heads, bodies, backgrounds alone; maps of the plain CAM
    python benchmarks/shapes_trial.py rib --seeds 0 1 2 3 4 --variants gndrp gap bce alone wrong
    python benchmarks/shapes_trial.py tables                       # both from what was measured, as Markdown
    python benchmarks/shapes_trial.py figures                      # docs/images/shapes*.png

Every seed is a set of its own (generator seed = training seed). Settings are those of experiments/shapes_rib.py;
`--set rib.lr=1e-4` changes one. What is measured is kept below --out and found again.
"""

from __future__ import annotations

import argparse
import ast
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
from seedbed.methods.rib import Rib, steps_until_margin  # noqa: E402
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

LABELS = {"gndrp": "RIB", "gap": "GAP pooling", "bce": "BCE instead of L_RIB", "alone": "no companions (B = 1)", "wrong": "wrong label"}


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
                tally.add(snapshot_maps(maps, steps_until_margin(maps, margin) - 1), truth, parts)
        fixed = tallies[0].sweep.best("skip").value
        margins = {m: t.figures(fixed) for m, t in by_margin.items()}
        return {"over k": [t.figures(fixed) for t in tallies], "margins": margins, "ends": ends, "seconds": spent / count}


def measured(path: Path, make: Any) -> Any:
    """A result that is kept in a file."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(make(), indent=1))
    return json.loads(path.read_text())


def spread(values: list[float], signed: bool = False) -> str:
    """Mean and sample standard deviation."""
    return f"{np.mean(values):{'+' if signed else ''}.1f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.1f}"


ROWS = (
    "mIoU", "threshold", "J&F", "AP", "at best: false positives", "at best: heads", "at best: bodies",
    "at fixed: mIoU", "at fixed: false positives", "at fixed: heads", "at fixed: bodies", "at matched: heads", "at matched: bodies",
)  # fmt: skip


def tables(found: dict[str, list[dict[str, Any]]]) -> None:
    """Markdown: the plain CAM and every variant's last k, then paired differences, then GNDRP over k."""
    names = list(found)
    print("| | CAM |" + "".join(f" {n} |" for n in names) + "\n|---|---|" + "---|" * len(names))
    for row in ROWS:
        digits = 100 if row == "threshold" else 1
        cells = [[run["over k"][k][row] * digits for run in found[n]] for n, k in [(names[0], 0), *((n, -1) for n in names)]]
        print(f"| {row}{' x 100' if digits > 1 else ''} | " + " | ".join(map(spread, cells)) + " |")
    print("\n| paired with the CAM of the seed |" + "".join(f" {n} |" for n in names) + "\n|---|" + "---|" * len(names))
    for row in ("mIoU", "J&F", "AP", "at matched: bodies"):
        cells = [[run["over k"][-1][row] - run["over k"][0][row] for run in found[n]] for n in names]
        print(f"| {row} | " + " | ".join(f"{spread(c, True)} ({' '.join(f'{v:+.1f}' for v in c)})" for c in cells) + " |")
    for name in names:
        steps = range(len(found[name][0]["over k"]))
        print(f"\n| {name}, k |" + "".join(f" {k + 1} |" for k in steps) + "\n|---|" + "---|" * len(steps))
        for row in ("mIoU", "AP", "at matched: bodies", "at fixed: bodies", "at fixed: false positives"):
            print(f"| {row} | " + " | ".join(f"{np.mean([run['over k'][k][row] for run in found[name]]):.1f}" for k in steps) + " |")
        ends: dict[str, int] = {}
        for run in found[name]:
            for reason, count in run["ends"].items():
                ends[reason] = ends.get(reason, 0) + count
        print(f"\nends: {ends}; {np.mean([run['seconds'] for run in found[name]]):.2f} s a picture (CPU time)")


def picture_of_the_set(path: Path) -> None:
    """Ten pictures; below each its parts, heads alone, bodies alone, background alone."""
    from PIL import Image

    config = STUDY.shapes
    colors = np.array([(0, 0, 0), (255, 255, 255), (128, 128, 128)], np.uint8)
    columns = []
    for content in (shapes.scene(i, config) for i in shapes.ids("val", config)[:10]):
        pixels, _, parts = draw(content)
        column = (pixels, colors[parts], head_only(content), body_only(content), background_only(content))
        columns.append(np.concatenate([np.pad(p, ((0, 4), (0, 4), (0, 0)), constant_values=255) for p in column]))
    Image.fromarray(np.concatenate(columns, axis=1)).save(path, optimize=True)


def picture_of_rib(trial: Trial, path: Path, steps: tuple[int, ...] = (0, 3, 6, 9)) -> None:
    """Picture, cumulative map after some steps (the first is the plain CAM), truth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    settings = trial.settings.replace(**{"rib.snapshots": True})
    rib = Rib(settings.rib, settings.cam)
    source = CompanionSource(trial.store, "train", settings.classifier.resolved().transform, settings.rib.companion_rows, trial.seed)
    ids = trial.store.ids("train")[:8]
    figure, axes = plt.subplots(len(ids), 2 + len(steps), figsize=(1.5 * (2 + len(steps)), 1.5 * len(ids)), layout="constrained")
    for row, image_id in zip(axes, ids, strict=True):
        sample = trial.store[image_id]
        others = source.for_target(image_id, sample.labels, settings.rib.steps)
        maps = rib.localise(trial.model, views(image_id, sample.pixels(), settings.cam.scales), sample.labels, others)
        row[0].imshow(sample.pixels())
        for axis, k in zip(row[1:], steps, strict=False):
            axis.imshow(strongest(high_res(snapshot_maps(maps, min(k, len(maps.snapshots) - 1))))[0], vmin=0, vmax=1, cmap="viridis")
        row[-1].imshow(np.array(trial.store.info.palette, np.uint8)[sample.mask("class")])
        for axis in row:
            axis.set_axis_off()
    for axis, title in zip(axes[0], ("picture", "CAM (k = 1)", *(f"RIB, k = {k + 1}" for k in steps[1:]), "truth"), strict=True):
        axis.set_title(title, fontsize=9)
    figure.savefig(path, dpi=80)


def picture_over_k(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Differences to the plain CAM over k, mean and standard error over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = (("mIoU", "mIoU, best threshold"), ("at matched: bodies", f"recall of bodies at {MATCHED:.0f} % false positives"))
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, (row, title) in zip(axes, rows, strict=True):
        for name, runs in found.items():
            curves = np.array([[k[row] - run["over k"][0][row] for k in run["over k"]] for run in runs])
            k, middle, error = np.arange(1, curves.shape[1] + 1), curves.mean(0), curves.std(0, ddof=1) / len(curves) ** 0.5
            axis.plot(k, middle, label=LABELS[name])
            axis.fill_between(k, middle - error, middle + error, alpha=0.15)
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set(xlabel="k", ylabel="points above CAM", title=title)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cam", "rib", "tables", "figures"])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "shapes_trial")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--variants", nargs="+", default=["gndrp"], choices=sorted(VARIANTS))
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--set", nargs="*", default=[], help="dotted settings, e.g. rib.lr=2e-4")
    args = parser.parse_args()
    torch.set_num_threads(1)
    changes = {}
    for text in args.set:
        name, _, value = text.partition("=")
        try:
            changes[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            changes[name] = value
    looks: list[dict[str, float]] = []
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in args.variants}
    for seed in args.seeds:
        trial = Trial(args.out, seed, changes)
        if args.what in ("cam", "tables"):
            path = args.out / f"cam/{seed}-{trial.settings.cam.key()}-{trial.key}.json"
            looks.append(measured(path, lambda t=trial: t.cam_side(150)))
            print(seed, {k: round(v, 2) for k, v in looks[-1].items()}, flush=True)
        for variant in args.variants if args.what != "cam" else ():
            key = f"{variant}-{seed}-{trial.settings.rib.key()}-{trial.settings.cam.key()}-{trial.key}-{args.pictures}"
            run = measured(args.out / f"rib/{key}.json", lambda t=trial, v=variant: t.rib_side(v, args.pictures))
            found[variant].append(run)
            if args.what == "rib":
                print(seed, variant, *args.set, f"{run['seconds']:.2f} s", run["ends"])
                for name in ("mIoU", "at matched: bodies", "at fixed: bodies", "at fixed: false positives", "AP"):
                    print(f"  {name:28s}", *(f"{row[name]:5.1f}" for row in run["over k"]), end="   ")
                    print(*(f"m{m}:{row[name]:.1f}" for m, row in run["margins"].items()), flush=True)
    if args.what == "tables":
        print("\n| CAM side, over seeds | |\n|---|---|")
        for name in looks[0]:
            print(f"| {name} | {np.mean([x[name] for x in looks]):.2f} ± {np.std([x[name] for x in looks], ddof=1):.2f} |")
        print()
        tables(found)
    if args.what == "figures":
        images = ROOT / "docs" / "images"
        images.mkdir(parents=True, exist_ok=True)
        picture_of_the_set(images / "shapes.png")
        picture_over_k(found, images / "shapes_over_k.png")
        picture_of_rib(Trial(args.out, args.seeds[0], changes), images / "shapes_rib.png")


if __name__ == "__main__":
    main()
