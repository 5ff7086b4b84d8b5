"""Training crops of a picture and its label map, as deeplab-pytorch and YudeWang's codebase make them; and what a network sees.

A recipe draws first (from the picture's own generator) and then applies, so that the draws of the official code can be put in their place.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from seedbed.data.transforms import MEAN, STD
from seedbed.segment.hue import shift_hsv
from seedbed.segment.resample import cubic, linear, nearest, pillow_nearest, sampled, sampled_bytes
from seedbed.segment.settings import SegmenterConfig
from seedbed.types import IGNORE

MEAN_BGR = (104.008, 116.669, 122.675)
"""Caffe's mean, of pixels from 0 to 255."""
Input = Literal["bgr", "rgb"]


class Augmentation(Protocol):
    """A picture (h, w, 3) uint8 RGB and its label map (h, w) uint8 to a crop: (3, crop, crop) float32 and (crop, crop) uint8."""

    def __call__(self, pixels: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]: ...


def augmentation(config: SegmenterConfig, kind: Input) -> Augmentation:
    """By the settings, for a network that sees `kind`."""
    config = config.resolved()
    if config.augmentation == "yudewang":
        return YudeWangCrop(config.crop, (min(config.scales), max(config.scales)), config.flip, kind)
    return DeepLabCrop(config.crop, config.scales, config.flip, kind)


def network_input(pixels: np.ndarray, kind: Input) -> np.ndarray:
    """(h, w, 3) RGB of 0 to 255, bytes or float32, to (3, h, w) float32: BGR less the mean, or (x / 255 - MEAN) / STD in float32."""
    out = np.empty((3, *pixels.shape[:2]), np.float32)
    for channel in range(3):
        values = pixels[:, :, 2 - channel if kind == "bgr" else channel]
        if values.dtype == np.uint8:
            np.take(_table(kind, channel), values, out=out[channel], mode="clip")
        else:
            out[channel] = _normalised(values, kind, channel)
    return out


def _normalised(values: np.ndarray, kind: Input, channel: int) -> np.ndarray:
    if kind == "bgr":
        return values - np.float64(MEAN_BGR[channel])  # in float64, rounded once
    return (values.astype(np.float32) / np.float32(255) - np.float32(MEAN[channel])) / np.float32(STD[channel])


@functools.cache
def _table(kind: Input, channel: int) -> np.ndarray:
    """What each byte becomes."""
    return _normalised(np.arange(256), kind, channel).astype(np.float32)


@dataclass(frozen=True)
class DeepLabDraws:
    scale: float
    top: int
    left: int
    flip: bool


@dataclass(frozen=True)
class DeepLabCrop:
    """deeplab-pytorch's: one of the scales (bilinear; labels Pillow's nearest), padded below and to the right, crop, mirror."""

    crop: int
    scales: tuple[float, ...]
    flip: bool
    kind: Input = "bgr"

    def __call__(self, pixels: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        return self.apply(pixels, labels, self.draw(rng, pixels.shape[:2]))

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> DeepLabDraws:
        scale = self.scales[int(rng.integers(len(self.scales)))]
        height, width = self.size(shape, scale)
        top = int(rng.integers(max(height - self.crop, 0), endpoint=True))
        left = int(rng.integers(max(width - self.crop, 0), endpoint=True))
        return DeepLabDraws(scale, top, left, self.flip and bool(rng.random() < 0.5))

    @staticmethod
    def size(shape: tuple[int, ...], scale: float) -> tuple[int, int]:
        return max(1, int(shape[0] * scale)), max(1, int(shape[1] * scale))

    def apply(self, pixels: np.ndarray, labels: np.ndarray, draws: DeepLabDraws) -> tuple[Tensor, Tensor]:
        height, width = self.size(pixels.shape, draws.scale)
        rows, columns = slice(draws.top, min(draws.top + self.crop, height)), slice(draws.left, min(draws.left + self.crop, width))
        if (height, width) == pixels.shape[:2]:
            part = pixels[rows, columns]
        else:
            down, across = linear(pixels.shape[0], height), linear(pixels.shape[1], width)
            part = sampled(pixels, down.window(rows.start, rows.stop), across.window(columns.start, columns.stop))
        image = np.zeros((3, self.crop, self.crop), np.float32)  # the mean color, once the mean is taken off
        image[:, : part.shape[0], : part.shape[1]] = network_input(part, self.kind)
        target = np.full((self.crop, self.crop), IGNORE, np.uint8)
        picked = labels[pillow_nearest(labels.shape[0], height)[rows]][:, pillow_nearest(labels.shape[1], width)[columns]]
        target[: picked.shape[0], : picked.shape[1]] = picked
        return _mirrored(image, target, draws.flip)


@dataclass(frozen=True)
class YudeWangDraws:
    hsv: tuple[int, int, int]
    flip: bool
    scale: float
    left: int
    top: int
    """Start in the picture where that is larger than the crop, else its place in the crop."""


@dataclass(frozen=True)
class YudeWangCrop:
    """YudeWang's codebase: hue, saturation and value shifted, mirror, any scale (cubic; labels nearest), crop or placed at random."""

    crop: int
    scales: tuple[float, float]
    flip: bool
    kind: Input = "rgb"
    hsv: int = 10

    def __call__(self, pixels: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        return self.apply(pixels, labels, self.draw(rng, pixels.shape[:2]))

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> YudeWangDraws:
        hue, saturation, value = (int(v) for v in rng.integers(-self.hsv, self.hsv, 3, endpoint=True))
        flip = self.flip and bool(rng.random() < 0.5)
        low, high = self.scales
        scale = float(rng.random()) * (high - low) + low
        height, width = scaled_size(shape, scale)
        left = int(rng.integers(abs(width - self.crop), endpoint=True))
        top = int(rng.integers(abs(height - self.crop), endpoint=True))
        return YudeWangDraws((hue, saturation, value), flip, scale, left, top)

    def apply(self, pixels: np.ndarray, labels: np.ndarray, draws: YudeWangDraws) -> tuple[Tensor, Tensor]:
        pixels = shift_hsv(pixels, draws.hsv)
        if draws.flip:
            pixels, labels = pixels[:, ::-1], labels[:, ::-1]
        height, width = scaled_size(pixels.shape, draws.scale)
        (rows, into_rows), (columns, into_columns) = self._window(height, draws.top), self._window(width, draws.left)
        step = 1 / draws.scale
        down, across = cubic(pixels.shape[0], height, step), cubic(pixels.shape[1], width, step)
        part = sampled_bytes(pixels, down.window(rows.start, rows.stop), across.window(columns.start, columns.stop))
        image = np.zeros((3, self.crop, self.crop), np.float32)
        image[:, into_rows, into_columns] = network_input(part, self.kind)
        target = np.full((self.crop, self.crop), IGNORE, np.uint8)
        by_row, by_column = nearest(labels.shape[0], height, step)[rows], nearest(labels.shape[1], width, step)[columns]
        target[into_rows, into_columns] = labels[by_row][:, by_column]
        return _mirrored(image, target, False)

    def _window(self, side: int, start: int) -> tuple[slice, slice]:
        """Of one side: the part of the picture that is kept, and where in the crop it comes to lie."""
        if side > self.crop:
            return slice(start, start + self.crop), slice(0, self.crop)
        return slice(0, side), slice(start, start + side)


def scaled_size(shape: tuple[int, ...], scale: float) -> tuple[int, int]:
    """Sides times the factor, rounded half to even, as OpenCV does; at least 1."""
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _mirrored(image: np.ndarray, target: np.ndarray, flip: bool) -> tuple[Tensor, Tensor]:
    if flip:
        image, target = image[:, :, ::-1], target[:, ::-1]
    return torch.from_numpy(np.ascontiguousarray(image)), torch.from_numpy(np.ascontiguousarray(target))
