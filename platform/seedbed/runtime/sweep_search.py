"""Optuna as Ray Tune asks it: every trial another one, none that can't work, and what is known already told first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from ray.tune.search import Searcher

from seedbed.sweeps.space import Choice, Range, Setting, Space, setting_id
from seedbed.sweeps.trials import Trial
from seedbed.types import UserError

ASKS, DRAWS = 32, 512
"""How often the optimizer is asked for a trial that there is not yet, and how often one is then drawn at random."""


class Asking(Searcher):
    """A Searcher whose configurations are settings. `allowed` says of each new trial whether it may run; after `refusals` it ends."""

    def __init__(
        self,
        space: Space,
        make: Callable[[Setting], Trial],
        before: Sequence[tuple[Trial, float | None]],
        allowed: Callable[[Trial], bool],
        *,
        seed: int,
        refusals: int,
    ) -> None:
        super().__init__(metric="score", mode="max")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.make, self.allowed, self.refusals = space, make, allowed, refusals
        self.distributions = {name: _distribution(d) for name, d in space.items()}
        self.study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        self.rng = np.random.default_rng([seed, 0xA5C])
        for trial, score in before:
            state = optuna.trial.TrialState.PRUNED if score is None else optuna.trial.TrialState.COMPLETE
            known = optuna.trial.create_trial(params=trial.setting, distributions=self.distributions, state=state, value=score)
            self.study.add_trial(known)
        self.taken = {trial.key for trial, _ in before}
        self.chosen: dict[str, Trial] = {}
        """By their settings."""
        self._asked: dict[str, Any] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        for n in range(ASKS + DRAWS):
            if self.refusals < 0:
                break
            if n >= ASKS:
                self.study.enqueue_trial({name: d.draw(self.rng) for name, d in self.space.items()})
            asked = self.study.ask(self.distributions)
            setting = {
                name: d.settled(asked.params[name]) if isinstance(d, Range) else asked.params[name] for name, d in self.space.items()
            }
            if self._new(setting):
                self._asked[trial_id] = asked
                return setting
            self.study.tell(asked, state=optuna.trial.TrialState.FAIL)
        return Searcher.FINISHED

    def _new(self, setting: Setting) -> bool:
        """Whether this may be run and is no trial that there is already; then it is one from now on."""
        try:
            trial = self.make(setting)
        except UserError:  # a combination that has no key: `allowed` can't name it
            return False
        if trial.key in self.taken:
            return False
        self.taken.add(trial.key)
        if not self.allowed(trial):
            self.refusals -= 1
            return False
        self.chosen[setting_id(setting)] = trial
        return True

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        asked = self._asked.pop(trial_id, None)
        score = (result or {}).get("score")
        if asked is not None and (error or score is None or not math.isfinite(score)):
            self.study.tell(asked, state=optuna.trial.TrialState.FAIL)
        elif asked is not None and (result or {}).get("share", 1) < 1:  # stopped early: its score is of some of the pictures
            self.study.tell(asked, state=optuna.trial.TrialState.PRUNED)
        elif asked is not None:
            self.study.tell(asked, score)

    def save(self, checkpoint_path: str) -> None:
        """What is known stands in OUT/trials; Tune's own state is thrown away."""
        Path(checkpoint_path).touch()

    def __getstate__(self) -> dict[str, Any]:  # Tune writes down how it was called; nobody reads it
        return {}


def _distribution(d: Range | Choice) -> Any:
    if isinstance(d, Choice):
        return optuna.distributions.CategoricalDistribution(d.options)
    if d.whole:
        return optuna.distributions.IntDistribution(int(d.low), int(d.high), log=d.log)
    return optuna.distributions.FloatDistribution(d.low, d.high, log=d.log)
