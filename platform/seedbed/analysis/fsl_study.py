"""The study of mu and sigma: its settings, and what is found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from seedbed.analysis import fsl_parameters as fsl
from seedbed.analysis.fsl_parameters import Setting, Subject
from seedbed.config import Settings, bounded, nested, setting
from seedbed.data.transforms import generator

PAPER: Setting = (2.5, 5.0)


@dataclass(frozen=True)
class Pictures(Settings):
    store: str = setting("")
    """Sample store: a folder, or an address."""
    split: str = "train"
    """Pictures that are drawn from; they need masks. HFPL: the training set."""


@dataclass(frozen=True)
class FslStudy(Settings):
    """Section S.1 of HFPL; what it does not say is marked as ours."""

    out: str = setting("runs/fsl_parameters", key=False)
    """Output folder."""
    smoke: bool = setting(False, key=False)
    """The whole study at a size that ends within two minutes."""
    explain: bool = setting(False, key=False)
    """Print whether the pictures would be looked at again, then exit."""
    tracking_uri: str = setting("", key=False)
    """MLflow tracking URI; default MLFLOW_TRACKING_URI, else a sqlite file in the output folder; none: no MLflow."""
    seed: int = bounded(0, 0, 2**31)
    """Decides which pictures are drawn."""
    draws: int = bounded(10, 1, 1000)
    """Draws of one picture per class. HFPL: 1."""
    mus: tuple[float, ...] = bounded((0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0), -20, 20)
    """Values of mu, at sigma 5."""
    sigmas: tuple[float, ...] = bounded((1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0), 0, 1e3, open_low=True)
    """Values of sigma, at mu 2.5."""
    steps: int = bounded(50, 1, 10_000)
    """Steps of gradient descent at most; masks are looked at on the way (ours)."""
    lr: float = bounded(0.5, 0, 1e3, open_low=True)
    """Its rate, for the loss times the number of positions; momentum 0.9 (ours)."""
    gate: fsl.Gate = "b"
    """What is compared: binomial posterior (ours), map over its maximum, or raw scores."""
    data: Pictures = nested(Pictures)

    def settings(self) -> list[Setting]:
        """The paper's own pair, then those of both curves, each once."""
        return list(dict.fromkeys([PAPER, *((mu, PAPER[1]) for mu in self.mus), *((PAPER[0], sigma) for sigma in self.sigmas)]))

    def kept(self) -> list[int]:
        """Steps after which the masks are scored: some 25 of them, the first and the last among them."""
        return sorted({0, *range(0, self.steps, -(-self.steps // 25)), self.steps})


@dataclass
class Found:
    """Means over pictures, every class with the same weight; percent."""

    study: FslStudy
    subjects: list[Subject]
    classes: tuple[str, ...]
    missing: tuple[str, ...]
    values: np.ndarray
    """(pictures, settings, kept steps, 2): J and F."""
    gates: dict[str, np.ndarray] = field(default_factory=dict)
    """(kept steps, 2) of the other gates, at the paper's mu and sigma."""

    @property
    def of(self) -> np.ndarray:
        return np.array([s.class_index for s in self.subjects])

    def curves(self) -> dict[Setting, dict[str, Any]]:
        mean = fsl.class_mean(self.values, self.of)
        stops = mean.mean(-1).argmax(1)
        own = self.values.mean(-1)[:, np.arange(len(stops)), stops]
        own = np.stack([own, own - own[:, [self.study.settings().index(PAPER)]]], -1)  # on the same pictures
        rng = generator(self.study.seed, "fsl-parameters", "bootstrap")
        low, high = fsl.bootstrap(own, self.of, rng)
        gain = fsl.class_mean(own, self.of)[:, 1]
        same = self.same_stop()
        out = {}
        for i, pair in enumerate(self.study.settings()):
            best = int(stops[i])
            j, f = mean[i, best]
            out[pair] = {
                "J": float(j), "F": float(f), "J_and_F": float((j + f) / 2), "low": float(low[i, 0]), "high": float(high[i, 0]),
                "steps": self.study.kept()[best], "same_stop": float(mean[i, same].mean()),
                "gain": float(gain[i]), "gain_low": float(low[i, 1]), "gain_high": float(high[i, 1]),
            }  # fmt: skip
        return out

    def same_stop(self) -> int:
        """The kept step that is best for all settings together, so that none is favored."""
        return int(fsl.class_mean(self.values, self.of).mean((0, 2)).argmax())

    def best_of_draws(self) -> tuple[Counter[float], Counter[float]]:
        """How often each mu, and each sigma, is the best one for a single draw of one picture per class, as the paper's is."""
        mus, sigmas, order = Counter[float](), Counter[float](), self.study.settings()
        for draw in range(self.study.draws):
            rows = [np.flatnonzero(self.of == index) for index in np.unique(self.of)]
            score = self.values[[r[draw % len(r)] for r in rows]].mean((0, 3)).max(1)
            mus[max((mu for mu in self.study.mus), key=lambda mu: score[order.index((mu, PAPER[1]))])] += 1
            sigmas[max((s for s in self.study.sigmas), key=lambda s: score[order.index((PAPER[0], s))])] += 1
        return mus, sigmas
