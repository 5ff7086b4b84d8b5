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

from seedbed.runtime.sweep import _work, gpu_of_trial
from seedbed.sweeps.tables import PaperTable
from seedbed.sweeps.trials import Ledger, Trial

ROOT = Path(__file__).resolve().parents[2]


def trials_of(out: Path, name: str = "tiny") -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name(name).experiment_id], max_results=1000)
    return [r for r in found if r.data.tags["seedbed.kind"] == "trial"]


def test_share_of_a_gpu_by_measured_memory() -> None:
    gib = 1 << 30
    assert gpu_of_trial(10 * gib, 16, total=80 * gib) == pytest.approx(1 / 6, abs=1e-3), "6 x 11.5 fit in 80"
    assert gpu_of_trial(10 * gib, 3, total=80 * gib) == pytest.approx(1 / 3, abs=1e-3), "no more than are wanted"
    assert gpu_of_trial(70 * gib, 16, total=80 * gib) == 1.0 and gpu_of_trial(0, 16, total=80 * gib) == 1.0


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
    assert len(trials_of(tmp_path / "ray")) == 2, "a finished trial is not logged again"


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_that_fails_is_named(small_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = sweep(tmp_path / "out", space=("rib.lr=0.001,1.0",), **{"data.limit": 6, "rib.schedule": "constant"}, **RAY)
    assert len(result.computed) + len(result.failed) == 2 and len(result.computed) >= 1
    for why in result.failed.values():
        assert why in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
def test_optuna_goes_on_and_asha_stops(small_ray: None, tmp_path: Path) -> None:
    out, space = tmp_path / "out", ("rib.lr=0.0001:0.01:log", "rib.pooling=gap,gndrp")
    changes = {"search": "optuna", "space": space, "data.limit": 6, **RAY}
    assert len(sweep(out, trials=2, **changes).computed) == 2
    more = sweep(out, trials=3, **changes)
    assert len(more.computed) == 1 and len(more.trials) == 3, "two were found, one is chosen"
    assert not sweep(out, trials=3, **changes).computed
    random = {"search": "random", "space": ("rib.lr=0.0001:0.01:log",), "stop": "asha", "data.limit": 8, **RAY}
    result = sweep(out, trials=4, **random)
    states = [r["status"] for r in result.records.values()]
    assert not result.failed and len(states) == 4 and "finished" in states and set(states) <= {"finished", "stopped"}
    assert not sweep(out, trials=4, **random).computed, "what was stopped early is done"


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_sweep_goes_on(tmp_path: Path) -> None:
    """SIGKILL after the first trial has ended: nothing finished is run again, nothing is lost, MLflow has every trial once."""
    code = (
        "import sys; sys.path.insert(0, 'tests'); from pathlib import Path; from test_sweeping import sweep; "
        "sweep(Path(sys.argv[1]), space=('rib.lr=0.001,0.002,0.003',), concurrency=1, "
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
    finished = [r for r in trials_of(tmp_path / "out") if r.info.status == "FINISHED"]
    assert sorted(r.data.params["rib.lr"] for r in finished) == ["0.001", "0.002", "0.003"]


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
        trials = [r for r in runs if r.data.tags["seedbed.kind"] == "trial"]
        assert sorted(r.data.params["rib.lr"] for r in trials) == ["0.001", "0.002", "0.003"]
        assert {r.info.status for r in trials} == {"FINISHED"}
    finally:
        kill(server)
