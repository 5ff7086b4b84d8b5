"""The figure of docs/pipeline.md: what every stage of a finished study made of a few pictures.

python experiments/shapes_rib.py --until segmentation --out runs/whole
python benchmarks/pipeline_pictures.py --run runs/whole --out docs/images/pipeline.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from seedbed.artefacts import Fragments, fills_labels, find_stages
from seedbed.artefacts.records import decode_png, maps_from
from seedbed.data import open_store
from seedbed.methods.maps import high_res
from seedbed.refine.irn import irn_edge, load_irn
from seedbed.refine.irn_settings import IrnConfig, IrnWalk
from seedbed.refine.pseudo_labels import fill
from seedbed.report.pictures import overlay, painted


def columns(run: Path, ident: str) -> dict[str, Any]:
    """Caption -> picture, in the order of the way."""
    record = json.loads((run / "run.json").read_text())
    sample = open_store(record["dataset"]["store"])[ident]
    pixels, palette = sample.pixels(), record["dataset"]["palette"]

    def found(stage: str, method: str, scored: bool = False) -> list[Fragments]:
        """The first random seed's artefacts come first. Predictions that are not scored are the first segmenter's, which fill labels."""
        there = [m for m in find_stages(run, stage) if m["method"] == method]
        return [Fragments(Path(m["folder"])) for m in there if stage != "predictions" or scored != fills_labels(m["settings"])]

    def label_map(stage: str, column: str = "label_map", scored: bool = False) -> np.ndarray:
        content = next((records[ident][column] for records in found(stage, "rib", scored) if ident in records), None)
        return np.zeros(pixels.shape[:2], np.uint8) if content is None else decode_png(content)

    def labels(*which: Any) -> Any:
        return painted(pixels, label_map(*which), palette)

    records_of = {m: next(records for records in found("maps", m) if ident in records) for m in ("cam", "rib")}
    maps = {m: np.asarray(high_res(maps_from(records[ident]))).max(0) for m, records in records_of.items()}
    truth = sample.mask("class")
    assert truth is not None
    filled = fill(label_map("masks", "labels"), label_map("predictions"))
    return {
        "picture": pixels,
        "CAM": overlay(pixels, maps["cam"]),
        "RIB": overlay(pixels, maps["rib"]),
        "seed": labels("seeds"),
        "CRF'd seed": labels("crf"),
        "confidence": labels("confidence"),
        "boundaries": overlay(pixels, boundaries(run, record["settings"]["refine"]["irn"], pixels)),
        "mask": labels("masks"),
        "labels": labels("masks", "labels"),
        "filled": painted(pixels, filled, palette),
        "prediction": labels("predictions", "label_map", True),
        "truth": painted(pixels, truth, palette),
    }


def boundaries(run: Path, settings: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
    """What the refinement's network says of a picture, for the random walk: probabilities of a boundary, at stride 4."""
    config = IrnConfig().replace(**{**settings, "walk": IrnWalk(**settings["walk"])})
    (folder, *_) = (Path(m["folder"]) for m in find_stages(run, "affinity") if m["method"] == "rib")
    return irn_edge(load_irn(folder, config, "cpu"), pixels, config.walk).numpy()


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ids", nargs="*", help="pictures (default: the first four that have a pseudo-label)")
    args = parser.parse_args()
    ids = args.ids or Fragments(Path(find_stages(args.run, "confidence")[0]["folder"])).ids()[:4]
    rows = [columns(args.run, ident) for ident in ids]
    size = (1.45 * len(rows[0]), 1.5 * len(rows))
    figure, axes = plt.subplots(len(rows), len(rows[0]), figsize=size, layout="constrained", squeeze=False)
    for number, (line, row) in enumerate(zip(axes, rows, strict=True)):
        for axis, (caption, image) in zip(line, row.items(), strict=True):
            axis.imshow(image)
            axis.set_axis_off()
            if number == 0:
                axis.set_title(caption, fontsize=9)
    figure.savefig(args.out, dpi=90)


if __name__ == "__main__":
    main()
