"""Ray Tune: the trials of a sweep side by side, each in a process of its own, on CPUs or on a share of a GPU."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ray import tune

from seedbed.local import reason
from seedbed.pipeline import Experiment
from seedbed.sweeps.parts import Gathered, Hears, run_part, split
from seedbed.sweeps.space import Setting, Space, setting_id
from seedbed.sweeps.tables import PaperTable
from seedbed.sweeps.trials import SHARES, Ledger, Trial, claimed, run_trial
from seedbed.sweeps.watch import score_of
from seedbed.types import UserError

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # what is finished stands in OUT/trials; Tune's own state is thrown away
    "TUNE_MAX_PENDING_TRIALS_PG": "64",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
RUNGS = round(1 / SHARES[0])
"""A score says how many of so many parts of the pictures it is over: the time that ASHA counts."""
SPARE = 1.15
"""A trial's share of a GPU is the memory that the first one took, and this much more."""


class Refuses(Hears, Protocol):
    """And of those that can't work."""

    def refuse(self, trial: Trial, error: UserError) -> None: ...


Measured = Callable[[], tuple[int, int]]
"""Bytes that a trial takes of a GPU, and bytes that a GPU has; zeros: not known yet."""


def run_on_tune(trials: Sequence[Trial], executor: Any, at_once: int, watch: Hears, *, measured: Measured, stop: bool) -> None:
    """Runs these trials, their random seeds side by side too; on a GPU the first trial alone, since what it takes of the memory says how
    many fit. Who stops trials early does so by their first seed: then each is one piece."""
    rest = list(trials)
    if executor.device == "cuda" and not all(measured()):
        rest.sort(key=lambda t: t.experiment.rib.batch, reverse=True)  # the largest first: the others take no more
        _tune_list(rest[:1], 1.0, 1, executor, watch, stop=stop)
        rest = rest[1:]
    if at_once > 1 and not stop:
        rest = split(rest)
        watch = Gathered(watch, rest)
    if rest:
        share = gpu_of_trial(*measured(), at_once) if executor.device == "cuda" else 0.0
        _tune_list(rest, share, at_once, executor, watch, stop=stop)


def gpu_of_trial(taken: int, total: int, at_once: int) -> float:
    """The share of a GPU for each trial: as many on one as its memory holds, and no more than are wanted at once."""
    fit = int(total / (taken * SPARE)) if taken and total else 1
    together = max(1, min(fit, at_once))
    return int(10_000 / together) / 10_000


def _tune_list(trials: Sequence[Trial], gpu: float, at_once: int, executor: Any, watch: Hears, *, stop: bool) -> None:
    jobs = {t.ident: t for t in trials}
    _fit(
        partial(_known, jobs=jobs, table=watch.table, reporting=stop),
        {"trial": tune.grid_search([*jobs])},
        lambda config: jobs[config["trial"]],
        samples=1,
        gpu=gpu,
        at_once=at_once,
        threads=executor.settings.threads,
        folder=trials[0].experiment.folder(),
        watch=watch,
        scheduler=_asha() if stop else None,
        search=None,
    )


class Searches(Protocol):
    """An optimizer's search, as the driver knows it (sweeps/optimize.py)."""

    ident: str

    def trial(self, device: str, setting: Setting) -> Trial: ...

    def known(self, device: str) -> list[tuple[Trial, float | None]]: ...


def search_on_tune(
    search: Searches,
    space: Space,
    base: Experiment,
    executor: Any,
    at_once: int,
    watch: Refuses,
    *,
    trials: int,
    refusal: Callable[[Trial], UserError | None],
    measured: Measured,
    stop: bool,
    seed: int,
) -> None:
    """Optuna chooses so many trials more, told of those that there are; on a GPU the first one runs alone."""
    from seedbed.runtime.sweep_search import Asking

    device, refused, ran = executor.device, [], 0

    def allowed(trial: Trial) -> bool:
        error = refusal(trial)
        if error is not None:
            refused.append(error)
            watch.refuse(trial, error)
        return error is None

    def choose(samples: int, gpu: float, at_once: int) -> int:
        before = search.known(device)
        asking = Asking(space, partial(search.trial, device), before, allowed, seed=seed + len(before), refusals=trials - len(refused))
        _fit(
            partial(_searched, base=base, device=device, search=search.ident, table=watch.table, reporting=stop),
            {},
            lambda config: asking.chosen[setting_id(dict(config))],
            samples=samples,
            gpu=gpu,
            at_once=at_once,
            threads=executor.settings.threads,
            folder=base.folder(),
            watch=watch,
            scheduler=_asha() if stop else None,
            search=asking,
        )
        return len(asking.chosen)

    if device == "cuda" and not all(measured()):
        ran = choose(1, 1.0, 1)
    if trials > ran:
        ran += choose(trials - ran, gpu_of_trial(*measured(), at_once) if device == "cuda" else 0.0, at_once)
    if refused and not ran and not search.known(device):
        raise refused[0]
    if ran < trials:
        print(f"the search found {ran} of {trials} trials: no other one in its space is new and can work", file=sys.stderr, flush=True)


def _asha() -> Any:
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(time_attr="rungs", metric="score", mode="max", max_t=RUNGS, grace_period=1, reduction_factor=2)


def _known(config: Mapping[str, Any], jobs: Mapping[str, Trial], table: PaperTable, reporting: bool) -> dict[str, Any]:
    return _work(jobs[config["trial"]], table, reporting)


def _searched(config: Mapping[str, Any], base: Experiment, device: str, search: str, table: PaperTable, reporting: bool) -> dict[str, Any]:
    from seedbed.plan import Plan
    from seedbed.sweeps.trials import trial_key

    setting = dict(config)
    experiment = base.replace(**setting)
    trial = Trial(experiment, setting, trial_key(Plan(experiment, experiment.open_data(), device)), device, search=search)
    return _work(trial, table, reporting)


def _work(trial: Trial, table: PaperTable, reporting: bool) -> dict[str, Any]:
    """In the trial's process. A failure stands in its record; for Tune it is an answer like another."""

    def report(share: float, score: float) -> None:
        if share < 1:  # the last score comes with the answer
            tune.report({"score": score, "share": share, "rungs": round(share * RUNGS)})

    ledger = Ledger(trial.experiment.folder())
    record = ledger.read(trial.key)
    if record is None or record["status"] != "finished":
        try:
            if trial.part is not None:
                return {"part": run_part(trial), "score": float("nan"), "share": 1.0, "rungs": RUNGS}
            record = run_trial(trial, report if reporting else None)
        except Exception as error:
            return {"failed": reason(error), "score": float("nan"), "share": 0.0, "rungs": RUNGS}
    elif trial.search:
        ledger.write(trial.key, claimed(record, trial))
    score = score_of(table, record)
    return {"score": float("nan") if score is None else score, "share": 1.0, "rungs": RUNGS}


def _fit(
    trainable: Callable[[Mapping[str, Any]], dict[str, Any]],
    param_space: dict[str, Any],
    trial_of: Callable[[Mapping[str, Any]], Trial],
    *,
    samples: int,
    gpu: float,
    at_once: int,
    threads: int,
    folder: Path,
    watch: Hears,
    scheduler: Any,
    search: Any,
) -> None:
    """One Tuner on the Ray that is running; its own records go where they are thrown away."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with _scratch(folder) as scratch:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_call, call=trainable), {"cpu": threads, **({"gpu": gpu} if gpu else {})}),
            param_space=param_space,
            tune_config=tune.TuneConfig(
                metric=None if scheduler or search else "score",
                mode=None if scheduler or search else "max",
                num_samples=samples,
                max_concurrent_trials=at_once,
                scheduler=scheduler,
                search_alg=search,
                reuse_actors=scheduler is None and not gpu,  # a process that is started anew imports torch again
            ),
            run_config=tune.RunConfig(
                name="trials", storage_path=str(scratch), verbose=0, callbacks=[Callback(trial_of, watch)], log_to_file=False
            ),
        )
        tuner.fit()


def _call(config: Mapping[str, Any], call: Callable[[Mapping[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    return call(config)


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder that every node sees, for what Tune wants to write."""
    path = folder / f".tune-{uuid.uuid4().hex[:8]}"
    for stale in folder.glob(".tune-*"):  # of a killed driver: this one holds the output folder
        shutil.rmtree(stale, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Callback(tune.Callback):
    """Tune's word for it, in ours. An error here would end the sweep: it is a bug and shall."""

    def __init__(self, trial_of: Callable[[Mapping[str, Any]], Trial], watch: Hears) -> None:
        self.trial_of, self.watch = trial_of, watch
        self.known: dict[str, Trial] = {}

    def __getstate__(self) -> dict[str, Any]:  # Tune writes down how it was called; nobody reads it
        return {}

    def of(self, trial: Any) -> Trial:
        if trial.trial_id not in self.known:
            self.known[trial.trial_id] = self.trial_of(trial.config)
        return self.known[trial.trial_id]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.watch.started(self.of(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.watch.ended(self.of(trial), trial.last_result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.watch.ended(self.of(trial), crash="its process died (out of memory?); SEEDBED_DEBUG=1 shows Ray's own words")
