"""The study of mu and sigma: which pictures, the loop over settings, and what is found."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch

from seedbed.analysis import fsl_parameters as fsl
from seedbed.analysis.fsl_parameters import Setting, Subject
from seedbed.config import Settings, bounded, nested, setting
from seedbed.data.store import Store, open_store
from seedbed.data.transforms import generator
from seedbed.types import UserError

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


def command(default: FslStudy, smoke: Mapping[str, Any], arguments: Sequence[str] | None = None) -> FslStudy:
    """The study as the command line asks for it, checked."""
    import tyro

    import __main__

    given = list(sys.argv[1:] if arguments is None else arguments)
    about = (__main__.__doc__ or "").strip()
    study = tyro.cli(FslStudy, default=default, args=given, description=about)
    if study.smoke:
        study = tyro.cli(FslStudy, default=default.replace(**smoke), args=given, description=about)
    study.check()
    for name, values in (("mus", study.mus), ("sigmas", study.sigmas)):
        if not values:
            raise UserError(f"--{name} is empty", field=f"--{name}", remedy="give at least one value")
    return study


def drawn(study: FslStudy, store: Store) -> list[Subject]:
    """Of every class so many single-object pictures as there are draws, or as there are, in the order in which they are drawn."""
    ids = store.ids(study.data.split)
    if not store.has_mask(ids).any():
        raise UserError(f"the pictures of {study.data.split} have no masks", field="--data.split", remedy="name a split with masks")
    labels = store.labels(ids)
    found: list[Subject] = []
    for index in range(labels.shape[1]):
        alone = [ident for ident, row in zip(ids, labels, strict=True) if row[index] and row.sum() == 1]
        order = generator(study.seed, "fsl-parameters", store.info.classes[index]).permutation(len(alone))
        mine: list[Subject] = []
        for i in order:
            candidate = fsl.subject(store[alone[i]])
            if candidate is not None and candidate.class_index == index:
                mine.append(candidate)
            if len(mine) == study.draws:
                break
        found += mine
    if not found:
        raise UserError("no picture shows a single object", field="--data.split", remedy="name a split that has some")
    return found


def run(study: FslStudy) -> Found:
    """Draws, optimises, scores; prints the table, writes numbers, figure and page to the output folder."""
    from seedbed.analysis.fsl_page import told, write

    if not study.data.store:
        remedy = "python datasets/voc2012/prepare.py --devkit VOCdevkit --out STORE makes one"
        raise UserError("no sample store is named", field="--data.store", remedy=remedy)
    torch.set_num_threads(1)  # more of them change the last bits
    start, store = time.monotonic(), open_store(study.data.store)
    subjects = drawn(study, store)
    order, kept = study.settings(), study.kept()
    values = []
    for i, one in enumerate(subjects):
        values.append(fsl.fits(one, order, study.gate, study.steps, study.lr, kept))
        if sys.stderr.isatty():
            print(f"\r{i + 1} of {len(subjects)} pictures", end="", file=sys.stderr)
    there, names = {s.class_index for s in subjects}, store.info.classes
    missing = tuple(name for i, name in enumerate(names) if i not in there)
    found = Found(study, subjects, tuple(names[i] for i in sorted(there)), missing, np.array(values))
    for gate in get_args(fsl.Gate):
        of_gate = found.values[:, order.index(PAPER)]
        if gate != study.gate:
            of_gate = np.array([fsl.fits(one, [PAPER], gate, study.steps, study.lr, kept)[0] for one in subjects])
        found.gates[gate] = fsl.class_mean(of_gate, found.of)
    lines = told(found)
    print("\n".join(lines))
    print(f"report: {write(found, lines, time.monotonic() - start)}")
    return found
