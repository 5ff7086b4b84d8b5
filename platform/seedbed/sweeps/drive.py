"""The driver of a sweep: what all trials share, the trials that are left, and what came out. Only it writes to MLflow."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from seedbed import progress, study
from seedbed.artefacts import hold
from seedbed.checks import check, check_companions, check_scored
from seedbed.data import Store
from seedbed.local import Executor, Tracker
from seedbed.plan import Plan
from seedbed.stages import Study
from seedbed.sweeps import asked, space
from seedbed.sweeps.cut import share_runs
from seedbed.sweeps.optimize import Search
from seedbed.sweeps.settings import Sweep, absolute
from seedbed.sweeps.tables import Line, PaperTable, SweepResult, TableOf
from seedbed.sweeps.trials import Ledger, Record, Trial, run_trial, trial_key
from seedbed.sweeps.watch import Watch, score_of
from seedbed.types import UserError

LIGHT = 512
"""Pictures up to which cutting maps is done in the driver: starting processes takes longer."""


def main(
    sweep: Sweep,
    table_of: Mapping[str, TableOf],
    smoke: Mapping[str, Any] | None = None,
    argv: Sequence[str] | None = None,
    recipe: study.Recipe | None = None,
) -> NoReturn:
    """The command line of a sweep's script; statuses as of a study, 3 also where a trial failed. `smoke`, `recipe`: as a study has them."""
    with study.reported_errors():
        arguments = list(sys.argv[1:] if argv is None else argv)
        settings = study.parse(sweep, smoke or {}, arguments, recipe)
        assert isinstance(settings, Sweep)
        said = asked.said_flags(arguments, settings.flat())
        if settings.explain:
            explain(settings, table_of, said=said)
            sys.exit(study.DONE)
        result = run(settings, table_of, said)
    sys.exit(study.SET_ASIDE if result.failed or result.set_aside else study.DONE)


def run(sweep: Sweep, table_of: Mapping[str, TableOf], said: Sequence[str] = ()) -> SweepResult:
    """Runs a sweep, or what is missing of it. UserError: something a user can mend. `said`: names that a table shall not ignore."""
    driver = Driver(absolute(sweep), table_of, said)
    with hold(sweep.folder()):
        return driver.run()


def explain(sweep: Sweep, table_of: Mapping[str, TableOf], say: Callable[[str], None] = print, said: Sequence[str] = ()) -> None:
    """One line for each shared stage and each trial. Nothing is run and nothing written."""
    from seedbed.local import local_device

    driver = Driver(absolute(sweep), table_of, said)
    device = local_device(sweep.run.device)
    driver.open(dry=True)
    for line in Study(driver.shared, driver.store, device).explanation():
        say(line)
    for trial in driver.plan(device):
        state = "found" if driver.finished(trial) else "cut" if trial.cut_from is not None else "runs"
        say(f"{'trial':24} {trial.key}  {state:8} {trial.name}")


class Driver:
    """One call of a sweep."""

    def __init__(self, sweep: Sweep, table_of: Mapping[str, TableOf], said: Sequence[str] = ()) -> None:
        sweep.check()
        self.sweep = sweep
        self.table = asked.chosen_table(sweep, table_of)
        self.space = space.read_space(sweep.space, sweep) if sweep.space or sweep.search != "grid" else {}
        self.base = asked.base_of(sweep, self.table)
        self.shared = self.base.replace(**self.table.base)
        self.ledger = Ledger(sweep.folder())
        self.search = Search(self) if sweep.search == "optuna" else None
        self.settings = asked.chosen_settings(sweep, self.table, self.space)
        asked.refuse_ignored(sweep, self.table, [self.base.replace(**setting) for setting in self.table.settings or [{}]], said)
        self.table_of, self.said = table_of, said
        self.refused: dict[str, UserError] = {}
        """Trials (by `setting_id`) that can't work, found before anything is started."""
        self.failed: dict[str, str] = {}
        self.computed: list[str] = []
        self.records: dict[str, Record] = {}
        self.store: Store

    # --- which trials -------------------------------------------------------------------------------

    def open(self, *, dry: bool = False) -> None:
        """Looks at data and settings of the base and of every trial before anything is started."""
        self.store = self.base.open_data(dry=dry)
        if self.space:
            asked.refuse_unused(self.base, self.space, self.settings, lambda setting: self.plan("cpu", [setting])[0].key)
        asked.refuse_idle(self.sweep, self.said, self.keys_of)
        check(Plan(self.shared, self.store, "cpu"), dry=dry)
        if self.search is not None:
            self.search.check()
        for trial in self.plan("cpu"):
            if (error := self.refusal(trial)) is not None:
                self.refused[space.setting_id(trial.setting)] = error
        if self.refused and len(self.refused) == len(self.settings):
            raise next(iter(self.refused.values()))

    def keys_of(self, sweep: Sweep) -> list[str]:
        """Of a sweep over these pictures: its trials (or some that a search may choose) and what they share."""
        table = asked.chosen_table(sweep, self.table_of)
        base = asked.base_of(sweep, table)
        settings = asked.chosen_settings(sweep, table, self.space) or asked.probes(self.space)
        made = [base.replace(**table.base), *(base.replace(**setting) for setting in settings)]
        return [trial_key(Plan(e, self.store, "cpu")) for e in made]

    def refusal(self, trial: Trial) -> UserError | None:
        """Why a trial can't work on these data."""
        try:
            trial.experiment.check()
            plan = Plan(trial.experiment, self.store, "cpu")
            check(plan, dry=True)
            check_companions(plan)
            check_scored(plan)
        except UserError as error:
            return error
        return None

    def plan(self, device: str, settings: Sequence[space.Setting] | None = None) -> list[Trial]:
        """The trials, each with its key and with the one that it is cut from."""
        settings = self.settings if settings is None else settings
        mine = [self.base.replace(**setting) for setting in settings]
        # A trial that may be stopped early is nothing to rely on.
        shared = share_runs(mine) if self.sweep.stop == "none" else [(e, None) for e in mine]
        search = "" if self.search is None else self.search.ident
        return [
            Trial(e, setting, trial_key(Plan(e, self.store, device)), device, None if source is None else shared[source][0], search)
            for setting, (e, source) in zip(settings, shared, strict=True)
        ]

    def finished(self, trial: Trial) -> bool:
        record = self.ledger.read(trial.key)
        return record is not None and self.lasts(record)

    def lasts(self, record: Record) -> bool:
        """A trial that was stopped early is finished as long as trials are stopped early."""
        return record["status"] == "finished" or self.sweep.stop != "none"

    def can(self, trial: Trial) -> bool:
        return space.setting_id(trial.setting) not in self.refused

    def left(self, trials: Sequence[Trial]) -> list[Trial]:
        return [*{t.key: t for t in trials if not self.finished(t) and self.can(t)}.values()]

    def device_of_finished(self) -> str | None:
        """The device on which all was done already: then nobody has to be asked for work."""
        wanted = self.sweep.run.device
        for device in ("cuda", "cpu") if wanted == "auto" else (wanted,):
            whole = all(stage.manifest is not None for _, stage in Plan(self.shared, self.store, device).plan())
            if whole and not self.left(self.plan(device)) and not (self.search and self.search.left(device)):
                return device
        return None

    # --- running them -------------------------------------------------------------------------------

    def run(self) -> SweepResult:
        from seedbed.sweeps import conclusion

        self.open()
        began, status = time.time(), "FAILED"
        failure: BaseException | None = None
        device, run_config = self.device_of_finished(), self.base.run
        if device is None and run_config.executor == "ray":
            run_config = run_config.replace(actors=max(run_config.actors, self.at_once(None)))
        base = Study(self.shared, self.store, device or "cpu")
        with study.executor(self.base.replace(run=run_config), device) as executor, study.tracker(self.base) as record:
            self.start(record)
            try:
                base.collect(executor, record)
                trials = self.work(executor, record)
                result = SweepResult(self.shown(trials), trials, [], self.records, self.failed, computed=self.computed)
                conclusion.conclude(self, base, result, began, record)
                status = "FINISHED"
                return result
            except BaseException as error:
                failure = error
                status = "KILLED" if isinstance(error, KeyboardInterrupt) else status
                raise
            finally:
                conclusion.write_run_record(self, base, began, status, failure)
                record.end(status)

    def start(self, record: Tracker) -> None:
        """Begins the sweep's own run in the tracker."""
        s, e, key = self.sweep, self.shared, self.shared.key()
        name = s.run.name or f"{s.name} {self.table.name or s.search} {key[:8]}"
        tags = {"seedbed.kind": "study", "seedbed.key": key, "seedbed.method": e.labels[-1], "seedbed.seed": str(s.seed)}
        varied = {"table": self.table.name, "search": s.search, "trials": len(self.settings) or s.trials, "space": " ".join(s.space)}
        record.start(s.name, name, {**e.flat(), **varied}, {**tags, "seedbed.table": self.table.name})

    def at_once(self, executor: Any) -> int:
        """Trials side by side on CPUs: of a cluster its own, else this machine's."""
        cluster = getattr(executor, "cluster", None)
        cpus = len(os.sched_getaffinity(0)) if cluster is None or cluster.own else int(cluster.resources.get("CPU", 1))
        return max(1, self.sweep.concurrency or cpus // self.base.run.threads)

    def work(self, executor: Executor, record: Tracker) -> list[Trial]:
        """Runs what is left; returns all trials."""
        device = executor.device
        watch = Watch(self.ledger, self.table, record)
        trials = self.plan(device) if self.search is None else self.search.earlier(device)[: self.sweep.trials]
        for trial in trials:
            if not self.can(trial):
                watch.refuse(trial, self.refused[space.setting_id(trial.setting)])
            elif self.finished(trial):
                watch.found(trial)
        left, chosen = self.left(trials), 0 if self.search is None else self.search.left(device)
        if left or chosen:
            total = len({t.key for t in trials if self.can(t)}) + chosen
            with progress.Progress().stage("trials", total=total, done=total - len(left) - chosen, unit="trials") as line:
                watch.line = line
                # First those that run themselves, then those that are cut out of their maps.
                self.wave(executor, [t for t in left if t.cut_from is None], watch, light=False)
                cut = [t for t in left if t.cut_from is not None]
                self.wave(executor, cut, watch, light=len(self.store.ids(self.base.data.map_split)) <= LIGHT)
                if chosen and self.search is not None:
                    self.search.run(executor, watch)
        if self.search is not None:
            trials = [*self.search.earlier(device)[: self.sweep.trials], *watch.lost.values()]
        self.failed, self.computed = watch.failed, watch.computed
        # What another table ran has the setting under which that table had it: here this one's.
        known = {t.key: (t, r) for t in trials if (r := self.ledger.read(t.key)) is not None}
        self.records = {key: {**r, "setting": t.setting, "score": score_of(self.table, r)} for key, (t, r) in known.items()}
        return trials

    def wave(self, executor: Executor, trials: Sequence[Trial], watch: Watch, *, light: bool) -> None:
        if trials and (light or self.base.run.executor == "local"):
            for trial in trials:
                watch.started(trial)
                try:
                    run_trial(trial)
                except Exception as error:  # it stands in the trial's own record; the others go on
                    watch.ended(trial, crash=str(error))
                else:
                    watch.ended(trial)
        elif trials:
            from seedbed.runtime.sweep import run_on_tune

            mine = {t.key for t in self.plan(executor.device)}
            run_on_tune(
                trials,
                executor,
                self.at_once(executor),
                watch,
                measured=lambda: self.ledger.measured(lambda record: record["key"] in mine),
                stop=self.sweep.stop == "asha",
            )

    def shown(self, trials: Sequence[Trial]) -> PaperTable:
        """The table with the rows of these trials: of a search every one, of the paper's those that were asked for."""
        if not self.table.lines:
            base = [Line(method.upper(), None, method) for method in Plan(self.shared, self.store, "cpu").methods]
            return replace(self.table, lines=(*base, *(Line(t.name, t.setting) for t in trials)))
        settings = [t.setting for t in trials]
        return replace(self.table, lines=tuple(line for line in self.table.lines if line.setting is None or line.setting in settings))
