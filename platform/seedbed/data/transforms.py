"""From pixels to what a network sees. Randomness is handed in, and belongs to the image: never to a worker, an order or a clock."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from seedbed.config import Settings, bounded, nested
from seedbed.data.jitter import ColorJitter
from seedbed.types import UserError, Views

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's, RGB, of pixels scaled to [0, 1]."""

# float64 as the official code computes it, rounded once; (3, 256), so that normalising is a look-up.
_NORMALISED = ((np.arange(256)[None] / 255 - np.array(MEAN)[:, None]) / np.array(STD)[:, None]).astype(np.float32)


def generator(seed: int, stage: str, image_id: str, visit: int = 0) -> np.random.Generator:
    """The generator of one visit of a stage to an image. The same four, the same numbers, on any worker in any order."""
    digest = hashlib.sha256(json.dumps([seed, stage, image_id, visit]).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def normalise(pixels: np.ndarray) -> Tensor:
    """(h, w, 3) uint8 RGB to (3, h, w) float32: (x / 255 - MEAN) / STD in float64, rounded at the end."""
    out = np.empty((3, *pixels.shape[:2]), np.float32)
    for channel in range(3):
        np.take(_NORMALISED[channel], pixels[:, :, channel], out=out[channel], mode="clip")
    return torch.from_numpy(out)


def rescale(pixels: np.ndarray, scale: float) -> np.ndarray:
    """(h, w, 3) uint8 with both sides times `scale`, rounded half to even and at least 1; Pillow's bicubic. Scale 1 is left untouched."""
    if scale == 1.0:
        return pixels
    height, width = (max(1, int(np.round(side * scale))) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def views(
    sample_id: str,
    pixels: np.ndarray,
    scales: Sequence[float] = (1.0, 0.5, 1.5, 2.0),
    flip: bool = True,
    long_side: int | None = None,
) -> Views:
    """Every scale of a picture, each with its mirror as second row where `flip` is on.

    `long_side` shrinks pictures whose longer side exceeds it (never enlarges): scale s then means s times that size, made in one step from
    the original. The height and width of the result stay those of the picture, which is the size that maps are brought back to.
    """
    height, width = pixels.shape[:2]
    shrink = 1.0 if long_side is None else min(1.0, long_side / max(height, width))
    tensors = []
    for scale in scales:
        image = normalise(rescale(pixels, scale * shrink))
        tensors.append(torch.stack([image, image.flip(-1)]) if flip else image[None])
    return Views(sample_id, height, width, tuple(scales), tensors)


UNCHANGED = ColorJitter(0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class TrainTransform(Settings):
    """IRN's recipe: resize, mirror, random crop; normalised, with zeros (the mean color) around what is smaller than the crop."""

    resize_low: int = bounded(320, 0)
    """Smallest long side after resizing, pixels; 0 with resize_high 0: no resizing. IRN: 320."""
    resize_high: int = bounded(640, 0)
    """Largest long side after resizing, pixels, itself included. IRN: 640."""
    scales: tuple[float, ...] = bounded((), 0, open_low=True)
    """Factors of which one is drawn in place of the resizing to a long side; empty: none. Not in IRN."""
    flip: bool = True
    """Mirror every other picture. IRN: yes."""
    brightness: float = bounded(0.0, 0, 1)
    """Pixels are multiplied by a factor drawn from [1 - brightness, 1 + brightness]; 0: none. Not in IRN."""
    crop: int = bounded(512, 8)
    """Side of the square crop, pixels. IRN: 512."""
    jitter: ColorJitter = nested(lambda: UNCHANGED)
    """Random changes of color; all 0: none, and nothing is drawn for them. Not in IRN; PSA, SEAM, HFPL: 0.3, 0.3, 0.3 and hue 0.1."""

    def to_dict(self, *, only_key: bool = False) -> dict[str, Any]:
        """In the key there is no jitter where it is off: keys from before it was there stand."""
        out = super().to_dict(only_key=only_key)
        if only_key and self.jitter == UNCHANGED:
            del out["jitter"]
        return out

    def check_together(self, prefix: str) -> None:
        if self.resize_low > self.resize_high or (self.resize_low == 0) != (self.resize_high == 0):
            flag = f"--{prefix}resize-low".replace("_", "-")
            raise UserError(
                f"{flag} {self.resize_low} does not go with resize-high {self.resize_high}",
                field=flag,
                remedy="give resize-low <= resize-high, or 0 for both",
            )
        if self.scales and self.resize_high:
            flag = f"--{prefix}scales"
            raise UserError(
                f"{flag} and resizing to a long side exclude each other", field=flag, remedy="set resize-low and resize-high to 0"
            )

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> Tensor:
        """(h, w, 3) uint8 to (3, crop, crop) float32. Draws, in this order: long side or factor, mirror, brightness, jitter,
        rows, columns."""
        if self.resize_high:
            long_side = int(rng.integers(self.resize_low, self.resize_high, endpoint=True))
            pixels = rescale(pixels, long_side / max(pixels.shape[:2]))
        elif self.scales:
            pixels = rescale(pixels, self.scales[int(rng.integers(len(self.scales)))])
        mirrored = self.flip and bool(rng.random() < 0.5)
        if self.brightness:
            factor = 1 + self.brightness * (2 * rng.random() - 1)
            pixels = np.clip(np.rint(np.arange(256) * factor), 0, 255).astype(np.uint8)[pixels]
        if self.jitter != UNCHANGED:
            pixels = self.jitter(pixels, rng)
        # Normalising comes last because it is the same for every pixel: what the crop leaves out need not be normalised.
        (rows, into_rows), (columns, into_columns) = (self._window(side, rng) for side in pixels.shape[:2])
        if mirrored:
            pixels = pixels[:, ::-1]
        out = torch.zeros(3, self.crop, self.crop)
        out[:, into_rows, into_columns] = normalise(pixels[rows, columns])
        return out

    def _window(self, side: int, rng: np.random.Generator) -> tuple[slice, slice]:
        """Of one side: the part of the picture that is kept, and where in the crop it comes to lie."""
        space = side - self.crop
        offset = int(rng.integers(abs(space), endpoint=True))
        if space > 0:
            return slice(offset, offset + self.crop), slice(0, self.crop)
        return slice(0, side), slice(offset, offset + side)
