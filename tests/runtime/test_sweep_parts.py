"""Trials of several random seeds on Ray Tune: one part for each seed, and one record of all."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray.tune")

from test_sweeping import scores, sweep, tiny

from seedbed.pipeline import RunConfig
from seedbed.plan import Plan
from seedbed.runtime import sweep as on_tune
from seedbed.sweeps.drive import Driver
from seedbed.sweeps.parts import split
from seedbed.sweeps.rib_tables import RIB_TABLES
from seedbed.sweeps.trials import Trial

TWO = {"seeds": 2, "seeds_vary": "rib", "data.limit": 6, "space": ("rib.lr=0.001,0.002",)}


class OnCpus:
    """A cluster's executor."""

    device, settings, cluster = "cpu", RunConfig(), None


class Told:
    """Who hears of whole trials, and what."""

    def __init__(self, driver: Driver) -> None:
        self.table, self.said = driver.table, []

    def started(self, trial: Trial) -> None:
        self.said.append(("started", trial.part, trial.setting["rib.lr"]))

    def ended(self, trial: Trial, last: Any = None, crash: str = "") -> None:
        self.said.append(("ended", trial.part, trial.setting["rib.lr"], crash))


def driven(out: Path, monkeypatch: pytest.MonkeyPatch, dies: str = "", **changes: Any) -> tuple[Driver, Told]:
    """A driver whose trials and parts are called in this process, in any order; that of the name `dies` takes its process with it."""
    driver = Driver(tiny(out, **{**TWO, "run.executor": "ray", "concurrency": 2, **changes}), RIB_TABLES)
    driver.open()

    def fit(trainable: Any, space: Any, trial_of: Any, *, watch: Any, **_: Any) -> None:
        configs = [{"trial": ident} for ident in space["trial"]["grid_search"]]
        random.Random(1).shuffle(configs)
        for config in configs:
            watch.started(trial_of(config))
            if dies and config["trial"].endswith(dies):
                watch.ended(trial_of(config), crash="its process died")
            else:
                watch.ended(trial_of(config), trainable(config))

    monkeypatch.setattr(on_tune, "_fit", fit)
    told = Told(driver)
    driver.wave(OnCpus(), driver.left(driver.plan("cpu")), told, light=False)
    return driver, told


def test_parts_leave_the_record_of_a_trial_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, told = driven(tmp_path / "parts", monkeypatch)
    assert sorted(told.said) == sorted(
        [("started", None, lr) for lr in (0.001, 0.002)] * 2 + [("ended", None, lr, "") for lr in (0.001, 0.002)]
    )
    whole = sweep(tmp_path / "whole", **TWO)
    assert len(whole.records) == 2
    for key, record in whole.records.items():
        mine = driver.ledger.read(key)
        assert mine is not None and mine["seconds"] > 0
        assert all(
            mine[name] == record[name] for name in ("status", "setting", "rows", "ends", "over_k", "scored", "set_aside", "cut_from")
        )
        seeds = [
            {(s["name"], s["key"], s["digest"], s["computed"]) for s in r["stages"] if s["name"].startswith(("maps rib", "seeds rib"))}
            for r in (mine, record)
        ]
        assert seeds[0] == seeds[1] and len(seeds[0]) == 4, "what the parts computed counts as the trial's"


def test_a_part_that_fails_is_its_trials_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other seed made stays, and the next call makes what is missing alone."""
    out = tmp_path / "out"
    planned = Driver(tiny(out, **TWO), RIB_TABLES)
    planned.open()
    bad, good = planned.plan("cpu")
    stages = [Plan(bad.experiment, planned.store, "cpu").maps_stage("rib", seed) for seed in (0, 1)]
    stages[1].folder.parent.mkdir(parents=True)
    stages[1].folder.touch()  # a file where its folder would be
    driver, told = driven(out, monkeypatch)
    assert driver.ledger.failure(bad.key) and driver.ledger.read(bad.key) is None and stages[0].manifest is not None
    assert driver.ledger.read(good.key) is not None, "the other trial goes on"
    assert [said for said in told.said if said[0] == "ended"].count(("ended", None, bad.setting["rib.lr"], "")) == 1
    stages[1].folder.unlink()
    made = stages[0].manifest["seconds"]
    driver.ledger.forget_failure(bad.key)  # as the driver does when it begins
    again, _ = driven(out, monkeypatch)
    assert again.finished(bad) and stages[0].manifest["seconds"] == made


def test_a_part_whose_process_dies_ends_its_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, told = driven(tmp_path / "out", monkeypatch, dies=" 1")
    assert [driver.ledger.read(t.key) for t in driver.plan("cpu")] == [None, None]
    assert sorted(said for said in told.said if said[0] == "ended") == [("ended", None, lr, "its process died") for lr in (0.001, 0.002)]


def test_what_is_not_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One seed; maps that are cut out of another's; one process at a time; trials that may be stopped early."""
    of_two = Driver(tiny(tmp_path / "out", **TWO), RIB_TABLES)
    of_two.open()
    trials = of_two.plan("cpu")
    assert [(t.key, t.part) for t in split(trials)] == [(t.key, seed) for t in trials for seed in (0, 1)]
    assert len({t.ident for t in split(trials)}) == 4
    alone = Driver(tiny(tmp_path / "out", **{**TWO, "seeds": 1}), RIB_TABLES)
    alone.open()
    assert [t.part for t in split(alone.plan("cpu"))] == [None, None]
    cut = Driver(tiny(tmp_path / "out", **{**TWO, "space": (), "table": "5b", "rib.margin": 4.0}), RIB_TABLES)
    cut.open()
    assert {t.part for t in split(cut.plan("cpu")) if t.cut_from is not None} == {None}
    ran = []
    monkeypatch.setattr(on_tune, "_tune_list", lambda trials, *_, **__: ran.append({t.part for t in trials}))
    for at_once, stop in ((1, False), (2, True), (2, False)):
        on_tune.run_on_tune(trials, OnCpus(), at_once, Told(of_two), measured=lambda: (0, 0), stop=stop)
    assert ran == [{None}, {None}, {0, 1}]


@pytest.mark.ray
@pytest.mark.slow
def test_seeds_side_by_side_have_the_bits_of_a_local_sweep(small_ray: None, tmp_path: Path) -> None:
    changes = {**TWO, "seeds_vary": "all"}
    result = sweep(tmp_path / "ray", **changes, **{"run.executor": "ray", "concurrency": 2})
    assert len(result.computed) == 2 and not result.failed
    sweep(tmp_path / "local", **changes)
    mine, theirs = (
        [(r["method"], r.get("setting"), r["seed"], r["metric"], r["value"]) for r in scores(tmp_path / name)] for name in ("ray", "local")
    )
    assert mine == theirs
