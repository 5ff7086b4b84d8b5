"""Ray Tune: the trials of a sweep side by side, each in a process of its own, on CPUs or on a share of a GPU."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ray import tune

from seedbed.local import reason
from seedbed.sweeps.space import Choice, Range, Setting, Space
from seedbed.sweeps.tables import PaperTable
from seedbed.sweeps.trials import SHARES, Ledger, Trial, run_trial
from seedbed.sweeps.watch import score_of

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


class Hears(Protocol):
    """What is told of each trial, in the driver, and by which table's score the trials are compared."""

    table: PaperTable

    def started(self, trial: Trial) -> None: ...

    def ended(self, trial: Trial, last: Mapping[str, Any] | None = None, crash: str = "") -> None: ...


def run_on_tune(trials: Sequence[Trial], executor: Any, at_once: int, watch: Hears, *, stop: bool) -> None:
    """Runs these trials; on a GPU the first one alone, since what it takes of the memory says how many fit."""
    rest = list(trials)
    if executor.device == "cuda" and not measured(rest):
        rest.sort(key=lambda t: t.experiment.rib.batch, reverse=True)  # the largest first: the others take no more
        _tune_list(rest[:1], 1.0, 1, executor, watch, stop=stop)
        rest = rest[1:]
    if rest:
        share = gpu_of_trial(measured(rest), at_once) if executor.device == "cuda" else 0.0
        _tune_list(rest, share, at_once, executor, watch, stop=stop)


def measured(trials: Sequence[Trial]) -> int:
    """Bytes of GPU memory that finished trials of this folder took at most; 0: none is known."""
    return max((int(r.get("gpu_bytes") or 0) for t in trials[:1] for r in Ledger(t.experiment.folder()).all()), default=0)


def gpu_of_trial(taken: int, at_once: int, total: int | None = None) -> float:
    """The share of a GPU for each trial: as many on one as its memory holds, and no more than are wanted at once."""
    if total is None:
        import torch

        total = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0
    fit = int(total / (taken * SPARE)) if taken and total else 1
    together = max(1, min(fit, at_once))
    return int(10_000 / together) / 10_000


def _tune_list(trials: Sequence[Trial], gpu: float, at_once: int, executor: Any, watch: Hears, *, stop: bool) -> None:
    jobs = {t.key: t for t in trials}
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


def search_on_tune(
    space: Space,
    make: Callable[[Setting], Trial],
    before: Sequence[tuple[Setting, float]],
    trials: int,
    executor: Any,
    at_once: int,
    watch: Hears,
    *,
    stop: bool,
    seed: int,
) -> None:
    """Optuna chooses so many trials more, told of those `before`."""
    from ray.tune.search.optuna import OptunaSearch

    known = [(s, v) for s, v in before if v is not None]
    search = OptunaSearch(
        metric="score",
        mode="max",
        seed=seed + len(before),
        points_to_evaluate=[s for s, _ in known] or None,
        evaluated_rewards=[v for _, v in known] or None,
    )
    first = make({name: d.options[0] if isinstance(d, Choice) else d.settled(d.low) for name, d in space.items()})
    gpu = 0.0
    if executor.device == "cuda":
        taken = measured([first])
        gpu = gpu_of_trial(taken, at_once) if taken else 1.0

    def settled(config: Mapping[str, Any]) -> Trial:
        return make({name: d.settled(config[name]) if isinstance(d, Range) else config[name] for name, d in space.items()})

    _fit(
        partial(_searched, base=first, space=dict(space), table=watch.table, reporting=stop),
        {name: _dimension(d) for name, d in space.items()},
        settled,
        samples=trials,
        gpu=gpu,
        at_once=at_once,
        threads=executor.settings.threads,
        folder=first.experiment.folder(),
        watch=watch,
        scheduler=_asha() if stop else None,
        search=search,
    )


def _dimension(d: Range | Choice) -> Any:
    if isinstance(d, Choice):
        return tune.choice(list(d.options))
    if d.whole:
        return (tune.lograndint if d.log else tune.randint)(int(d.low), int(d.high) + 1)
    return (tune.loguniform if d.log else tune.uniform)(d.low, d.high)


def _asha() -> Any:
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(time_attr="rungs", metric="score", mode="max", max_t=RUNGS, grace_period=1, reduction_factor=2)


def _known(config: Mapping[str, Any], jobs: Mapping[str, Trial], table: PaperTable, reporting: bool) -> dict[str, Any]:
    return _work(jobs[config["trial"]], table, reporting)


def _searched(config: Mapping[str, Any], base: Trial, space: Space, table: PaperTable, reporting: bool) -> dict[str, Any]:
    from seedbed.plan import Plan
    from seedbed.sweeps.trials import trial_key

    setting = {name: d.settled(config[name]) if isinstance(d, Range) else config[name] for name, d in space.items()}
    experiment = base.experiment.replace(**setting)
    trial = Trial(experiment, setting, trial_key(Plan(experiment, experiment.open_data(), base.device)), base.device)
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
            record = run_trial(trial, report if reporting else None)
        except Exception as error:
            return {"failed": reason(error), "score": float("nan"), "share": 0.0, "rungs": RUNGS}
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
