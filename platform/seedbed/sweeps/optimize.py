"""An optimizer's search: which finished trials are its own, how many it has still to choose, and what it may choose.

How it is asked: runtime/sweep_search.py.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from seedbed.config import digest
from seedbed.local import Executor
from seedbed.sweeps import space
from seedbed.sweeps.trials import Record, Trial
from seedbed.sweeps.watch import Watch, score_of
from seedbed.types import UserError

if TYPE_CHECKING:
    from seedbed.sweeps.drive import Driver

COUNTED = 256
"""Trials up to which the different ones of a finite space are counted before any is chosen."""


def check_installed() -> None:
    if find_spec("optuna") is None:
        raise UserError("optuna is not installed", field="--search", remedy="make env installs it; or say --search random")


class Search:
    """One search: the same space, base, stage, split and metric. It goes on over calls."""

    def __init__(self, driver: Driver) -> None:
        check_installed()
        self.driver = driver
        table = driver.table
        goal = [table.stage, table.split, table.metrics[0]]
        self.ident = digest(["optuna", driver.base.key(), goal, sorted(driver.sweep.space)])
        """Records of its trials name it."""

    def check(self) -> None:
        """UserError where a value can't be planned with, or fewer different trials are possible than are asked for."""
        d = self.driver
        for name, dimension in d.space.items():
            for value in dimension.options if isinstance(dimension, space.Choice) else (dimension.low, dimension.high):
                d.plan("cpu", [{name: value}])
        most = space.size(d.space)
        if most is not None and most <= COUNTED:
            different = {t.key for t in d.plan("cpu", space.every(d.space))}
            if d.sweep.trials > len(different):
                raise space.too_many(d.sweep.trials, len(different))

    def known(self, device: str) -> list[tuple[Trial, float | None]]:
        """What is finished, with its score, the oldest first; not what another device, or other code, has made.

        None: it was stopped early, and its score is of some of the pictures.
        """
        mine = [r for r in self.driver.ledger.all() if self.owns(r) and self.driver.lasts(r)]
        mine.sort(key=lambda r: (r.get("ended", ""), r["key"]))
        pairs = [(self.trial(device, r["searches"][self.ident]), r) for r in mine]
        return [(t, score_of(self.driver.table, r) if r["status"] == "finished" else None) for t, r in pairs if t.key == r["key"]]

    def earlier(self, device: str) -> list[Trial]:
        return [trial for trial, _ in self.known(device)]

    def left(self, device: str) -> int:
        """Trials that are still to be chosen."""
        return max(0, self.driver.sweep.trials - len(self.earlier(device)))

    def trial(self, device: str, setting: space.Setting) -> Trial:
        return self.driver.plan(device, [setting])[0]

    def owns(self, record: Record) -> bool:
        return self.ident in record.get("searches", {})

    def run(self, executor: Executor, watch: Watch) -> None:
        from seedbed.runtime.sweep import search_on_tune

        d = self.driver
        search_on_tune(
            self,
            d.space,
            d.base,
            executor,
            d.at_once(executor),
            watch,
            trials=self.left(executor.device),
            refusal=d.refusal,
            measured=lambda: d.ledger.measured(self.owns),
            stop=d.sweep.stop == "asha",
            seed=d.sweep.seed,
        )
