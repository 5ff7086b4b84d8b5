"""Fully connected conditional random fields (Krähenbühl and Koltun 2011), in the four forms that the official codes of the field use.

The only module that imports pydensecrf, and only when a field is evaluated. One thread, no random numbers: a picture's result depends on
the picture and the settings alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from seedbed.config import Settings, bounded
from seedbed.types import UserError

FLOOR = 1e-5
"""Scores are not taken for less than this before the logarithm, in all four codes."""


@dataclass(frozen=True)
class DenseCrf(Settings):
    """Two pairwise terms, both with a Potts model, and the number of mean-field iterations."""

    gaussian_xy: float = bounded(3.0, 0.01, 1e4)
    """Standard deviation of the smoothness term, pixels. IRN, PSA, SEAM, YudeWang: 3; deeplab-pytorch: 1."""
    gaussian_weight: float = bounded(3.0, 0, 1e4)
    """Weight of the smoothness term; 0: none. All: 3."""
    bilateral_xy: float = bounded(50.0, 0.01, 1e4)
    """Standard deviation of the appearance term, pixels. IRN: 50; PSA, SEAM: 80; deeplab-pytorch: 67; YudeWang: 32."""
    bilateral_rgb: float = bounded(5.0, 0.01, 1e4)
    """Standard deviation of the appearance term, gray levels. IRN: 5; PSA, SEAM, YudeWang: 13; deeplab-pytorch: 3."""
    bilateral_weight: float = bounded(10.0, 0, 1e4)
    """Weight of the appearance term; 0: none. IRN, PSA, SEAM, YudeWang: 10; deeplab-pytorch: 4."""
    iterations: int = bounded(10, 0, 1000)
    """Mean-field iterations. IRN, PSA, SEAM, deeplab-pytorch: 10; YudeWang: 1."""


@dataclass(frozen=True)
class LabelCrfConfig(DenseCrf):
    """The field on label maps. Defaults are IRN's."""

    certainty: float = bounded(0.7, 0, 1, open_low=True, open_high=True)
    """Probability of a pixel's label; the other labels share the rest. IRN: 0.7."""


@dataclass(frozen=True)
class ScoreCrfConfig(DenseCrf):
    """The field on scores of maps. Defaults are those of PSA, SEAM and HFPL."""

    bilateral_xy: float = bounded(80.0, 0.01, 1e4)
    """Standard deviation of the appearance term, pixels. PSA, SEAM: 80."""
    bilateral_rgb: float = bounded(13.0, 0.01, 1e4)
    """Standard deviation of the appearance term, gray levels. PSA, SEAM: 13."""


SEGMENTATION: dict[str, DenseCrf] = {
    "deeplab": DenseCrf(gaussian_xy=1.0, bilateral_xy=67.0, bilateral_rgb=3.0, bilateral_weight=4.0),
    "yudewang": DenseCrf(bilateral_xy=32.0, bilateral_rgb=13.0, iterations=1),
}
"""The two on a segmenter's probabilities: deeplab-pytorch's, and that of YudeWang's codebase and HFPL."""


def label_crf(pixels: np.ndarray, labels_hw: np.ndarray, n: int, crf: LabelCrfConfig | None = None) -> np.ndarray:
    """Label form (golden: crf). A label map with the values 0 to n - 1 on its picture -> (h, w) uint8, the likeliest labels.

    pixels (h, w, 3) uint8 RGB. The labels that a pixel does not have share 1 - certainty, so the number of labels matters.
    With one label there is nothing to decide. A label that is not below n is a ValueError.
    """
    crf = crf or LabelCrfConfig()
    if labels_hw.shape != pixels.shape[:2]:
        raise ValueError(f"labels of {labels_hw.shape} on a picture of {pixels.shape[:2]}")
    if labels_hw.size and not 0 <= int(labels_hw.min()) <= int(labels_hw.max()) < n:
        raise ValueError(f"labels from {labels_hw.min()} to {labels_hw.max()}, where there are {n}")
    if n == 1:
        return np.zeros(labels_hw.shape, np.uint8)
    energy = np.full((n, labels_hw.size), -np.log((1 - crf.certainty) / (n - 1)), np.float32)
    energy[labels_hw.ravel().astype(np.intp), np.arange(labels_hw.size)] = -np.log(crf.certainty)
    return mean_field(pixels, energy, crf).argmax(0).astype(np.uint8)


def with_background(maps_nhw: np.ndarray, alpha: float) -> np.ndarray:
    """(n, h, w) maps in [0, 1] -> (n + 1, h, w) float32, before them the background's score (1 - their maximum) ** alpha (golden: crf).

    The higher alpha, the less background. Where there is no map, all is background.
    """
    maps_nhw = np.asarray(maps_nhw, np.float32)
    strongest = maps_nhw.max(0, keepdims=True) if len(maps_nhw) else np.zeros((1, *maps_nhw.shape[1:]), np.float32)
    return np.concatenate([np.power(np.maximum(1 - strongest, 0), np.float32(alpha)), maps_nhw])


def score_crf(pixels: np.ndarray, scores_nhw: np.ndarray, crf: DenseCrf | None = None, *, scale_factor: float = 1.0) -> np.ndarray:
    """Score form (golden: crf). (n, h, w) scores with the background first, used as they are: they need not add up to 1 -> (n, h, w).

    pixels (h, w, 3) uint8 RGB. `scale_factor` divides both standard deviations in pixels, for pictures that were reduced by it.
    The result is float32 and adds up to 1 over n.
    """
    crf = crf or ScoreCrfConfig()
    if scale_factor != 1.0:
        crf = crf.replace(gaussian_xy=crf.gaussian_xy / scale_factor, bilateral_xy=crf.bilateral_xy / scale_factor)
    return mean_field(pixels, _energy(scores_nhw, pixels), crf)


def segmentation_crf(pixels: np.ndarray, prob_chw: np.ndarray, form: Literal["deeplab", "yudewang"] = "deeplab") -> np.ndarray:
    """(c, h, w) probabilities of a segmenter -> (c, h, w) float32 (golden: deeplab_v2, deeplab_v1_resnet38).

    pixels: (h, w, 3) uint8, the picture itself. The filter's last digits depend on the order of its colors: `deeplab` hands them over
    as the official code reads its pictures, blue first; hand in RGB.
    """
    if form == "deeplab":
        pixels = pixels[:, :, ::-1]
    return mean_field(pixels, _energy(prob_chw, pixels), SEGMENTATION[form])


def mean_field(pixels: np.ndarray, energy_nk: np.ndarray, crf: DenseCrf) -> np.ndarray:
    """(n, h * w) float32 unary energies on a picture (h, w, 3) uint8 -> (n, h, w) float32 marginals after so many iterations."""
    (height, width), n = pixels.shape[:2], len(energy_nk)
    if not np.isfinite(energy_nk).all():
        raise ValueError("scores of a random field are no finite numbers")
    field = _densecrf().DenseCRF2D(width, height, n)
    field.setUnaryEnergy(np.ascontiguousarray(energy_nk, np.float32))
    if crf.gaussian_weight:
        field.addPairwiseGaussian(sxy=crf.gaussian_xy, compat=crf.gaussian_weight)
    if crf.bilateral_weight:
        picture = np.ascontiguousarray(pixels, np.uint8)
        field.addPairwiseBilateral(sxy=crf.bilateral_xy, srgb=crf.bilateral_rgb, rgbim=picture, compat=crf.bilateral_weight)
    return np.array(field.inference(crf.iterations), np.float32).reshape(n, height, width)


def _energy(scores_nhw: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    if scores_nhw.shape[1:] != pixels.shape[:2]:
        raise ValueError(f"scores of {scores_nhw.shape[1:]} on a picture of {pixels.shape[:2]}")
    return -np.log(np.clip(scores_nhw.reshape(len(scores_nhw), -1), FLOOR, 1.0))


def _densecrf() -> Any:
    try:
        from pydensecrf import densecrf
    except ImportError as error:
        raise UserError(
            "pydensecrf is not installed, which random fields are made with",
            field="pydensecrf",
            remedy="make env installs it (it needs a C++ compiler); or choose a refinement without a random field",
        ) from error
    return densecrf
