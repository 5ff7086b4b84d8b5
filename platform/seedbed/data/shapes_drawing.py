"""Drawing of the shapes set: a scene, in which every draw has been made, to its picture and its masks. No randomness, no settings."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

TINTS = np.array([(0.64, 0.53, 0.36), (0.36, 0.50, 0.64)])
TEXTURES = 3
"""Stripes, dots, checker. Class c's body has texture c % 3 and tint c // 3."""
CORE = 0.95
HEAD, BODY = 1, 2
PARTS = ("heads", "bodies", "clutter")


@dataclass(frozen=True)
class Blob:
    """A body, or an ellipse of the clutter. Lengths in pixels."""

    row: float
    column: float
    angle: float
    half_length: float
    half_width: float
    kind: int
    """Class whose tint (and, if `amplitude` is above 0, texture) it has."""
    amplitude: float
    opacity: float
    period: float
    phase: tuple[float, float]


@dataclass(frozen=True)
class Disc:
    """A head, or a disc of the clutter: a ring, with a bright core or plain."""

    row: float
    column: float
    radius: float
    color: tuple[float, float, float]
    core: bool


@dataclass(frozen=True)
class Thing:
    label: int
    body: Blob
    head: Disc | None


@dataclass(frozen=True)
class Scene:
    """Everything that a picture shows, before it is drawn."""

    size: int
    background: np.ndarray
    """(size, size, 3) float32, with waves."""
    clutter: tuple[Blob | Disc, ...]
    objects: tuple[Thing, ...]
    noise: np.ndarray


def draw(content: Scene, show: Collection[str] = PARTS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(h, w, 3) uint8 picture, (h, w) uint8 class mask (0 background, class index + 1) and (h, w) uint8 parts (0 none, 1 head, 2 body).

    `show` leaves parts out of the picture; the masks always tell where everything is.
    """
    picture = content.background.copy()
    mask, parts = np.zeros((2, content.size, content.size), np.uint8)
    for item in content.clutter if "clutter" in show else ():
        _paint(picture, item)
    for thing in content.objects:
        where, inside = _paint(picture if "bodies" in show else None, thing.body, content.size)
        mask[where][inside], parts[where][inside] = thing.label + 1, BODY
        if thing.head is not None:
            where, inside = _paint(picture if "heads" in show else None, thing.head, content.size)
            mask[where][inside], parts[where][inside] = thing.label + 1, HEAD
    pixels = np.clip((picture + content.noise) * 255.0 + 0.5, 0, 255).astype(np.uint8)
    return pixels, mask, parts


def head_only(content: Scene) -> np.ndarray:
    """The picture without bodies."""
    return draw(content, ("heads", "clutter"))[0]


def body_only(content: Scene) -> np.ndarray:
    """The picture without heads."""
    return draw(content, ("bodies", "clutter"))[0]


def background_only(content: Scene) -> np.ndarray:
    """The picture without objects."""
    return draw(content, ("clutter",))[0]


def _paint(picture: np.ndarray | None, item: Blob | Disc, size: int = 0) -> tuple[tuple[slice, slice], np.ndarray]:
    """Draws into the picture with soft edges; returns the box it touched and, within it, the pixels that belong to the item."""
    size = size if picture is None else picture.shape[0]
    reach = (item.radius if isinstance(item, Disc) else max(item.half_length, item.half_width) * 1.15) + 2
    top, left = max(int(item.row - reach), 0), max(int(item.column - reach), 0)
    where = slice(top, int(item.row + reach) + 1), slice(left, int(item.column + reach) + 1)
    rows = np.arange(top, min(where[0].stop, size), dtype=np.float32)[:, None] - item.row
    columns = np.arange(left, min(where[1].stop, size), dtype=np.float32)[None] - item.column
    color: np.ndarray
    if isinstance(item, Disc):
        radius = np.sqrt(rows**2 + columns**2)
        cover = np.clip(item.radius - radius + 0.5, 0, 1)
        core = np.clip(0.5 * item.radius - radius + 0.5, 0, 1)[..., None] if item.core else 0.0
        color = np.asarray(item.color) * (1 - core) + CORE * core
        opacity = 1.0
    else:
        along = np.cos(item.angle) * columns + np.sin(item.angle) * rows
        across = np.cos(item.angle) * rows - np.sin(item.angle) * columns
        norm = (np.abs(along / item.half_length) ** 2.5 + np.abs(across / item.half_width) ** 2.5) ** 0.4
        radius = np.sqrt(along**2 + across**2) + 1e-3
        cover = np.clip(radius / (norm + 1e-3 / item.half_length) - radius + 0.5, 0, 1)  # distance from the outline along the radius
        color = TINTS[item.kind // TEXTURES] + item.amplitude * _texture(item, along, across)[..., None]
        opacity = item.opacity
    if picture is not None:
        weight = (opacity * cover)[..., None]
        picture[where] = picture[where] * (1 - weight) + color * weight
    return where, cover >= 0.5


def _texture(item: Blob, along: np.ndarray, across: np.ndarray) -> np.ndarray:
    """-1..1, with soft transitions about a pixel wide."""
    turn = 2 * np.pi / item.period
    u, v = np.sin(along * turn + item.phase[0]), np.sin(across * turn + item.phase[1])
    steep = item.period / np.pi
    kind = item.kind % TEXTURES
    if kind == 0:
        return np.clip(steep * u, -1, 1)
    if kind == 1:
        return np.clip(steep * (u + v - 0.6), -1, 1)
    return np.clip(steep * u, -1, 1) * np.clip(steep * v, -1, 1)
