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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _shapes_measuring import MATCHED, ROOT, STUDY, VARIANTS, Trial, measured

from seedbed.data import shapes
from seedbed.data.companions import CompanionSource
from seedbed.data.shapes_drawing import background_only, body_only, draw, head_only
from seedbed.data.transforms import views
from seedbed.methods.maps import high_res, snapshot_maps
from seedbed.methods.rib import Rib
from seedbed.seeds import strongest

LABELS = {"gndrp": "RIB", "gap": "GAP pooling", "bce": "BCE instead of L_RIB", "alone": "no companions (B = 1)", "wrong": "wrong label"}


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
