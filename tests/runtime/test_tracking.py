"""The record in MLflow, with real sqlite stores and a real server that is killed in mid-run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlflow")

from seedbed.runtime import mlflow_store
from seedbed.runtime.mlflow_ui import free, newest_experiment
from seedbed.runtime.tracking import PARAM_LIMIT, MlflowTracker, cut, open_ui, safe_name, safe_params
from seedbed.types import UserError


@pytest.fixture(autouse=True)
def no_tracking_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def made_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database, copied by the tests: making one takes seconds."""
    out = tmp_path_factory.mktemp("mlflow-made")
    mlflow_store.open_database(mlflow_store.default_address(out), out)
    return out / "mlflow.db"


@pytest.fixture
def out(tmp_path: Path, made_database: Path) -> Path:
    folder = tmp_path / "runs" / "with space"
    folder.mkdir(parents=True)
    shutil.copy(made_database, folder / "mlflow.db")
    return folder


def runs(out: Path, uri: str = "") -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri or mlflow_store.default_address(out))
    found = client.search_experiments()
    return client.search_runs([e.experiment_id for e in found], max_results=1000, order_by=["attributes.start_time ASC"])


def by_kind(found: list[Any], kind: str) -> list[Any]:
    return [r for r in found if r.data.tags.get("seedbed.kind") == kind]


def small_study(tracker: MlflowTracker, after_first: Callable[[], None] = lambda: None) -> None:
    tracker.start("voc_rib", "a name", {"rib.tau": 0.4, "rib.scales": [1.0, 0.5]}, {"seedbed.key": "abc", "seedbed.method": "rib"})
    child = tracker.stage("classifier 0", {"seedbed.stage": "classifier", "seedbed.seed": "0"})
    for step in range(5):
        tracker.log({"train/bce": 1.0 / (step + 1)}, step=step, child=child)
    tracker.end_stage(child)
    after_first()
    child = tracker.stage("seeds rib 0", {"seedbed.stage": "seeds"})
    tracker.log({"seed/train/IoU/potted plant": 31.5}, child=child)
    tracker.end_stage(child)
    (tracker.out / "report.html").write_text("<html>")
    tracker.artifact(tracker.out / "report.html")
    tracker.log({"seed/train/mIoU": 56.4})
    tracker.end()


def check_small_study(out: Path, found: list[Any]) -> None:
    (parent,), children = by_kind(found, "study"), by_kind(found, "stage")
    assert parent.info.run_name == "a name" and parent.data.params == {"rib.tau": "0.4", "rib.scales": "[1.0, 0.5]"}
    assert parent.data.metrics == {"seed/train/mIoU": 56.4}
    assert parent.data.tags["seedbed.key"] == "abc" and parent.data.tags["mlflow.user"]
    assert [c.data.tags["seedbed.stage"] for c in children] == ["classifier", "seeds"]
    assert {c.data.tags["mlflow.parentRunId"] for c in children} == {parent.info.run_id}
    assert children[0].data.metrics == {"train/bce": 0.2} and children[1].data.metrics == {"seed/train/IoU/potted plant": 31.5}
    assert {r.info.status for r in found} == {"FINISHED"} and all(r.info.end_time >= r.info.start_time for r in found)


def test_a_study_in_the_folders_own_database(out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    small_study(MlflowTracker(out, say=said.append))
    check_small_study(out, runs(out))
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=mlflow_store.default_address(out))
    parent, child = by_kind(runs(out), "study")[0].info, by_kind(runs(out), "stage")[0].info
    assert [f.path for f in client.list_artifacts(parent.run_id)] == ["report.html"]
    assert (out / "mlartifacts" / "voc_rib" / parent.run_id / "artifacts" / "report.html").exists()
    assert [m.step for m in client.get_metric_history(child.run_id, "train/bce")] == [0, 1, 2, 3, 4]
    assert not said and capfd.readouterr() == ("", ""), "mlflow or we have chattered"
    assert not (out / "mlflow_pending.jsonl").exists() and not (out / ".mlflow_open.json").exists()


def test_git_commit_is_mlflows_own_tag(out: Path) -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    if not commit:
        pytest.skip("not a git checkout")
    tracker = MlflowTracker(out)
    tracker.start("e", None, {}, {})
    tracker.end()
    assert runs(out)[0].data.tags["mlflow.source.git.commit"] == commit


def test_what_is_not_finite_is_named_and_not_plotted(out: Path) -> None:
    tracker = MlflowTracker(out)
    tracker.start("e", None, {}, {})
    tracker.log({"loss": float("nan"), "good": 1}, step=7)
    tracker.log({"loss": float("inf")}, step=8)
    tracker.log({"loss": 2.0}, step=9)
    tracker.end("FAILED")
    (run,) = runs(out)
    assert run.data.metrics == {"loss": 2.0, "good": 1.0} and run.info.status == "FAILED"
    assert run.data.tags["seedbed.not_finite.loss"] == "nan at step 7"


def test_long_and_odd_params_are_taken(out: Path) -> None:
    params = {"a&b": 1, "a+b": 2, "../x": 3, "long": "y" * 20_000, "longer": "y" * 20_001, **{f"n{i}": i for i in range(250)}}
    said: list[str] = []
    tracker = MlflowTracker(out, say=said.append)
    tracker.start("e", None, params, {"seedbed.note": "z" * 20_000})
    tracker.end()
    found = runs(out)[0].data.params
    assert not said and len(found) == len(params)
    assert found["a_b"] == "1" and found["a_b_"] == "2"
    assert len(found["long"]) == PARAM_LIMIT and found["long"] != found["longer"]


@pytest.mark.parametrize(
    ("name", "safe"), [("IoU:cat", "IoU:cat"), ("a&b", "a_b"), ("/x//y/", "x/_/y"), ("..", "_"), ("é", "é"), ("", "_")]
)
def test_safe_name(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_cut_keeps_differences() -> None:
    assert cut("short", 100) == "short"
    assert len(cut("x" * 101, 100)) == 100 and cut("x" * 101, 100) != cut("x" * 102, 100)
    assert set(safe_params({"a&": 1, "a+": 2, "a_": 3}).values()) == {"1", "2", "3"}


def test_killed_driver_is_marked_and_others_are_not(out: Path, tmp_path: Path) -> None:
    """Two folders log to one database; one of their drivers is killed and started again."""
    uri = f"sqlite:///{out / 'mlflow.db'}"
    alive = MlflowTracker(tmp_path / "alive", uri)
    alive.start("e", "alive", {}, {})
    killed = MlflowTracker(tmp_path / "killed", uri)
    killed.start("e", "killed", {}, {})
    killed.stage("maps", {})
    again = MlflowTracker(tmp_path / "killed", uri)
    again.start("e", "again", {}, {})
    status = {r.info.run_name: r.info.status for r in runs(out)}
    assert status == {"alive": "RUNNING", "killed": "KILLED", "maps": "KILLED", "again": "RUNNING"}
    again.end()
    alive.end()
    assert {r.info.status for r in runs(out)} == {"KILLED", "FINISHED"}


def test_a_moved_folder_finds_its_artifacts(out: Path) -> None:
    from mlflow.tracking import MlflowClient

    small_study(MlflowTracker(out))
    moved = out.parent / "moved #1"
    out.rename(moved)
    small_study(MlflowTracker(moved))
    client = MlflowClient(tracking_uri=mlflow_store.default_address(moved))
    found = by_kind(runs(moved), "study")
    assert len(found) == 2
    for run in found:
        assert Path(client.download_artifacts(run.info.run_id, "report.html")).read_text() == "<html>"
    assert not out.exists(), "something was written where the folder once was"


def test_addresses_elsewhere_are_left_alone(out: Path) -> None:
    with closing(sqlite3.connect(out / "mlflow.db")) as base, base:
        base.execute("INSERT INTO experiments (name, artifact_location, workspace) VALUES ('s3', 's3://bucket/mlartifacts/1', 'default')")
    mlflow_store.mend_moved(out / "mlflow.db")
    with closing(sqlite3.connect(out / "mlflow.db")) as base:
        addresses = dict(base.execute("SELECT name, artifact_location FROM experiments"))
    assert addresses["s3"] == "s3://bucket/mlartifacts/1"
    assert addresses["Default"].startswith((out / "mlartifacts").as_uri())


PROCESS = """
import sys
from pathlib import Path
from seedbed.runtime.tracking import MlflowTracker
uri, out = sys.argv[1:]
t = MlflowTracker(Path(out), uri)
t.start("shared", Path(out).name, {"a": 1}, {})
for step in range(100):
    t.log({"loss": step}, step=step)
t.end()
assert not (Path(out) / "mlflow_pending.jsonl").exists()
"""


@pytest.mark.slow
def test_several_processes_at_once(tmp_path: Path) -> None:
    """They find no database: one makes it, and no run and no metric is lost."""
    uri = f"sqlite:///{tmp_path / 'shared' / 'mlflow.db'}"
    started = [
        subprocess.Popen([sys.executable, "-c", PROCESS, uri, str(tmp_path / f"p{i}")], stderr=subprocess.PIPE, text=True) for i in range(4)
    ]
    for process in started:
        _, err = process.communicate(timeout=180)
        assert process.returncode == 0 and not err, err
    found = runs(tmp_path, uri)
    assert sorted(r.info.run_name for r in found) == ["p0", "p1", "p2", "p3"]
    assert len({r.info.experiment_id for r in found}) == 1 and all(r.data.metrics["loss"] == 99 for r in found)
    with closing(sqlite3.connect(tmp_path / "shared" / "mlflow.db")) as base:
        assert base.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert base.execute("SELECT count(*) FROM metrics").fetchone() == (400,)
    assert not list((tmp_path / "shared").glob(".*.tmp*"))


# --- addresses -----------------------------------------------------------------------------------------


def test_address_of_the_command_line_stands_above_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mlflow_store.tracking_address(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there:5000")
    assert mlflow_store.tracking_address(tmp_path) == "http://there:5000"
    assert mlflow_store.tracking_address(tmp_path, "http://here:1") == "http://here:1"
    monkeypatch.chdir(tmp_path)
    assert mlflow_store.tracking_address(tmp_path, "sqlite:///x.db") == f"sqlite:///{tmp_path}/x.db", "relative to some process's folder"


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "sqlite://", "sqlite:///"])
def test_addresses_that_cannot_be(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UserError) as caught:
        MlflowTracker(tmp_path, uri)
    assert caught.value.field == "--run.tracking-uri" and "sqlite:///" in caught.value.remedy


MOUNTS = """/dev/vda / ext4 rw 0 0
server:/export /mnt/shared nfs4 rw 0 0
server:/b /mnt/with\\040space nfs rw 0 0
tmpfs /mnt/shared/fast tmpfs rw 0 0
//smb/share /mnt/win cifs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/mnt/shared/runs", "nfs4"),
        ("/mnt/sharedother", "ext4"),
        ("/mnt/with space/x", "nfs"),
        ("/mnt/shared/fast/x", "tmpfs"),
        ("/x", "ext4"),
    ],
)
def test_file_system_of_a_path(path: str, kind: str) -> None:
    assert mlflow_store.file_system(Path(path), MOUNTS) == kind


def test_sqlite_on_nfs_is_refused() -> None:
    for folder in ("/mnt/shared/runs", "/mnt/win"):
        with pytest.raises(UserError, match="sqlite files get damaged") as caught:
            mlflow_store.refuse_network_file_system(Path(folder) / "mlflow.db", "--out", MOUNTS)
        assert "--run.tracking-uri" in caught.value.remedy
    mlflow_store.refuse_network_file_system(Path("/mnt/shared/fast/mlflow.db"), "--out", MOUNTS)


def test_a_damaged_database_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(os.urandom(4096))
    with pytest.raises(UserError, match=r"mlflow\.db can't be read"):
        MlflowTracker(tmp_path).start("e", None, {}, {})


# --- a server that goes away -----------------------------------------------------------------------------


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve(folder: Path, port: int) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "artifacts")]
    environment = {**mlflow_store.SETTINGS, **os.environ}
    with open(folder / "log.txt", "a") as log:
        server = subprocess.Popen(command + store, stdout=log, stderr=log, start_new_session=True, env=environment, cwd=folder)
    until = time.monotonic() + 120
    while free(port):
        assert server.poll() is None and time.monotonic() < until, (folder / "log.txt").read_text()[-2000:]
        time.sleep(0.2)
    return server


def kill(server: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@pytest.fixture
def port(tmp_path: Path, made_database: Path) -> Iterator[int]:
    (tmp_path / "server").mkdir()
    shutil.copy(made_database, tmp_path / "server" / "server.db")
    yield unused_port()


def test_server_down_from_the_start(tmp_path: Path) -> None:
    """Nothing listens: said once, kept in the folder, within seconds."""
    said: list[str] = []
    began = time.monotonic()
    small_study(MlflowTracker(tmp_path, f"http://127.0.0.1:{unused_port()}", say=said.append))
    assert time.monotonic() - began < 15
    assert len(said) == 2 and "goes on" in said[0] and "next start" in said[1]
    events = [json.loads(line) for line in (tmp_path / "mlflow_pending.jsonl").read_text().splitlines()]
    assert [e["do"] for e in events].count("run") == 3 and events[-1]["do"] == "end"


@pytest.mark.slow
def test_server_killed_in_mid_run_and_back_at_the_end(tmp_path: Path, port: int) -> None:
    servers = [serve(tmp_path / "server", port)]
    uri, out = f"http://127.0.0.1:{port}", tmp_path / "out"
    said: list[str] = []
    try:

        class Tracker(MlflowTracker):
            def artifact(self, path: Path, child: str | None = None) -> None:
                super().artifact(path, child)
                if len(servers) == 1:
                    servers.append(serve(tmp_path / "server", port))

        began = time.monotonic()
        small_study(Tracker(out, uri, say=said.append), after_first=lambda: kill(servers[0]))
        assert time.monotonic() - began < 120
        assert len(said) == 2 and "goes on" in said[0] and "delivered" in said[1], said
        check_small_study(out, runs(out, uri))
        assert not (out / "mlflow_pending.jsonl").exists()
        from mlflow.tracking import MlflowClient

        parent = by_kind(runs(out, uri), "study")[0].info
        assert [f.path for f in MlflowClient(tracking_uri=uri).list_artifacts(parent.run_id)] == ["report.html"]
    finally:
        for server in servers:
            kill(server)


@pytest.mark.slow
def test_kept_record_is_delivered_at_the_next_start(tmp_path: Path, port: int) -> None:
    """The driver is killed too while the server is away: its runs end as KILLED, once each."""
    server = serve(tmp_path / "server", port)
    uri, out = f"http://127.0.0.1:{port}", tmp_path / "out"
    try:
        first = MlflowTracker(out, uri, say=lambda _: None)
        first.start("voc_rib", "first", {"a": 1}, {})
        child = first.stage("maps", {})
        kill(server)
        first.log({"loss": 1.0}, child=child)
        first.end_stage(child)
        first.stage("never created there", {})
        with open(out / "mlflow_pending.jsonl", "a") as sink:
            sink.write('{"do": "metr')  # the driver dies while it writes
        server = serve(tmp_path / "server", port)
        second = MlflowTracker(out, uri)
        second.start("voc_rib", "second", {"a": 1}, {})
        second.end()
        found = {r.info.run_name: r for r in runs(out, uri)}
        assert len(runs(out, uri)) == 4
        assert {n: r.info.status for n, r in found.items()} == {
            "first": "KILLED",
            "maps": "FINISHED",
            "never created there": "KILLED",
            "second": "FINISHED",
        }
        assert found["maps"].data.metrics == {"loss": 1.0}
        assert not (out / "mlflow_pending.jsonl").exists() and not (out / ".mlflow_open.json").exists()
    finally:
        kill(server)


def test_ui_needs_a_record(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no mlflow\.db"):
        open_ui(tmp_path, unused_port())


@pytest.mark.slow
def test_ui_shows_the_runs(out: Path) -> None:
    import urllib.request

    small_study(MlflowTracker(out))
    port = unused_port()
    command = (
        "import sys; from pathlib import Path; from seedbed.runtime.tracking import open_ui; open_ui(Path(sys.argv[1]), int(sys.argv[2]))"
    )
    ui = subprocess.Popen([sys.executable, "-c", command, str(out), str(port)], stdout=subprocess.PIPE, text=True)
    try:
        assert ui.stdout is not None
        line = ui.stdout.readline()
        assert f"http://127.0.0.1:{port}/#/experiments/{newest_experiment(out / 'mlflow.db')}/runs" in line
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as page:
            assert b"MLflow" in page.read()
    finally:
        ui.send_signal(signal.SIGINT)
        assert ui.wait(timeout=60) == 0
    assert free(port), "the server goes on without us"
