"""The shapes set: made pictures in which a classifier has an honest reason to look at heads and to neglect bodies.

An object is a large body with a texture (weak evidence for its class: pale, and sometimes another class's) and a small head, a ring in the
class's hue around a bright core (decisive, but sometimes missing). Clutter looks like either of them. One class has wavy backgrounds, a
spurious correlation. Every draw of a picture comes from one generator seeded by (seed, "shapes", id): any size and count, the same bits
whatever else is made. How the values below were chosen, and what follows from them: docs/shapes.md.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from seedbed.config import Settings, bounded, digest
from seedbed.data.shapes_drawing import Blob, Disc, Scene, Thing, draw
from seedbed.data.store import StoreInfo, StoreWriter, open_store
from seedbed.data.transforms import generator
from seedbed.types import Sample, UserError

VERSION = 1
"""Code version of the generator, drawing included: part of the store's key, goes up whenever a picture changes."""

CLASSES = ("poppy", "clover", "gentian", "orchid", "flax", "buttercup")
HUES = np.array([(0.85, 0.15, 0.15), (0.15, 0.72, 0.2), (0.18, 0.28, 0.9), (0.82, 0.2, 0.8), (0.15, 0.75, 0.8), (0.85, 0.8, 0.15)])
"""Color of the ring of each class's head."""
NO_HUES = np.array([(0.45, 0.28, 0.18), (0.15, 0.15, 0.2), (0.75, 0.75, 0.7)])
"""Rings of bull's-eyes that belong to no class."""


def palette() -> tuple[tuple[int, int, int], ...]:
    """256 RGB colors: black for the background, the classes' hues, a pale gray for what is not labelled."""
    colors = [(0, 0, 0), *((int(r), int(g), int(b)) for r, g, b in HUES * 255)]
    return tuple(colors) + ((224, 224, 224),) * (256 - len(colors))


@dataclass(frozen=True)
class ShapesConfig(Settings):
    """The generator. Lengths are pixels of a picture of 96 px and grow with `size`; shares and probabilities lie in 0..1."""

    size: int = bounded(96, 24, 1024)
    """Side of the square pictures, pixels."""
    train: int = bounded(1500, 1, 1_000_000)
    """Pictures of the split `train`."""
    val: int = bounded(200, 0, 1_000_000)
    """Pictures of the split `val`."""
    seed: int = bounded(0, 0)
    """Seed of the generator."""
    two_objects: float = bounded(0.5, 0, 1)
    """Share of pictures with two objects, of different classes."""
    length: tuple[float, float] = bounded((50.0, 74.0), 8, 90)
    """Length of an object, pixels of 96; times 0.85 where there are two."""
    aspect: tuple[float, float] = bounded((0.42, 0.52), 0.2, 1)
    """Width of an object over its length."""
    head_area: tuple[float, float] = bounded((0.13, 0.18), 0, 0.3)
    """Area of the head over that of the object."""
    head_missing: float = bounded(0.23, 0, 1)
    """Share of objects without a head."""
    head_saturation: tuple[float, float] = bounded((0.9, 1.0), 0, 1)
    """How strong the ring's hue is; 0 is gray."""
    own_texture: float = bounded(0.93, 0, 1)
    """Share of bodies with the texture and tint of their own class, the others have another's."""
    texture_amplitude: float = bounded(0.20, 0, 0.5)
    """Half the difference between a texture's light and dark."""
    texture_period: tuple[float, float] = bounded((6.5, 9.0), 3, 48)
    """Period of a texture, pixels of 96."""
    body_opacity: tuple[float, float] = bounded((0.28, 0.95), 0, 1)
    """Opacity of a body: at the low end its outline is fainter than the background's own variation."""
    clutter: float = bounded(0.75, 0, 1)
    """Probability of each of the two ellipses and two discs below the objects."""
    clutter_textured: float = bounded(0.1, 0, 1)
    """Share of ellipses with a class's texture; the others have a plain tint."""
    spurious_class: int = bounded(4, 0, len(CLASSES) - 1)
    """Index of the class whose backgrounds have waves."""
    waves_own: float = bounded(0.8, 0, 1)
    """Share of that class's pictures with waves."""
    waves_other: float = bounded(0.05, 0, 1)
    """Share of the other pictures with waves."""
    waves_amplitude: float = bounded(0.09, 0, 0.5)
    """Half the difference between a wave's light and dark."""
    noise: float = bounded(0.03, 0, 0.5)
    """Standard deviation of the pixel noise."""

    def check_together(self, prefix: str) -> None:
        for name in ("length", "aspect", "head_area", "head_saturation", "texture_period", "body_opacity"):
            low, high = getattr(self, name)
            if low > high:
                flag = f"--{prefix}{name}".replace("_", "-")
                raise UserError(f"{flag} is {low} {high}", field=flag, remedy="give the lower number first")


def scene(image_id: str, config: ShapesConfig) -> Scene:
    """All draws of one picture."""
    rng = generator(config.seed, "shapes", image_id)
    count = 2 if rng.random() < config.two_objects else 1
    labels = rng.permutation(len(CLASSES))[:count].tolist()
    background = _background(rng, config, config.spurious_class in labels)
    clutter = [_clutter(rng, config, disc) for disc in (False, False, True, True) if rng.random() < config.clutter]
    objects: list[Thing] = []
    for label in labels:
        objects.append(_thing(rng, config, label, 0.85 if count == 2 else 1.0, objects))
    noise = (config.noise * rng.standard_normal((config.size, config.size, 3))).astype(np.float32)
    return Scene(config.size, background, tuple(clutter), tuple(objects), noise)


def _between(rng: np.random.Generator, bounds: tuple[float, float], factor: float = 1.0) -> float:
    return float(rng.uniform(*bounds)) * factor


@lru_cache(maxsize=8)
def _smoothing(size: int, knots: int = 6) -> np.ndarray:
    """(size, knots) float32: cubic B-spline weights that turn a coarse grid into a smooth field."""
    at = np.linspace(0, knots - 1, size)[:, None] - np.arange(knots)
    near, far = 2 / 3 - at**2 + np.abs(at) ** 3 / 2, np.clip(2 - np.abs(at), 0, None) ** 3 / 6
    weights = np.where(np.abs(at) < 1, near, far)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _background(rng: np.random.Generator, config: ShapesConfig, own: bool) -> np.ndarray:
    spread = _smoothing(config.size)
    base = rng.uniform(0.38, 0.62) + rng.uniform(-0.06, 0.06, 3)
    grid = rng.uniform(-0.1, 0.1, (1, 6, 6)) + rng.uniform(-0.03, 0.03, (3, 6, 6))
    picture = (spread @ grid.astype(np.float32) @ spread.T).transpose(1, 2, 0) + base.astype(np.float32)
    angle, phase, period = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi), rng.uniform(9, 12) * config.size / 96
    if rng.random() < (config.waves_own if own else config.waves_other):
        rows, columns = np.ogrid[: config.size, : config.size]
        wave = np.sin((np.cos(angle) * columns + np.sin(angle) * rows) * (2 * np.pi / period) + phase)
        picture += config.waves_amplitude * wave[..., None].astype(np.float32) * np.array((0.3, 1.0, 0.6), np.float32)
    return picture


def _clutter(rng: np.random.Generator, config: ShapesConfig, disc: bool) -> Blob | Disc:
    unit, label = config.size / 96, int(rng.integers(len(CLASSES)))
    row, column = rng.uniform(0.05, 0.95, 2) * config.size
    if disc:
        radius, bull = _between(rng, (4.5, 8.0), unit), rng.random() < 0.5
        hue = NO_HUES[rng.integers(len(NO_HUES))] if bull else HUES[label]
        return Disc(row, column, radius, _faded(hue, _between(rng, config.head_saturation)), bool(bull))
    textured = rng.random() < config.clutter_textured
    return Blob(
        row,
        column,
        _between(rng, (0, np.pi)),
        _between(rng, (9.0, 15.0), unit),
        _between(rng, (9.0, 15.0), unit),
        label,
        config.texture_amplitude if textured else 0.0,
        _between(rng, config.body_opacity),
        _between(rng, config.texture_period, unit),
        (_between(rng, (0, 2 * np.pi)), _between(rng, (0, 2 * np.pi))),
    )


def _thing(rng: np.random.Generator, config: ShapesConfig, label: int, shrink: float, others: list[Thing]) -> Thing:
    """An object inside the frame, of 24 places the one most distant from the others."""
    unit = config.size / 96 * shrink
    a = _between(rng, config.length, unit) / 2
    b = a * _between(rng, config.aspect)
    angle = _between(rng, (0, 2 * np.pi))
    reach_row, reach_column = _reach(a, b, np.sin(angle)), _reach(a, b, np.cos(angle))
    places = rng.random((24, 2)) * (config.size - 1 - 2 * np.array((reach_row, reach_column))) + (reach_row, reach_column)
    distance = [min(np.hypot(r - t.body.row, c - t.body.column) for t in others) if others else 0.0 for r, c in places]
    row, column = places[int(np.argmax(distance))].tolist()
    own, other = rng.random() < config.own_texture, int(rng.integers(1, len(CLASSES)))
    body = Blob(
        row,
        column,
        angle,
        a,
        b,
        label if own else (label + other) % len(CLASSES),
        config.texture_amplitude,
        _between(rng, config.body_opacity),
        _between(rng, config.texture_period, config.size / 96),
        (_between(rng, (0, 2 * np.pi)), _between(rng, (0, 2 * np.pi))),
    )
    # the superellipse of exponent 2.5 covers 0.872 of its bounding box
    radius = float(np.sqrt(_between(rng, config.head_area) * 0.872 * 4 * a * b / np.pi))
    color = _faded(HUES[label], _between(rng, config.head_saturation))
    head = Disc(row + np.sin(angle) * (a - radius), column + np.cos(angle) * (a - radius), radius, color, True)
    return Thing(label, body, None if rng.random() < config.head_missing else head)


def _reach(a: float, b: float, along: float) -> float:
    """How far a superellipse of exponent 2.5 with half-axes a, b reaches along an axis of the picture (its support function)."""
    return float(((a * abs(along)) ** (5 / 3) + (b * np.sqrt(1 - along**2)) ** (5 / 3)) ** (3 / 5))


def _faded(hue: np.ndarray, saturation: float) -> tuple[float, float, float]:
    red, green, blue = (hue.mean() + saturation * (hue - hue.mean())).tolist()
    return red, green, blue


def ids(split: str, config: ShapesConfig) -> list[str]:
    return [f"{split}_{i:06d}" for i in range(getattr(config, split))]


def samples(split: str, config: ShapesConfig) -> Iterator[Sample]:
    """The pictures of a split, encoded, with their labels and both kinds of masks."""
    for image_id in ids(split, config):
        content = scene(image_id, config)
        pixels, mask, parts = draw(content)
        labels = np.zeros(len(CLASSES), np.uint8)
        labels[[thing.label for thing in content.objects]] = 1
        masks: dict[str, bytes | memoryview] = {"class": _png(mask), "parts": _png(parts)}
        yield Sample(image_id, _png(pixels), config.size, config.size, labels, "generator", masks)


def make_shapes(out: Path, config: ShapesConfig) -> Path:
    """The sample store of these settings, below the folder `out`: made once, and found again by its key."""
    config.check("shapes.")
    made = {"generator": VERSION, "settings": config.to_dict(only_key=True)}
    path = Path(out) / f"shapes-{digest(made)}"
    if path.exists():
        try:
            if open_store(path).info.made == made:
                return path
        except UserError:  # damaged: it is made again
            shutil.rmtree(path)
    info = StoreInfo(
        "shapes",
        CLASSES,
        "CC0-1.0: made pictures",
        palette(),
        ("class", "parts"),
        card={"train": config.train, "val": config.val},
        made=made,
    )
    with StoreWriter(path, info) as writer:
        for split in ("train", "val"):
            writer.split(split, [])
            for sample in samples(split, config):
                writer.add(sample, splits=(split,))
    return path


def _png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=1)
    return sink.getvalue()
