"""Random changes of color, as PSA, SEAM and HFPL train with (torchvision's ColorJitter on Pillow pictures, without torchvision)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

from seedbed.config import Settings, bounded

STEPS = ("brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True)
class ColorJitter(Settings):
    """Factors are drawn from [1 - value, 1 + value]; the four changes are made in random order."""

    brightness: float = bounded(0.3, 0, 1)
    """Brightness; 0: unchanged. PSA, SEAM, HFPL: 0.3."""
    contrast: float = bounded(0.3, 0, 1)
    """Contrast. PSA, SEAM, HFPL: 0.3."""
    saturation: float = bounded(0.3, 0, 1)
    """Saturation. PSA, SEAM, HFPL: 0.3."""
    hue: float = bounded(0.1, 0, 0.5)
    """Hue is turned by a share of the circle drawn from [-hue, hue]. PSA, SEAM, HFPL: 0.1."""

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(h, w, 3) uint8 RGB, both. Draws, in this order: the order, then all four amounts, whatever the settings."""
        order = rng.permutation(len(STEPS))
        amounts = rng.uniform(-1, 1, len(STEPS)) * [getattr(self, name) for name in STEPS]
        picture = Image.fromarray(pixels)
        for step in order:
            if amounts[step]:
                picture = changed(picture, STEPS[step], float(amounts[step]))
        return np.asarray(picture)


def changed(picture: Image.Image, what: str, amount: float) -> Image.Image:
    """One change; brightness, contrast and saturation times 1 + amount, hue turned by the amount of the circle."""
    if what == "hue":
        hue, saturation, value = picture.convert("HSV").split()
        turned = np.asarray(hue) + np.uint8(int(amount * 255) % 256)  # wraps around
        return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
    tool = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}[what]
    return tool(picture).enhance(1 + amount)
