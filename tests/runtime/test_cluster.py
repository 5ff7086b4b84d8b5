"""Where Ray is: whose cluster is joined, what is refused, what is waited for, and that nothing is left running."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seedbed.runtime import cluster, nodes
from seedbed.types import UserError

MINE = os.getuid()


@pytest.fixture(autouse=True)
def no_ray_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def head_note(tmp_path: Path, address: str) -> Path:
    (tmp_path / "ray").mkdir()
    note = tmp_path / "ray" / "ray_current_cluster"
    note.write_text(address)
    return note


# --- whose cluster --------------------------------------------------------------------------------------


def test_without_any_cluster_an_own_ray_is_started() -> None:
    assert cluster.find_cluster() is None


def test_named_cluster_is_joined(monkeypatch: pytest.MonkeyPatch, listening: int) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listening}")
    assert cluster.find_cluster() == f"127.0.0.1:{listening}"


def test_local_means_an_own_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listening: int) -> None:
    head_note(tmp_path, f"127.0.0.1:{listening}")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert cluster.find_cluster() is None


@pytest.mark.parametrize(
    ("address", "word"), [("127.0.0.1:1", "no Ray answers"), ("ray://h:10001", "client protocol"), ("auto", "no head node")]
)
def test_addresses_that_cannot_be(monkeypatch: pytest.MonkeyPatch, address: str, word: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    with pytest.raises(UserError, match=word) as caught:
        cluster.find_cluster()
    assert caught.value.field == "RAY_ADDRESS" and time.monotonic() - began < 10


def test_own_head_node_is_joined(tmp_path: Path, listening: int) -> None:
    head_note(tmp_path, f"127.0.0.1:{listening}")
    assert cluster.find_cluster() == f"127.0.0.1:{listening}"


def test_head_node_that_died_is_not(tmp_path: Path, listening: int) -> None:
    head_note(tmp_path, "127.0.0.1:1")
    assert cluster.find_cluster() is None


def test_head_node_of_another_user_is_not(tmp_path: Path, listening: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our note of a head that died, and at its port now the head of somebody else."""
    head_note(tmp_path, f"127.0.0.1:{listening}")
    monkeypatch.setattr(cluster, "listeners", lambda port: {MINE + 1})
    assert cluster.find_cluster() is None


@pytest.mark.skipif(MINE != 0, reason="only root can give a file away")
def test_note_of_another_user_is_not_read(tmp_path: Path, listening: int) -> None:
    os.chown(head_note(tmp_path, f"127.0.0.1:{listening}"), 12345, -1)
    assert cluster.find_cluster() is None


def test_listeners_of_a_port(listening: int) -> None:
    assert cluster.listeners(listening) == {MINE}
    assert cluster.listeners(1) == set()


# --- what a cluster offers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("actors", "gpus", "share"), [(1, 1, 1.0), (1, 4, 1.0), (4, 4, 1.0), (4, 2, 0.5), (3, 2, 0.5), (3, 1, 0.3333), (8, 1, 0.125)]
)
def test_actors_share_gpus(actors: int, gpus: int, share: float) -> None:
    assert nodes.gpu_share(actors, gpus) == share
    assert actors * nodes.gpu_share(actors, gpus) <= max(actors, gpus)
    per_gpu = -(-actors // gpus)
    assert per_gpu * share <= 1, "actors that should share a GPU do not fit on it"


def test_bundles_fit_on_nodes() -> None:
    two = [{"CPU": 4.0}, {"CPU": 4.0, "GPU": 1.0}]
    assert nodes.fits([], two) and nodes.fits([{"CPU": 3.0}] * 2, two) and nodes.fits([{"CPU": 1.0, "GPU": 0.25}] * 4, two)
    assert not nodes.fits([{"CPU": 3.0}] * 3, two), "two halves of different nodes are no place"
    assert not nodes.fits([{"CPU": 1.0, "GPU": 0.25}] * 5, two) and not nodes.fits([{"CPU": 1.0}], [])


class Autoscaler:
    """Stands for a cluster with workers from zero: a GPU node comes some polls after it was asked for."""

    def __init__(self, comes_after: float) -> None:
        self.comes_after, self.polls = comes_after, 0
        self.asked: list[list[dict[str, float]]] = []

    def totals(self) -> list[dict[str, float]]:
        self.polls += 1
        return [{"CPU": 2.0}] + [{"CPU": 8.0, "GPU": 1.0}] * (self.polls > self.comes_after)


@pytest.fixture
def autoscaler(monkeypatch: pytest.MonkeyPatch) -> Autoscaler:
    sdk = pytest.importorskip("ray.autoscaler.sdk")
    scaler = Autoscaler(3)
    monkeypatch.setattr(sdk, "request_resources", lambda bundles: scaler.asked.append(bundles))
    monkeypatch.setattr(nodes, "alive_totals", scaler.totals)
    monkeypatch.setattr(nodes, "offered", lambda: {"CPU": 8.0, "GPU": 4.0})
    return scaler


NEED: list[dict[str, float]] = [{"CPU": 1.0, "GPU": 0.5}]


def test_nodes_are_asked_for_and_waited_for(autoscaler: Autoscaler) -> None:
    said: list[str] = []
    nodes.await_resources(NEED, NEED * 2, 60, said.append, poll=0.01)
    assert autoscaler.asked == [NEED * 2, []]
    assert "waiting for nodes: 2 x (1 CPU + 0.5 GPU)" in said[0] and "there after" in said[-1]


def test_waiting_has_a_deadline(autoscaler: Autoscaler) -> None:
    autoscaler.comes_after = float("inf")
    with pytest.raises(UserError, match="did not offer") as caught:
        nodes.await_resources(NEED, NEED * 2, 0.05, lambda _: None, poll=0.01)
    assert "ray status" in caught.value.remedy and autoscaler.asked[-1] == [], "the request stands and would start nodes for nobody"


def test_what_no_node_can_have_is_not_waited_for(autoscaler: Autoscaler) -> None:
    for bundles in ([{"CPU": 64.0}], [{"CPU": 4.0}] * 3):
        with pytest.raises(UserError, match="neither has nor can start"):
            nodes.await_resources(bundles, bundles, 60, lambda _: None)
    assert not autoscaler.asked


def test_what_is_there_is_not_waited_for(autoscaler: Autoscaler) -> None:
    nodes.await_resources([{"CPU": 2.0}], [{"CPU": 2.0}] * 8, 60, pytest.fail)


def test_cuda_without_any_is_said_at_once(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    began = time.monotonic()
    with pytest.raises(UserError, match="cuda") as caught, cluster.connect(tmp_path, device="cuda"):
        pytest.fail("connected")
    assert caught.value.field == "--run.device" and time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("message", "starts", "word"), [("The current node timed out during startup.", 3, "timed out"), ("no such file", 1, "no such file")]
)
def test_own_ray_that_does_not_come_up(monkeypatch: pytest.MonkeyPatch, message: str, starts: int, word: str) -> None:
    ray = pytest.importorskip("ray")
    tried: list[dict[str, Any]] = []

    def init(**options: Any) -> None:
        tried.append(options)
        raise RuntimeError(message + "\nmore")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(UserError, match=f"Ray can't be started on this machine: .*{word}") as caught:
        cluster._start(None, 3, "cpu")
    assert len(tried) == starts and "--run.executor local" in caught.value.remedy
    assert tried[0]["num_cpus"] == 3 and tried[0]["include_dashboard"] is False and tried[0]["address"] == "local"


# --- nodes ----------------------------------------------------------------------------------------------


def test_node_that_sees_the_folder_and_has_the_same_code_is_taken(tmp_path: Path) -> None:
    nodes.refuse_node("n", tmp_path, nodes.node_view(str(tmp_path)))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"sees": False}, "local to one node"),
        ({"seedbed": "0.0"}, "seedbed 0.0"),
        ({"torch": "1.0"}, "torch 1.0"),
        ({"sources": "abc"}, "sources abc"),
    ],
)
def test_other_nodes_are_refused(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        nodes.refuse_node("n", tmp_path, {**nodes.node_view(str(tmp_path)), **change})


# --- an own Ray -----------------------------------------------------------------------------------------

OWN = """
import os, sys, time
from pathlib import Path
from seedbed.runtime.cluster import connect
from seedbed.study import reported_errors
with reported_errors(), connect(Path(sys.argv[1]), actors=2, device="auto") as found:
    import ray
    assert found.own and found.nodes == 1 and found.device in ("cpu", "cuda"), found
    assert ray.get(ray.put(1)) == 1
    print("connected", flush=True)
    if sys.argv[2:] == ["wait"]:
        time.sleep(600)
"""


def own_ray(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment["HOME"] = str(tmp_path)
    return subprocess.Popen(
        [sys.executable, "-c", OWN, str(tmp_path), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def of_session(leader: int) -> list[str]:
    """Commands of the living processes that a session leader has left, whatever became of their parents."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                command = (entry / "cmdline").read_text().replace("\0", " ").strip()[:100]
                # After a kill -9 Ray's two agents try for a minute to tell the dead head about it, and go then.
                if int(fields[3]) == leader and fields[0] != "Z" and command not in ("ray::DashboardAgent", "ray::RuntimeEnvAgent"):
                    found.append(command)
            except (OSError, IndexError):
                continue
    return found


def gone(leader: int, seconds: float = 60) -> bool:
    until = time.monotonic() + seconds
    while of_session(leader) and time.monotonic() < until:
        time.sleep(0.2)
    return not of_session(leader)


@pytest.mark.slow
@pytest.mark.ray
def test_own_ray_is_quiet_private_and_gone_afterwards(tmp_path: Path) -> None:
    process = own_ray(tmp_path)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (0, "connected\n", "")
    assert not (tmp_path / ".ray").exists(), "a token was written to the home folder"
    assert gone(process.pid), of_session(process.pid)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(("end", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_nothing_is_left_running(tmp_path: Path, end: signal.Signals, status: int) -> None:
    """Ctrl-C reaches the whole process group, as a terminal sends it; a kill reaches the driver alone."""
    process = own_ray(tmp_path, "wait")
    assert process.stdout is not None
    assert process.stdout.readline() == "connected\n"
    if end == signal.SIGINT:
        os.killpg(process.pid, end)
    else:
        process.kill()
    _, err = process.communicate(timeout=60)
    assert process.returncode == status and "Traceback" not in err, err
    assert gone(process.pid), of_session(process.pid)
