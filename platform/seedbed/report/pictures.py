"""Panels as small pictures: maps over the picture on one scale for all, label maps in the dataset's palette with void hatched."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from seedbed.report.result import Panel
from seedbed.types import IGNORE

if TYPE_CHECKING:
    from PIL.Image import Image

LONG_SIDE = 400
"""Pixels; twice what a tile is wide on most screens. Smaller pictures are enlarged by whole numbers up to this."""

TILES = 12
"""Tiles of one panel; of more maps the steps in between are left out evenly."""

INFERNO = "000004 160b39 420a68 6a176e 932667 bc3754 dd513a f37819 fca50a f6d746 fcffa4"
"""Eleven even stops of the perceptually uniform color map inferno (S. van der Walt, N. Smith; CC0)."""


@dataclass(frozen=True)
class Tile:
    caption: str
    detail: str
    alt: str
    address: str
    """data:image/...;base64,..."""
    size: tuple[int, int]
    """Width and height in pixels."""


@dataclass(frozen=True)
class Shown:
    """A panel ready for the page."""

    id: str
    tiles: Sequence[Tile]
    legend: Sequence[tuple[str, str]]
    """(class name, #rrggbb) of the classes in its seeds and truth, without background."""
    void: bool


def shown(panel: Panel, classes: Sequence[str], palette: Sequence[Sequence[int]]) -> Shown:
    """All tiles of a panel, in the order of the way: picture, maps, seeds, pseudo-label, prediction, truth."""
    names = _names(panel, classes)
    tiles = [_tile("picture", "", f"{panel.id}: the picture", _fitted(panel.picture, smooth=True))]
    for caption, values in _thinned(panel.maps, TILES - 2 - len(panel.seeds) - len(panel.later)).items():
        tiles.append(_tile(caption, "", f"{panel.id}: {caption} map over the picture, 0 to 1", overlay(panel.picture, values)))
    for caption, labels in panel.seeds.items():
        score = "" if panel.truth is None else f"IoU {100 * picture_iou(labels, panel.truth):.0f}%"
        alt = f"{panel.id}: {caption} seed, {_content(labels, names)}"
        tiles.append(_tile(f"{caption} seed", score, alt, painted(panel.picture, labels, palette)))
    for caption, labels in panel.later.items():
        score = "" if panel.truth is None or (labels == IGNORE).any() else f"IoU {100 * picture_iou(labels, panel.truth):.0f}%"
        alt = f"{panel.id}: {caption}, {_content(labels, names)}"
        tiles.append(_tile(caption, score, alt, painted(panel.picture, labels, palette)))
    if panel.truth is not None:
        tiles.append(_tile("truth", "", f"{panel.id}: truth, {_content(panel.truth, names)}", painted(panel.picture, panel.truth, palette)))
    present = _values(panel)
    legend = [(names[v], "#{:02x}{:02x}{:02x}".format(*_color(v, palette))) for v in present if v not in (0, IGNORE)]
    return Shown(panel.id, tiles, legend, IGNORE in present)


def picture_iou(labels: np.ndarray, truth: np.ndarray) -> float:
    """Mean IoU over the classes in one picture's truth, background too, void left out. A guide for the eye, no score of the protocol."""
    keep = truth != IGNORE
    ious: list[float] = []
    for value in np.unique(truth[keep]):
        ours, theirs = (labels == value) & keep, truth == value
        ious.append((ours & theirs).sum() / (ours | theirs).sum())
    return float(np.mean(ious)) if ious else 0.0


def colors() -> np.ndarray:
    """(256, 3) uint8: the color map of all overlays, dark to bright."""
    stops = np.array([list(bytes.fromhex(stop)) for stop in INFERNO.split()], dtype=float)
    at = np.linspace(0, len(stops) - 1, 256)
    return np.stack([np.interp(at, np.arange(len(stops)), stops[:, c]) for c in range(3)], axis=1).round().astype(np.uint8)


def overlay(picture: np.ndarray, values: np.ndarray) -> Image:
    """A map in 0..1 over its picture in grey; color says the value, the picture only shades it, so that the scale stays readable."""
    base = np.asarray(_fitted(picture, smooth=True).convert("L"), dtype=np.float32) / 255
    from PIL import Image

    field = Image.fromarray(np.clip(values, 0, 1).astype(np.float32)).resize(base.shape[::-1], Image.Resampling.BICUBIC)
    value = np.clip(np.asarray(field), 0, 1)[..., None]
    color = colors()[(value[..., 0] * 255).round().astype(int)] / 255.0
    weight = 0.25 + 0.55 * np.sqrt(value)
    return Image.fromarray(((weight * color + (1 - weight) * base[..., None]) * 255).round().astype(np.uint8))


def painted(picture: np.ndarray, labels: np.ndarray, palette: Sequence[Sequence[int]]) -> Image:
    """A label map in the palette's colors on the faded picture; void is hatched, whatever color the palette has for it.

    The background's own color (black in VOC) would hide the dark classes and what was missed, so the picture stands in for it.
    """
    from PIL import Image

    grey = np.asarray(_fitted(picture, smooth=True).convert("L"), dtype=np.float32)
    big = np.asarray(_fitted(labels, smooth=False))
    y, x = np.indices(big.shape)
    table = np.array([_color(v, palette) for v in range(256)], dtype=np.float32)
    out = np.where((big == 0)[..., None], (168 + 0.3 * grey)[..., None], table[big])
    out[(big == IGNORE) & ((x + y) % 8 < 4)] = 250
    out[(big == IGNORE) & ((x + y) % 8 >= 4)] = 110
    return Image.fromarray(out.round().astype(np.uint8))


def _fitted(array: np.ndarray, *, smooth: bool) -> Image:
    from PIL import Image

    height, width = array.shape[:2]
    factor = LONG_SIDE / max(height, width)
    factor = float(max(1, int(factor))) if factor >= 1 else factor
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    image = Image.fromarray(np.ascontiguousarray(array).astype(np.uint8))
    return image.resize(size, Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)


def _tile(caption: str, detail: str, alt: str, image: Image) -> Tile:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", quality=84, method=4, use_sharp_yuv=True)
    return Tile(caption, detail, alt, f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}", image.size)


def _thinned(maps: Mapping[str, np.ndarray], room: int) -> dict[str, np.ndarray]:
    """All maps where there is room, else the first, the last and evenly some between of those named by step."""
    steps = [name for name in maps if "k=" in name]
    keep = (
        {steps[i] for i in np.linspace(0, len(steps) - 1, max(2, room - (len(maps) - len(steps)))).round().astype(int)} if steps else set()
    )
    return {name: values for name, values in maps.items() if "k=" not in name or name in keep}


def _values(panel: Panel) -> list[int]:
    arrays = [*panel.seeds.values(), *panel.later.values(), *([] if panel.truth is None else [panel.truth])]
    return sorted({int(v) for array in arrays for v in np.unique(array)})


def _names(panel: Panel, classes: Sequence[str]) -> dict[int, str]:
    known = {0: "background", IGNORE: "void", **{i + 1: name for i, name in enumerate(classes)}}
    return {v: known.get(v, f"value {v}") for v in (*_values(panel), 0, IGNORE)}


def _content(labels: np.ndarray, names: Mapping[int, str]) -> str:
    """`cat 31 %, dog 4 %`: what a reader who does not see the picture gets."""
    values, counts = np.unique(labels[labels != IGNORE], return_counts=True)
    total = max(int(counts.sum()), 1)
    shares = [f"{names[int(v)]} {100 * n / total:.0f}%" for v, n in zip(values, counts, strict=True) if v != 0]
    return ", ".join(shares) or "background only"


def _color(value: int, palette: Sequence[Sequence[int]]) -> tuple[int, int, int]:
    if value < len(palette):
        red, green, blue = palette[value]
        return int(red), int(green), int(blue)
    return (90 + 37 * value % 150, 60 + 91 * value % 170, 70 + 53 * value % 160)
