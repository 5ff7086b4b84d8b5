"""How mu and sigma of the feature similarity loss were found (Jonnarth et al., WACV 2024, section S.1): everything but files and figures.

A hand-made map of a single object is moved by the loss alone, without a network; then it is seen how well it fits the object.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from seedbed.addons.fsl import max_normalised
from seedbed.addons.isl import binomial_posterior
from seedbed.addons.pairs import color_distance, dissimilarity, spatial_weight
from seedbed.metrics.contour import boundary_f
from seedbed.metrics.region import jaccard
from seedbed.types import IGNORE, Sample

Gate = Literal["b", "r", "s"]
Setting = tuple[float, float]
"""mu, sigma."""

MOMENTUM = 0.9
LEVEL = 0.95
"""Of the bootstrap intervals."""


@dataclass(frozen=True)
class Subject:
    """A picture of a single object at a tenth of its size."""

    id: str
    class_index: int
    colors: Tensor
    """(3, h, w) in [0, 1]."""
    object: np.ndarray
    """(h, w) bool."""
    void: np.ndarray
    """(h, w) bool: not labelled."""

    def fit(self, mask: np.ndarray) -> tuple[float, float]:
        """J and F of a (h, w) mask, percent. J without void; for F void is background, as HFPL's score has it."""
        return 100 * jaccard(mask, self.object, self.void), 100 * boundary_f(mask, self.object)


def single_object(mask: np.ndarray) -> int | None:
    """The class index of a picture whose mask is one piece of one class, else None; IGNORE belongs to nothing and joins nothing."""
    values = np.unique(mask)
    values = values[(values > 0) & (values != IGNORE)]
    if len(values) != 1 or pieces(mask == values[0]) != 1:
        return None
    return int(values[0]) - 1


def pieces(mask: np.ndarray) -> int:
    """Connected pieces of a (h, w) bool mask, across corners too: runs of a row, joined with those that they touch in the row before."""
    parent: list[int] = []

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = run = parent[parent[run]]
        return run

    before: list[tuple[int, int, int]] = []
    for row in mask:
        edges = np.flatnonzero(np.diff(row, prepend=False, append=False)).tolist()
        now = []
        for first, end in zip(edges[::2], edges[1::2], strict=True):
            parent.append(len(parent))
            now.append((first, end, len(parent) - 1))
            for other_first, other_end, other in before:
                if other_first <= end and first <= other_end:
                    parent[root(other)] = root(now[-1][2])
        before = now
    return len({root(run) for run in range(len(parent))})


def subject(sample: Sample, factor: float = 0.1) -> Subject | None:
    """None for a picture without mask, or with another number of objects than one, or whose object is lost when it is made smaller."""
    mask = sample.mask("class")
    index = None if mask is None else single_object(mask)
    if mask is None or index is None:
        return None
    size = tuple(max(2, round(side * factor)) for side in reversed(mask.shape))
    pixels = np.array(Image.fromarray(sample.pixels()).resize(size, Image.Resampling.BOX))
    small = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    there = small == index + 1
    if there.sum() < 4 or min(np.ptp(places) for places in np.nonzero(there)) < 1:
        return None
    colors = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    return Subject(sample.id, index, colors, there, small == IGNORE)


def gaussian_scores(mask: np.ndarray) -> Tensor:
    """Eq. (24), Jonnarth et al. 2024. 2 G - 1, (h, w): G has mean and variances of the mask's positions, and 1 at its height."""
    places = np.nonzero(mask)
    grid = np.mgrid[: mask.shape[0], : mask.shape[1]]
    exponent = sum((axis - p.mean()) ** 2 / (2 * p.var()) for axis, p in zip(grid, places, strict=True))
    return torch.from_numpy(2 * np.exp(-exponent) - 1).float()


def pair_weights(colors: Tensor, settings: Sequence[Setting]) -> dict[Setting, Tensor]:
    """w f of all pairs of positions, (h w, h w), for every setting: small pictures, many steps, so the matrix pays."""
    h, w = colors.shape[1:]
    flat = colors.flatten(1)
    delta = color_distance(flat[:, :, None], flat[:, None, :])
    rows, columns = (v.flatten().float() for v in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    squares = (rows[:, None] - rows).square() + (columns[:, None] - columns).square()
    weights = {sigma: spatial_weight(squares, sigma) for sigma in {sigma for _, sigma in settings}}
    unlike = {mu: dissimilarity(delta, mu) for mu in {mu for mu, _ in settings}}
    return {(mu, sigma): weights[sigma] * unlike[mu] for mu, sigma in settings}


def judged(scores_hw: Tensor, gate: Gate) -> Tensor:
    if gate == "b":
        return binomial_posterior(scores_hw)
    return max_normalised(scores_hw[None, None], "paper")[0, 0] if gate == "r" else scores_hw


def optimised(scores_hw: Tensor, weights: Tensor, gate: Gate, steps: int, lr: float, kept: Sequence[int]) -> list[np.ndarray]:
    """Masks (scores above zero) after the steps `kept`. Gradient descent with momentum on Eq. (9) times h w, over the scores alone."""
    scores, velocity = scores_hw.clone(), torch.zeros_like(scores_hw)
    row_sums, masks = weights.sum(1), {0: (scores > 0).numpy()}
    for step in range(1, steps + 1):
        leaf = scores.detach().requires_grad_()
        y = judged(leaf, gate)
        flat = y.detach().flatten()
        slope = -2 * (row_sums * flat - weights @ flat).view_as(y)  # of the quadratic form, see addons/pairs.py
        (gradient,) = torch.autograd.grad(y, leaf, slope)
        velocity = MOMENTUM * velocity + gradient
        scores = leaf.detach() - lr * velocity
        masks[step] = (scores > 0).numpy()
    return [masks[step] for step in kept]


def fits(of: Subject, settings: Sequence[Setting], gate: Gate, steps: int, lr: float, kept: Sequence[int]) -> np.ndarray:
    """(settings, kept steps, 2): J and F, percent, of one picture."""
    start = gaussian_scores(of.object)
    found = [[of.fit(m) for m in optimised(start, a, gate, steps, lr, kept)] for a in pair_weights(of.colors, settings).values()]
    return np.array(found)


def class_mean(values: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(n, ...) values of pictures -> their mean, every class with the same weight."""
    return np.mean([values[classes == index].mean(0) for index in np.unique(classes)], axis=0)


def bootstrap(values: np.ndarray, classes: np.ndarray, rng: np.random.Generator, times: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the interval of `class_mean`: pictures are drawn again within their class."""
    found = np.zeros((times, *values.shape[1:]))
    names = np.unique(classes)
    for index in names:
        mine = values[classes == index]
        found += mine[rng.integers(len(mine), size=(times, len(mine)))].mean(1) / len(names)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def statements(mu: float = 2.5, sigma: float = 5.0) -> Mapping[str, float]:
    """What S.1 says of its setting, computed: share of the weight within one and two sigma, over the plane and on the grid of positions;
    and the color distance at which the dissimilarity changes its sign, found by halving."""
    reach = math.ceil(12 * sigma)
    axis = torch.arange(-reach, reach + 1, dtype=torch.float64)
    squares = axis[:, None].square() + axis.square()
    weight = spatial_weight(squares, sigma)
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if float(dissimilarity(torch.tensor(middle, dtype=torch.float64), mu)) < 0 else (low, middle)
    return {
        "within sigma": 1 - math.exp(-0.5),
        "within sigma, grid": float(weight[squares <= sigma**2].sum() / weight.sum()),
        "within 2 sigma": 1 - math.exp(-2),
        "within 2 sigma, grid": float(weight[squares <= (2 * sigma) ** 2].sum() / weight.sum()),
        "delta": (low + high) / 2,
    }
