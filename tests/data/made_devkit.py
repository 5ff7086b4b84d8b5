"""Pieces of a made devkit and store, for the tests beside."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from seedbed.data.card import Card
from seedbed.data.store_format import color_map

ROOT = Path(__file__).resolve().parents[2]
CARD = Card.read(ROOT / "datasets" / "voc2012" / "card.toml")
TRAIN = [f"2007_{i:06d}" for i in range(6)]
VAL = [f"2008_{i:06d}" for i in range(4)]
EXTRA = [f"2009_{i:06d}" for i in range(3)]
"""Only in SegmentationClassAug, as SBD's pictures are."""


def write_mask(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8), "P")
    image.putpalette([channel for color in color_map() for channel in color])
    image.save(path)


def classes_of(ident: str) -> tuple[int, int]:
    """Two class indices of every made picture."""
    number = int(ident[-1])
    return number, number + 10


def write_annotation(root: Path, ident: str, objects: list[tuple[str, int]]) -> None:
    path = root / "Annotations" / f"{ident}.xml"
    path.parent.mkdir(exist_ok=True)
    body = "".join(
        f"<object><name>{name}</name><difficult>{hard}</difficult><part><name>head</name></part></object>" for name, hard in objects
    )
    path.write_text(f"<annotation><filename>{ident}.jpg</filename>{body}</annotation>")


def write_main(root: Path, values: dict[str, dict[str, int]], split: str = "trainval") -> None:
    """values: class -> id -> -1, 0 or 1; every class gets a file."""
    folder = root / "ImageSets" / "Main"
    folder.mkdir(parents=True, exist_ok=True)
    for name in CARD.classes:
        lines = [f"{ident} {value:2d}" for ident, value in values.get(name, {}).items()]
        (folder / f"{name}_{split}.txt").write_text("\n".join(lines) + "\n")


def jpeg(seed: int, height: int = 20, width: int = 30) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(out, "JPEG")
    return out.getvalue()


def overwrite(path: Path, content: bytes) -> None:
    """A new file under the old name: a store that is mapped somewhere keeps its pages."""
    beside = path.with_name("beside")
    beside.write_bytes(content)
    beside.rename(path)
