"""Shifts of hue, saturation and value, byte by byte as OpenCV computes them."""

from __future__ import annotations

import numpy as np

PLACES = 12
"""Binary places of the tables of quotients."""
_VALUES = np.arange(1, 256)
_BY_VALUE = np.concatenate([[0], np.rint((255 << PLACES) / _VALUES)]).astype(np.int64)
_BY_SPREAD = np.concatenate([[0], np.rint((180 << PLACES) / (6 * _VALUES))]).astype(np.int64)
_HALF = 1 << (PLACES - 1)
VECTOR = 32
_TONES = np.array([[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]])
"""Which tone red, green and blue have in each sector of the hue."""


def shift_hsv(pixels: np.ndarray, shift: tuple[int, int, int]) -> np.ndarray:
    """(h, w, 3) uint8 RGB with its hue (0 to 179, modulo 180), saturation and value (clipped to 0..255) shifted."""
    hsv = to_hsv(pixels).astype(np.int64)
    hue = (hsv[..., 0] + shift[0]) % 180
    rest = np.clip(hsv[..., 1:] + np.array(shift[1:]), 0, 255)
    return from_hsv(np.concatenate([hue[..., None], rest], -1).astype(np.uint8))


def to_hsv(pixels: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 RGB to hue in units of two degrees, saturation and value; uint8."""
    red, green, blue = (pixels[..., i].astype(np.int64) for i in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    saturation = (spread * _BY_VALUE[value] + _HALF) >> PLACES
    sector = np.where(value == red, green - blue, np.where(value == green, blue - red + 2 * spread, red - green + 4 * spread))
    hue = (sector * _BY_SPREAD[spread] + _HALF) >> PLACES
    return np.stack([np.where(hue < 0, hue + 180, hue), saturation, value], -1).astype(np.uint8)


def from_hsv(hsv: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 back to RGB, in float32 with fused multiply-adds.

    OpenCV truncates where it works on whole vectors (32 pixels of a row with AVX2, as on the machines of the published numbers) and rounds
    half to even in what is left of the row.
    """
    hue = hsv[..., 0].astype(np.float32) * np.float32(6 / 180)
    saturation, value = (hsv[..., i].astype(np.float32) * np.float32(1 / 255) for i in (1, 2))
    sector = np.floor(hue)
    within = hue - sector
    falling, rising = (value * _fused(saturation, x) for x in (within, 1 - within))
    tones = np.stack([value, value * (1 - saturation), falling, rising]).reshape(4, -1) * np.float32(255)
    turn = sector.astype(np.int64).ravel() % 6
    place = np.arange(turn.size)
    out = np.stack([tones[_TONES[turn, i], place] for i in range(3)], -1).reshape(hsv.shape)
    whole = hsv.shape[1] // VECTOR * VECTOR
    out[:, whole:] = np.rint(out[:, whole:])
    return np.clip(out, 0, 255).astype(np.uint8)


def _fused(saturation: np.ndarray, part: np.ndarray) -> np.ndarray:
    """1 - saturation * part, rounded once."""
    return (1 - saturation.astype(np.float64) * part).astype(np.float32)
