"""What methods share about localisation maps: from the class scores of scaled and mirrored views to the maps of the field."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.config import Settings, setting
from seedbed.models.passes import PASS_PIXELS, fitting_groups
from seedbed.types import Maps, UserError, Views

Precision = Literal["fp32", "mixed", "bf16"]

TINY = 1e-5
"""Added to a class maximum before it divides, as in IRN."""


@dataclass(frozen=True)
class CamConfig(Settings):
    """The views of a picture that every method's maps are made from."""

    scales: tuple[float, ...] = setting((1.0, 0.5, 1.5, 2.0))
    """Scales a picture is looked at, factor of its size; the first stands for the picture itself. IRN and RIB: 1 0.5 1.5 2."""
    flip: bool = setting(True)
    """Look at the mirrored picture too, and add both maps. IRN and RIB: yes."""
    long_side: int = setting(0)
    """Reduce pictures whose long side is above this many pixels before anything else; 0: never, as in the official codes."""

    def check_together(self, prefix: str) -> None:
        flag = f"--{prefix}scales"
        if 1.0 not in self.scales or len(set(self.scales)) != len(self.scales):
            raise UserError(f"{flag} is {self.scales}", field=flag, remedy="give different scales, 1.0 among them")
        if not all(0.05 <= s <= 8 for s in self.scales):
            raise UserError(f"{flag} is {self.scales}", field=flag, remedy="give scales from 0.05 to 8")
        if self.long_side < 0 or 0 < self.long_side < 16:
            raise UserError(f"--{prefix}long-side is {self.long_side}", field=f"--{prefix}long-side", remedy="give 0 or at least 16 pixels")


def view_groups(scales: tuple[float, ...], views: list[Tensor]) -> list[list[int]]:
    """Which views share a pass, so that RIB's first maps are CAM's to the bit. Scale 1 comes first: the area guard looks at it."""
    order = sorted(range(len(views)), key=lambda i: scales[i] != 1.0)
    groups = fitting_groups([views[i][:, 0].numel() for i in order], views[0].device, PASS_PIXELS)
    return [[order[j] for j in group] for group in groups]


def merge_mirror(scores_rchw: Tensor) -> Tensor:
    """(r, c, h, w) scores of a picture and, if r is 2, of its mirror -> (c, h, w): rectified, mirrored back, added up."""
    rectified = scores_rchw.relu()
    return rectified[0] if len(rectified) == 1 else rectified[0] + rectified[1].flip(-1)


def normalised(maps_nhw: Tensor) -> Tensor:
    """Eq. (2), Lee et al. 2021. (n, h, w) non-negative maps -> each over its own maximum, in [0, 1); 1e-5 guards a map of zeros."""
    return maps_nhw / (maps_nhw.amax((-2, -1), keepdim=True) + TINY)


def range_normalized(sums_nhw: np.ndarray) -> np.ndarray:
    """SEAM's normalisation of maps summed over scales and mirrors (golden: crf, `norm_cam`), (n, h, w) float32.

    Negative values to 0, values below minimum + 1e-5 to 0, then (x - minimum - 1e-5) / (maximum - minimum + 1e-5); minimum and maximum are
    taken before the second step, so that the smallest values come out slightly negative.
    """
    rectified = np.maximum(np.asarray(sums_nhw, np.float32), 0)
    low, high = (f((1, 2), keepdims=True) for f in (rectified.min, rectified.max))
    rectified[rectified < low + 1e-5] = 0
    return (rectified - low - 1e-5) / (high - low + 1e-5)


def max_normalised(scores_nchw: Tensor) -> Tensor:
    """SEAM's and HFPL's max-normalized map (golden: seam, isl_fsl): (n, c, h, w) scores -> [0, 1), the gradient passes the extremes too.

    r = ReLU(s); ReLU(r - min - 1e-5) / (max - min + 1e-5), minimum and maximum per picture and class.
    """
    positive = scores_nchw.relu()
    low, high = positive.amin((2, 3), keepdim=True), positive.amax((2, 3), keepdim=True)
    return (positive - low - TINY).relu() / (high - low + TINY)


def strided_cam(maps: Maps) -> np.ndarray:
    """(n, ceil(h / 4), ceil(w / 4)) float32 in [0, 1): what IRN saves as `cam`. In SEAM's form, which has no such map, `high_res` at that
    size, and nothing below 0."""
    if maps.inputs:
        return np.maximum(_seam_form(maps, (-(-maps.height // 4), -(-maps.width // 4))), 0)
    return normalised(strided_sum(_tensors(maps), (maps.height, maps.width))).numpy()


def high_res(maps: Maps) -> np.ndarray:
    """(n, h, w) float32 in [0, 1): what IRN saves as `high_res`, enlarged to the next multiple of 16 and cropped.

    In SEAM's form what it saves: every scale enlarged to its input (corners aligned), then to the picture (not aligned), and the sum
    normalized over its range; values can be slightly negative.
    """
    h, w = maps.height, maps.width
    if maps.inputs:
        return _seam_form(maps, (h, w))
    return normalised(_resized_sum(_tensors(maps), (-(-h // 16) * 16, -(-w // 16) * 16))[:, :h, :w]).numpy()


def _seam_form(maps: Maps, size: tuple[int, int]) -> np.ndarray:
    if not len(maps.classes):
        return np.zeros((0, *size), np.float32)
    pairs = zip(_tensors(maps), maps.inputs, strict=True)
    first = [F.interpolate(sums[None], seen, mode="bilinear", align_corners=True)[0] for sums, seen in pairs]
    return range_normalized(_resized_sum(first, size).numpy())


def snapshot_maps(maps: Maps, k: int) -> Maps:
    """The maps as they would have been saved after step k (from 0): the sum of the snapshots of the steps 0 to k."""
    if maps.snapshots is None:
        raise UserError(
            f"the maps of {maps.id} have no snapshots", field="--rib.snapshots", remedy="run the maps stage with --rib.snapshots"
        )
    sums = [scale.copy() for scale in maps.snapshots[0]]
    for step in maps.snapshots[1 : k + 1]:
        for total, scale in zip(sums, step, strict=True):
            total += scale
    steps = min(k + 1, len(maps.snapshots))
    ended = maps.ended if steps == maps.steps else "steps"
    return Maps(maps.id, maps.height, maps.width, maps.classes, maps.scales, sums, steps, ended, maps.log, inputs=maps.inputs)


def make_maps(views: Views, classes: np.ndarray, sums: list[Tensor], **more: object) -> Maps:
    """Maps of one picture from per-scale sums (n, h_s, w_s) on any device."""
    arrays = [s.detach().float().cpu().contiguous().numpy() for s in sums]
    return Maps(views.id, views.height, views.width, classes, tuple(views.scales), arrays, **more)  # type: ignore[arg-type]


@contextmanager
def fixed_statistics(model: nn.Module) -> Iterator[None]:
    """The model in inference mode (dropout off, running statistics used and kept), and then as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def strided_sum(sums: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Per-scale maps (n, h_s, w_s) of a picture of this size -> their sum at stride 4, (n, ceil(h / 4), ceil(w / 4))."""
    return _resized_sum(sums, (-(-size[0] // 4), -(-size[1] // 4)))


def _resized_sum(sums: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Resized (bilinear, no corner alignment) to one size and added up, in the order of the scales."""
    if not len(sums[0]):
        return sums[0].new_zeros((0, *size))
    return torch.stack([F.interpolate(s[None], size, mode="bilinear", align_corners=False)[0] for s in sums]).sum(0)


def _tensors(maps: Maps) -> list[Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(s)) for s in maps.sums]
