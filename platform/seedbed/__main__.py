"""`python -m seedbed export` and `python -m seedbed ui`: what is done with a finished run."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from seedbed.artefacts import Fragments, fills_labels, find_stages
from seedbed.artefacts.records import decode_png, png
from seedbed.study import reported_errors
from seedbed.types import UserError

STAGES = {"seed": "seeds", "crf": "crf", "mask": "masks", "labels": "masks", "segmentation": "predictions"}
"""What `--stage` says -> the stage's name. `labels`: what the segmenter is trained on, 255 where the mask is not sure."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m seedbed", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    export_parser = commands.add_parser("export", help="label maps of a run as PNG with the dataset's palette, DIR/METHOD/ID.png")
    export_parser.add_argument("--run", required=True, type=Path, help="output folder of the run")
    export_parser.add_argument("--stage", required=True, choices=sorted(STAGES), help="which label maps")
    export_parser.add_argument("--out", required=True, type=Path, help="folder to write to")
    ui_parser = commands.add_parser("ui", help="MLflow's pages of a run, on 127.0.0.1")
    ui_parser.add_argument("--run", required=True, type=Path, help="output folder of the run")
    ui_parser.add_argument("--port", type=int, default=5000, help="port to listen on (default 5000)")
    arguments = parser.parse_args()
    with reported_errors():
        if arguments.command == "ui":
            from seedbed.runtime.tracking import open_ui

            open_ui(arguments.run, arguments.port)
        else:
            count = export(arguments.run, arguments.stage, arguments.out)
            print(f"{count:,} label maps in {arguments.out}")


def export(run: Path, stage: str, out: Path) -> int:
    """Writes the label maps of a run's stage; returns how many. Of several seeds each goes to METHOD-KEY, of one to METHOD."""
    there = [m for m in find_stages(run, STAGES[stage]) if stage != "segmentation" or not fills_labels(m["settings"])]
    if not there:
        message = f"{run} has no finished stage {STAGES[stage]!r}"
        raise UserError(message, file=run, field="--stage", remedy="run the study to that stage first")
    palette = palette_of(run)
    column = "labels" if stage == "labels" else "label_map"
    places = [(m["method"], m["settings"].get("split")) for m in there]
    count = 0
    for manifest in there:
        method = manifest["method"]
        folder = out / (method if places.count((method, manifest["settings"].get("split"))) == 1 else f"{method}-{manifest['key'][:8]}")
        folder.mkdir(parents=True, exist_ok=True)
        for record in Fragments(Path(manifest["folder"])):
            (folder / f"{record['id']}.png").write_bytes(png(decode_png(record[column]), palette))
            count += 1
    return count


def palette_of(run: Path) -> list[list[int]]:
    """The dataset's palette as the run recorded it."""
    import json

    path = run / "run.json"
    if path.exists():
        with contextlib.suppress(ValueError, AttributeError):  # cut short, or of something else
            palette = json.loads(path.read_text()).get("dataset", {}).get("palette")
            if palette:
                return palette
    remedy = "run the study again: it finds what is finished"
    raise UserError(f"{path} does not name a palette", file=path, field="dataset.palette", remedy=remedy)


if __name__ == "__main__":
    main()
