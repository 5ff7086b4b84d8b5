"""Made data in VOC's layout and as a store, small enough to be made anew for every test that damages it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_devkit import EXTRA, TRAIN, VAL, classes_of, jpeg, overwrite, write_mask
from PIL import Image

from seedbed.data import Store, StoreInfo, StoreWriter, open_store
from seedbed.types import Sample


@pytest.fixture
def mini_devkit(tmp_path: Path) -> Path:
    """VOCdevkit with six train, four val and three further pictures; no annotations, no Main: labels come from the masks."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number, ident in enumerate(TRAIN + VAL + EXTRA):
        height, width = 24 + number, 40 - number
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / "JPEGImages" / f"{ident}.jpg")
        mask = np.zeros((height, width), np.uint8)
        first, second = classes_of(ident)
        mask[:9], mask[9:14], mask[14] = first + 1, second + 1, 255
        write_mask(root / "SegmentationClassAug" / f"{ident}.png", mask)
        if ident not in EXTRA:
            write_mask(root / "SegmentationClass" / f"{ident}.png", mask)
    for split, ids in (("train", TRAIN), ("val", VAL), ("trainval", TRAIN + VAL)):
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(ids) + "\n")
    return root.parent


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Store]:
    """`make_store(labels, name=..., masks=...)`: a store of made pictures p0000, p0001, ...; the split "all" holds them in order."""

    def make(labels: list[list[int] | None], *, name: str = "store", mask: bytes = b"mask", seed: int = 0) -> Store:
        classes = tuple(f"c{i}" for i in range(next((len(row) for row in labels if row is not None), 1)))
        with StoreWriter(tmp_path / name, StoreInfo("made", classes)) as writer:
            for i, row in enumerate(labels):
                vector = None if row is None else np.array(row, np.uint8)
                masks: dict[str, bytes | memoryview] = {"class": mask + str(i).encode()} if i % 2 == 0 else {}
                source = None if row is None else "generator"
                writer.add(Sample(f"p{i:04d}", jpeg(seed + i), 20, 30, vector, source, masks), splits=("all",))
        return open_store(tmp_path / name)

    return make


@pytest.fixture
def flipped() -> Callable[[Path, int], None]:
    """`flipped(path, at)`: one bit of a file turned over."""

    def flip(path: Path, at: int) -> None:
        content = bytearray(path.read_bytes())
        content[at] ^= 0x40
        overwrite(path, bytes(content))

    return flip
