"""Trials on Ray Tune: killed and started again, failing, sharing, searching, stopped early, a tracking server that goes away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray.tune")

from test_sweeping import scores, sweep, tiny

from seedbed.pipeline import RunConfig
from seedbed.plan import Plan
from seedbed.runtime import sweep as on_tune
from seedbed.runtime.sweep import _work, gpu_of_trial
from seedbed.sweeps.drive import Driver
from seedbed.sweeps.rib_tables import RIB_TABLES
from seedbed.sweeps.tables import PaperTable
from seedbed.sweeps.trials import Ledger, Trial, claimed, run_trial
from seedbed.sweeps.watch import score_of
from seedbed.types import UserError

ROOT = Path(__file__).resolve().parents[2]


def trials_of(out: Path, name: str = "tiny") -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name(name).experiment_id], max_results=1000)
    return [r for r in found if r.data.tags["seedbed.kind"] == "trial"]


def by_parent(trials: list[Any]) -> list[list[Any]]:
    """The trials of each call, the first call's first: what one compare view shows."""
    calls: dict[str, list[Any]] = {}
    for r in sorted(trials, key=lambda r: r.info.start_time):
        calls.setdefault(r.data.tags["mlflow.parentRunId"], []).append(r)
    return list(calls.values())


GIB = 1 << 30
ON_RAY = {"run.executor": "ray"}


def test_share_of_a_gpu_by_measured_memory() -> None:
    assert gpu_of_trial(10 * GIB, 80 * GIB, 16) == pytest.approx(1 / 6, abs=1e-3), "6 x 11.5 fit in 80"
    assert gpu_of_trial(10 * GIB, 80 * GIB, 3) == pytest.approx(1 / 3, abs=1e-3), "no more than are wanted"
    assert gpu_of_trial(70 * GIB, 80 * GIB, 16) == 1.0 and gpu_of_trial(0, 0, 16) == 1.0


class OnGpus:
    """A cluster's executor, seen from a head without a GPU."""

    device, settings, cluster = "cuda", RunConfig(), None


def test_trials_share_a_gpu_by_what_the_first_one_wrote_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory taken and there is in the trials' own records: the driver's machine may have no GPU."""
    driver = Driver(tiny(tmp_path / "out", space=("rib.batch=2,4,3",), concurrency=16, **ON_RAY), RIB_TABLES)
    driver.store = driver.base.open_data()
    trials, ran = driver.plan("cuda"), []

    def run(trials: Any, gpu: float, at_once: int, *_: Any, **__: Any) -> None:
        ran.append(([t.setting["rib.batch"] for t in trials], round(gpu, 3)))
        for t in trials:
            driver.ledger.write(t.key, {"status": "finished", "gpu_bytes": 10 * GIB, "gpu_total": 80 * GIB})

    monkeypatch.setattr(on_tune, "_tune_list", run)
    driver.ledger.write("cut", {"status": "finished", "gpu_bytes": GIB, "gpu_total": 80 * GIB, "cut_from": "k"})
    driver.wave(OnGpus(), trials, None, light=False)
    assert ran == [([4], 1.0), ([3, 2], 0.167)], "the largest first and alone; then six fit"
    driver.ledger.write("other", {"status": "finished", "gpu_bytes": 70 * GIB, "gpu_total": 80 * GIB})
    driver.wave(OnGpus(), trials[:1], None, light=False)
    assert ran[-1] == ([2], 0.167), "another sweep's trials are not these"
    fresh = Driver(tiny(tmp_path / "out", space=("rib.batch=5,6",), concurrency=16, **ON_RAY), RIB_TABLES)
    fresh.store = driver.store
    fresh.wave(OnGpus(), fresh.plan("cuda"), None, light=False)
    assert ran[-1] == ([5, 6], 1.0), "the folder's largest, where nothing is known of one's own"


# --- an optimizer's search, without Ray ------------------------------------------------------------------


def searching(out: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool = False, **changes: Any) -> tuple[Driver, list[tuple[int, float]]]:
    """A driver that chooses with Optuna; its trials end at once, and are told by record alone."""
    pytest.importorskip("optuna")
    own = {"search": "optuna", "run.executor": "ray", "concurrency": 16, **changes}
    driver = Driver(tiny(out, **own), RIB_TABLES)
    driver.open()
    rounds = []

    def fit(trainable: Any, space: Any, trial_of: Any, *, samples: int, gpu: float, search: Any, watch: Any, **_: Any) -> None:
        rounds.append((samples, round(gpu, 3)))
        for n in range(samples):
            config = search.suggest(str(n))
            if config == "FINISHED":
                break
            watch.started(trial_of(config))
            told = trainable(config)
            watch.ended(trial_of(config))
            search.on_trial_complete(str(n), told)

    def run(trial: Trial, report: Any = None) -> dict[str, Any]:
        score = float(np.cos(len(driver.ledger.all())))
        row = {"stage": "seed", "split": "train", "metric": "mIoU", "method": "rib", "seed": 0, "value": score}
        record = {"status": "finished", "setting": {}, "rows": [row], "gpu_bytes": 10 * GIB, "gpu_total": 80 * GIB, "ended": "2999"}
        driver.ledger.write(trial.key, claimed(record, trial))
        return record

    monkeypatch.setattr(on_tune, "_fit", fit)
    monkeypatch.setattr(on_tune, "run_trial", run)
    return driver, rounds


class Heard:
    """A tracker that keeps what it hears: name, status and tags of every child."""

    def __init__(self) -> None:
        self.children: dict[str, list[Any]] = {}

    def stage(self, name: str, tags: dict[str, str], params: Any = None) -> str:
        self.children[str(len(self.children))] = [name, "RUNNING", tags]
        return str(len(self.children) - 1)

    def end_stage(self, child: str, status: str = "FINISHED") -> None:
        self.children[child][1] = status

    def log(self, *_: Any, **__: Any) -> None:
        pass

    def shown(self) -> list[tuple[str, str, bool]]:
        return [(name, status, "seedbed.found" in tags) for name, status, tags in self.children.values()]


class OnCpus(OnGpus):
    device = "cpu"


def test_a_search_has_as_many_different_trials_as_were_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna proposes many settings twice; a call that goes on knows those before."""
    space = {"space": ("rib.steps=2:7", "rib.pooling=gap,gndrp")}
    driver, _ = searching(tmp_path / "out", monkeypatch, trials=9, **space)
    assert len({t.key for t in driver.work(OnCpus(), Heard())}) == 9
    driver, _ = searching(tmp_path / "out", monkeypatch, trials=12, **space)
    heard = Heard()
    assert len({t.key for t in driver.work(OnCpus(), heard)}) == 12 and len(driver.computed) == 3
    assert sorted(found for _, _, found in heard.shown()) == [False] * 3 + [True] * 9, "every trial is a child of this call"
    with pytest.raises(UserError, match="the grid has 12"):
        searching(tmp_path / "out", monkeypatch, trials=13, **space)
    with pytest.raises(UserError, match="the grid has 3"):  # plain CAMs know no pooling
        searching(tmp_path / "out", monkeypatch, trials=4, space=("method=cam,rib", "rib.pooling=gap,gndrp"))


def test_a_trial_that_the_driver_did_not_hear_of_belongs_to_its_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill after the trial wrote its record: it is found, and the search has one less to choose."""
    changes = {"space": ("rib.tau=0.2:0.6",), "trials": 2, "data.limit": 6}
    driver, _ = searching(tmp_path / "out", monkeypatch, **changes)
    assert driver.search is not None
    record = run_trial(driver.search.trial("cpu", {"rib.tau": 0.3}))
    assert [t.setting for t in driver.search.earlier("cpu")] == [{"rib.tau": 0.3}]
    assert driver.search.known("cpu")[0][1] == score_of(driver.table, record) and driver.search.left("cpu") == 1
    heard = Heard()
    trials = driver.work(OnCpus(), heard)
    assert trials[0].setting == {"rib.tau": 0.3} and len(driver.computed) == 1
    assert heard.shown()[0] == ("tau 0.3", "FINISHED", True)
    assert not driver.search.earlier("cuda"), "made on another device"


def test_a_trial_stopped_early_is_pruned_to_the_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its score is of some of the pictures: no number to compare with one of all."""
    from optuna.trial import TrialState

    from seedbed.runtime.sweep_search import Asking

    driver, _ = searching(tmp_path / "out", monkeypatch, space=("rib.tau=0.2:0.6",), trials=4)
    assert driver.search is not None
    make = driver.search.trial
    trial = make("cpu", {"rib.tau": 0.5})
    Ledger(tmp_path / "out").write(
        trial.key,
        claimed({"status": "stopped", "setting": {"rib.tau": 0.5}, "share": 0.25, "score": 70.0, "rows": [], "ended": ""}, trial),
    )
    asha = Driver(driver.sweep.replace(stop="asha"), RIB_TABLES)
    asha.open(dry=True)
    assert asha.search is not None
    before = asha.search.known("cpu")
    assert [(t.key, score) for t, score in before] == [(trial.key, None)]
    asking = Asking(driver.space, lambda setting: make("cpu", setting), before, lambda trial: True, seed=0, refusals=1)
    for ident, last in (("a", {"score": 70.0, "share": 0.25}), ("b", {"score": 50.0, "share": 1.0})):
        assert asking.suggest(ident)
        asking.on_trial_complete(ident, last)
    assert [(t.state, t.value) for t in asking.study.trials] == [
        (TrialState.PRUNED, None), (TrialState.PRUNED, None), (TrialState.COMPLETE, 50.0),
    ]  # fmt: skip


def test_a_search_learns_from_what_had_its_own_goal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage, split and metric: another number is another search; a trial that both want belongs to both."""
    changes = {"space": ("rib.steps=2,3",), "trials": 2}
    idents, out = set(), tmp_path / "out"
    for more in ({}, {"until": "mask"}, {"until": "segmentation"}, {"until": "segmentation", "data.segment_splits": ("val",)}):
        light = {"refine.method": "none", "refine.crf_seeds": False, "segmenter.crf": "none", "segmenter.weights": "none"}
        driver, _ = searching(out, monkeypatch, **{**changes, **more, **light})
        assert driver.search is not None
        idents.add(driver.search.ident)
    assert len(idents) == 4
    for steps in ("2,3", "2,3,4"):
        driver, _ = searching(out, monkeypatch, trials=2, space=(f"rib.steps={steps}",))
        assert len(driver.work(OnCpus(), Heard())) == 2
    driver, _ = searching(out, monkeypatch, **changes)
    assert driver.search is not None and driver.search.left("cpu") == 0


def test_a_combination_that_cannot_work_is_a_named_failure_of_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no place of the trials asked for, and stands in what the call returns."""
    driver, _ = searching(tmp_path / "out", monkeypatch, space=("rib.batch=2,3,500,600",), trials=2)
    heard = Heard()
    trials = driver.work(OnCpus(), heard)
    assert {t.setting["rib.batch"] for t in trials if t.key not in driver.failed} == {2, 3}
    named = {t.name: driver.failed[t.key] for t in trials if t.key in driver.failed}
    assert all(name in ("batch 500", "batch 600") and "--rib.batch is" in why and "(give" in why for name, why in named.items())
    assert [(name, status) for name, status, _ in heard.shown() if status == "FAILED"] == [(name, "FAILED") for name in named]
    driver, _ = searching(tmp_path / "none", monkeypatch, space=("rib.batch=500,600",), trials=2)
    with pytest.raises(UserError, match="but no picture has more than"):
        driver.work(OnCpus(), Heard())


def test_a_search_begins_with_one_trial_alone_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, rounds = searching(tmp_path / "out", monkeypatch, space=("rib.steps=2:9",), trials=4)
    driver.work(OnGpus(), Heard())
    assert rounds == [(1, 1.0), (3, 0.167)]
    driver, rounds = searching(tmp_path / "out", monkeypatch, space=("rib.steps=2:9",), trials=6)
    driver.work(OnGpus(), Heard())
    assert rounds == [(2, 0.167)], "a later call knows it already"


def test_a_search_without_optuna_is_refused_before_anything_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from seedbed.sweeps import optimize

    monkeypatch.setattr(optimize, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="optuna is not installed") as caught:
        sweep(tmp_path / "out", search="optuna", trials=2, space=("rib.tau=0.2:0.6",), **{"run.executor": "ray"})
    assert caught.value.field == "--search" and caught.value.remedy and not (tmp_path / "out").exists()


# --- on Ray ----------------------------------------------------------------------------------------------


def test_a_search_goes_by_the_score_of_its_table(tmp_path: Path) -> None:
    """The mean over random seeds, of the table's stage and split; not whichever row comes last."""
    rows = [
        {"stage": stage, "split": split, "seed": seed, "metric": "mIoU", "value": value}
        for stage, split, seed, value in (
            ("seed", "train", 0, 10.0), ("seed", "train", 1, 20.0), ("segmentation", "train", 0, 60.0), ("segmentation", "val", 0, 1.0)
        )
    ]  # fmt: skip
    trial = Trial(tiny(tmp_path), {}, "k", "cpu")
    Ledger(trial.experiment.folder()).write("k", {"status": "finished", "rows": rows})

    def told(stage: str, split: str) -> float:
        return _work(trial, PaperTable(name="", title="", lines=(), stage=stage, split=split), reporting=False)["score"]

    assert (told("seed", ""), told("segmentation", "train"), told("segmentation", "val")) == (15.0, 60.0, 1.0)
    assert np.isnan(told("mask", ""))


RAY = {"run.executor": "ray", "concurrency": 2}


@pytest.mark.ray
@pytest.mark.slow
def test_trials_have_the_bits_of_a_local_sweep(small_ray: None, tmp_path: Path) -> None:
    changes = {"space": ("rib.lr=0.001,0.002",), "data.limit": 6}
    result = sweep(tmp_path / "ray", **changes, **RAY, **{"run.tracking_uri": ""})
    assert len(result.computed) == 2 and not result.failed and not list((tmp_path / "ray").glob(".tune-*"))
    sweep(tmp_path / "local", **changes)
    mine, theirs = (
        [(r["method"], r.get("setting"), r["metric"], r["value"]) for r in scores(tmp_path / name)] for name in ("ray", "local")
    )
    assert mine == theirs
    runs = trials_of(tmp_path / "ray")
    assert {r.data.params["rib.lr"] for r in runs} == {"0.001", "0.002"}
    assert all(r.info.status == "FINISHED" and "seed/train/mIoU" in r.data.metrics and "score" in r.data.metrics for r in runs)
    sweep(tmp_path / "ray", **changes, **RAY, **{"run.tracking_uri": ""})
    first, second = by_parent(trials_of(tmp_path / "ray"))
    scored, again = ({r.data.params["rib.lr"]: r.data.metrics["score"] for r in call} for call in (first, second))
    assert scored == again, "every call has a child for each of its trials, whoever ran it"
    assert len(first) == len(second) == 2 and ["seedbed.found" in r.data.tags for r in (*first, *second)] == [False] * 2 + [True] * 2


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_that_fails_is_named(small_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One whose maps have nowhere to go: a file is where their folder would be."""
    changes = {"space": ("rib.lr=0.001,0.002",), "data.limit": 6, **RAY, "run.tracking_uri": ""}
    driver = Driver(tiny(tmp_path / "out", **changes), RIB_TABLES)
    driver.store = driver.base.open_data()
    trial = driver.plan("cpu")[1]
    maps = Plan(trial.experiment, driver.store, "cpu").maps_stage("rib", 0).folder
    maps.parent.mkdir(parents=True)
    maps.touch()
    result = sweep(tmp_path / "out", **changes)
    assert len(result.computed) == 1 and list(result.failed) == [trial.key]
    assert f"trial failed: lr 0.002: {result.failed[trial.key]}" in capsys.readouterr().err
    assert {r.data.params["rib.lr"]: r.info.status for r in trials_of(tmp_path / "out")} == {"0.001": "FINISHED", "0.002": "FAILED"}
    maps.unlink()
    assert len(sweep(tmp_path / "out", **changes).computed) == 1


@pytest.mark.ray
@pytest.mark.slow
def test_optuna_goes_on(small_ray: None, tmp_path: Path) -> None:
    out, space = tmp_path / "out", ("rib.steps=1,2", "rib.pooling=gap,gndrp")
    changes = {"search": "optuna", "space": space, "data.limit": 6, **RAY}
    assert len(sweep(out, trials=2, **changes).computed) == 2
    more = sweep(out, trials=4, **changes)
    assert len(more.computed) == 2 and len({t.key for t in more.trials}) == 4, "two were found, the other two are chosen, none twice"
    assert not sweep(out, trials=4, **changes).computed
    with pytest.raises(UserError, match="but no picture has more than"):  # nothing that can work: Tune is given no trial at all
        sweep(out, trials=2, **{**changes, "space": ("rib.batch=500,600",)})


@pytest.mark.ray
@pytest.mark.slow
def test_asha_stops_what_falls_behind(small_ray: None, tmp_path: Path) -> None:
    """One after the other, so that what is there to compare with is known: a rate that destroys the maps comes third."""
    out, random = tmp_path / "out", {"search": "random", "seed": 1, "space": ("rib.lr=0.0001,0.003,0.03,0.1",), "stop": "asha"}
    changes = {**random, "data.limit": 16, **RAY, "concurrency": 1}
    result = sweep(out, trials=3, **changes)
    records = {t.setting["rib.lr"]: result.records[t.key] for t in result.trials}
    assert {lr: r["status"] for lr, r in records.items()} == {0.003: "finished", 0.0001: "finished", 0.1: "stopped"}
    assert records[0.1]["share"] < 1 and records[0.1]["score"] < min(records[lr]["score"] for lr in (0.003, 0.0001)) and not result.failed
    assert not sweep(out, trials=3, **changes).computed, "what was stopped early is done"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("repeated", "at_once"), [("", 1), (", seeds=2, seeds_vary='rib'", 2)], ids=["one seed", "two seeds side by side"])
def test_a_killed_sweep_goes_on(tmp_path: Path, repeated: str, at_once: int) -> None:
    """SIGKILL after the first trial has ended: nothing finished is run again, nothing is lost, the second call has every trial once."""
    code = (
        "import sys; sys.path.insert(0, 'tests'); from pathlib import Path; from test_sweeping import sweep; "
        f"sweep(Path(sys.argv[1]), space=('rib.lr=0.001,0.002,0.003',), concurrency={at_once}{repeated}, "
        "**{'data.limit': 6, 'run.executor': 'ray', 'run.tracking_uri': ''})"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 300
    while not list((tmp_path / "out" / "trials").glob("*.json")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    assert process.poll() is None, "it ended before it was killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out" / "stages" / "maps").glob("*/manifest.json")}
    assert kept
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / "out" / "trials").glob("*.json"))) == 3 and not list((tmp_path / "out").glob(".tune-*"))
    finished = [r for r in by_parent(trials_of(tmp_path / "out"))[-1] if r.info.status == "FINISHED"]
    assert any("seedbed.found" in r.data.tags for r in finished) and sorted(r.data.params["rib.lr"] for r in finished) == [
        "0.001",
        "0.002",
        "0.003",
    ]


@pytest.mark.slow
def test_a_tracking_server_that_goes_away(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a sweep: said once, every trial finishes, and all of it is kept for the next start."""
    pytest.importorskip("mlflow")
    from test_tracking import kill, serve, unused_port

    from seedbed.runtime import mlflow_store
    from seedbed.sweeps.watch import Watch

    (tmp_path / "server").mkdir()
    mlflow_store.open_database(f"sqlite:///{tmp_path / 'server' / 'server.db'}", tmp_path / "server")
    port = unused_port()
    server, ended = serve(tmp_path / "server", port), Watch.ended

    def and_then_it_dies(self: Watch, *arguments: Any, **named: Any) -> None:
        ended(self, *arguments, **named)
        kill(server)

    monkeypatch.setattr(Watch, "ended", and_then_it_dies)
    uri = {"run.tracking_uri": f"http://127.0.0.1:{port}"}
    result = sweep(tmp_path / "out", space=("rib.lr=0.001,0.002,0.003",), **{"data.limit": 6}, **uri)
    assert len(result.computed) == 3 and not result.failed
    assert capsys.readouterr().err.count("does not take the record") == 1
    assert (tmp_path / "out" / "mlflow_pending.jsonl").exists()
    monkeypatch.setattr(Watch, "ended", ended)
    server = serve(tmp_path / "server", port)
    try:
        assert not sweep(tmp_path / "out", space=("rib.lr=0.001,0.002,0.003",), **{"data.limit": 6}, **uri).computed
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=uri["run.tracking_uri"])
        runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id], max_results=1000)
        calls = by_parent([r for r in runs if r.data.tags["seedbed.kind"] == "trial"])
        assert [sorted(r.data.params["rib.lr"] for r in call) for call in calls] == [["0.001", "0.002", "0.003"]] * 2
        assert {r.info.status for call in calls for r in call} == {"FINISHED"}
    finally:
        kill(server)
