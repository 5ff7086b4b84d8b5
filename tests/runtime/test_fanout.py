"""Per-image work over actors: the same records as the plain loop, and nothing lost when pictures, processes or nodes fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from seedbed.artefacts import Stage, column, stage_schema
from seedbed.local import LocalExecutor
from seedbed.runtime import fanout
from seedbed.runtime.fanout import block_size, map_images_on_ray
from seedbed.runtime.image_actor import KEPT, ImageActor, poisoned
from seedbed.types import UserError

SCHEMA = stage_schema(column("square", pa.int64()), column("text", pa.string()), column("process", pa.int64(), volatile=True))


@dataclass(frozen=True)
class Squares:
    """A work that does as it is told: fails, ends its process or dawdles at the named pictures."""

    light: ClassVar[bool] = False
    bad: tuple[str, ...] = ()
    crash: tuple[str, ...] = ()
    crash_once: str = ""
    """A file: the first process that comes to picture p0007 leaves it and ends."""
    seconds: float = 0.0
    refuse: bool = False

    def open(self) -> Callable[[str], dict[str, Any]]:
        if self.refuse:
            raise UserError("the weights are for 5 classes", field="--classifier.weights", remedy="name other weights")

        def compute(ident: str) -> dict[str, Any]:
            time.sleep(self.seconds)
            if ident in self.bad:
                raise ValueError(f"{ident} is\nno picture")
            if ident in self.crash:
                os._exit(3)
            if self.crash_once and ident == "p0007" and not Path(self.crash_once).exists():
                Path(self.crash_once).touch()
                os.kill(os.getpid(), signal.SIGSEGV)
            return {"id": ident, "square": int(ident[1:]) ** 2, "text": ident * 3, "process": os.getpid()}

        return compute


@dataclass(frozen=True)
class Heavy:
    """Records of 64 KiB, as predictions of large pictures are."""

    light: ClassVar[bool] = False

    def open(self) -> Callable[[str], dict[str, Any]]:
        return lambda ident: {"id": ident, "square": 1, "text": ident[-1] * (1 << 16), "process": 0}


class Shown:
    def __init__(self) -> None:
        self.done, self.aside, self.calls = 0, 0, 0

    def advance(self, n: int = 1, set_aside: int = 0) -> None:
        self.done, self.aside, self.calls = self.done + n, self.aside + set_aside, self.calls + 1


def ids(n: int) -> list[str]:
    return [f"p{i:04d}" for i in range(n)]


def stage(tmp_path: Path, name: str = "maps") -> Stage:
    return Stage(tmp_path, name, "k", SCHEMA)


def plain(tmp_path: Path, wanted: list[str], work: Squares) -> dict[str, Any]:
    """The manifest that the plain loop gives."""
    local = stage(tmp_path / "local")
    LocalExecutor(device="cpu", threads=1, workers=1, commit_every=256).map_images(work, wanted, local, Shown())
    return local.finish(computed=0, seconds=0)


@pytest.fixture(scope="module")
def ray_here(small_ray: None) -> Iterator[None]:
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import a test
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def grown(work: Callable[[], object]) -> int:
    """Bytes that a call holds at most: Python's and Arrow's own."""
    before, peak, done = pa.total_allocated_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, pa.total_allocated_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    tracemalloc.start()
    try:
        work()
        return peak + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        done.set()
        watcher.join()


# --- without Ray ----------------------------------------------------------------------------------------


def test_memory_of_the_plain_loop_is_flat(tmp_path: Path) -> None:
    """1,200 records of 64 KiB are 75 MiB; at work no more is held than a fragment, and when the stage is made whole some 256 records."""
    made, shown = stage(tmp_path), Shown()
    local = LocalExecutor(device="cpu", threads=1, workers=1, commit_every=16)
    local.map_images(Squares(), ids(1), stage(tmp_path, "seeds"), Shown())  # imports stay
    assert grown(lambda: local.map_images(Heavy(), ids(1200), made, shown)) < 5 << 20
    assert shown.done == 1200 == sum(1 for _ in made.records().columns("square"))
    assert grown(lambda: made.finish(computed=1200, seconds=0)) < 45 << 20


@pytest.mark.parametrize(
    ("n", "actors", "commit_every", "size"),
    [
        (1464, 4, 256, 45),
        (10_582, 4, 256, 256),
        (200_000, 64, 256, 256),
        (5, 8, 256, 1),
        (1000, 2, 1, 32),
        (100_000, 2, 1000, 1000),
        (0, 1, 1, 1),
    ],
)
def test_block_size(n: int, actors: int, commit_every: int, size: int) -> None:
    assert block_size(n, actors, commit_every) == size


def test_cuda_errors_poison_a_process() -> None:
    assert poisoned(RuntimeError("CUDA error: device-side assert triggered"))
    assert not poisoned(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")) and not poisoned(ValueError("no picture"))


def test_an_actor_commits_while_it_works(tmp_path: Path) -> None:
    """Without Ray: what an actor has answered as kept is on disk, and with --run.commit-every 1 every picture is, at once."""
    out = stage(tmp_path)
    out.folder.mkdir(parents=True)
    actor = ImageActor(Squares(), out, threads=1, commit_every=1, alone=False)
    before = len(list(out.folder.glob("*.arrow")))
    (answer,) = list(actor(pa.table({"ids": [ids(5)]})))
    assert before == 0 and len(list(out.folder.glob("*.arrow"))) == 5
    states = dict(zip(answer["ids"][0].as_py(), answer["states"][0].as_py(), strict=True))
    assert set(states.values()) == {KEPT} and len(out.records()) == 5


def test_an_actor_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    actor = ImageActor(Squares(), stage(tmp_path), threads=1, commit_every=1, alone=False)
    (answer,) = list(actor(pa.table({"ids": [ids(2)]})))
    assert answer["ids"][0].as_py() == [] and answer["error"][0].as_py() is not None


def test_a_full_disk_is_not_the_pictures_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    out = stage(tmp_path)
    out.folder.mkdir(parents=True)
    actor = ImageActor(Squares(), out, threads=1, commit_every=2, alone=False)

    def full(*_: object) -> None:
        raise UserError("fragment can't be written: no space left on device", remedy="make room")

    monkeypatch.setattr("seedbed.artefacts.fragments.write_table", full)
    *_, answer = list(actor(pa.table({"ids": [ids(5)]})))
    with pytest.raises(UserError, match="no space left"):
        raise pickle.loads(answer["error"][0].as_py())
    assert not out.set_aside_reasons()


# --- with Ray -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.ray
def test_the_drivers_memory_is_flat(tmp_path: Path, ray_here: None) -> None:
    """What actors make does not come by the driver: 75 MiB of records, of which it hears the ids."""
    map_images_on_ray(Squares(), ids(8), stage(tmp_path, "seeds"), actors=1)  # imports stay
    made = stage(tmp_path)
    assert grown(lambda: map_images_on_ray(Heavy(), ids(1200), made, actors=2, commit_every=16)) < 15 << 20
    assert len(made.records()) == 1200


@pytest.mark.ray
def test_same_records_as_the_plain_loop(tmp_path: Path, ray_here: None) -> None:
    """What the plain loop began Ray ends; pictures that raise are set aside with the same reason; a second call does nothing."""
    work, shown = Squares(bad=("p0003", "p0060")), Shown()
    out, wanted = stage(tmp_path), ids(100)
    assert LocalExecutor(device="cpu", threads=1, workers=1, commit_every=256).map_images(work, wanted[:40], out, Shown()) == 39
    assert map_images_on_ray(work, wanted, out, actors=2, commit_every=8, progress=shown) == 59
    assert (shown.done, shown.aside) == (59, 1)
    assert map_images_on_ray(work, wanted, out, actors=2) == 0
    done = out.finish(computed=59, seconds=0)
    expected = plain(tmp_path, wanted, work)
    assert done["digest"] == expected["digest"] and done["count"] == 98
    assert done["set_aside"] == expected["set_aside"] and [a["id"] for a in done["set_aside"]] == ["p0003", "p0060"]
    assert not list(out.folder.glob(".trying-*"))


@pytest.mark.slow
@pytest.mark.ray
def test_a_work_that_cannot_be_opened_ends_the_run(tmp_path: Path, ray_here: None) -> None:
    with pytest.raises(UserError, match="5 classes") as caught:
        map_images_on_ray(Squares(refuse=True), ids(20), stage(tmp_path), actors=2)
    assert caught.value.field == "--classifier.weights" and not stage(tmp_path).set_aside_reasons()


@pytest.mark.slow
@pytest.mark.ray
def test_a_picture_that_ends_its_process_costs_nobody_elses_work(tmp_path: Path, ray_here: None) -> None:
    """p0007 ends one process only: it is done in the end. p0020 ends every process: set aside. All others are there."""
    work = Squares(bad=("p0050",), crash=("p0020",), crash_once=str(tmp_path / "mark"))
    out, shown = stage(tmp_path), Shown()
    computed = map_images_on_ray(work, ids(96), out, actors=2, progress=shown)
    done = out.finish(computed=computed, seconds=0)
    assert {a["id"] for a in done["set_aside"]} == {"p0020", "p0050"} and done["count"] == computed == 94
    assert "ended 2 times" in done["set_aside"][0]["reason"]
    assert (shown.done, shown.aside) == (94, 2), "a picture that was done again is shown once"
    left = [i for i in ids(96) if i not in ("p0020",)]
    assert done["digest"] == plain(tmp_path, left, Squares(bad=("p0050",)))["digest"]


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_actor_costs_nothing(tmp_path: Path, ray_here: None) -> None:
    """SIGKILL from outside, in the middle: done again, recorded once, nobody set aside."""
    out = stage(tmp_path)
    killed: list[int] = []

    def killer() -> None:
        while not killed:
            time.sleep(0.05)
            for path in out.folder.glob("fragment-*.arrow"):
                with pa.memory_map(str(path)) as source:
                    killed[:] = pa.ipc.open_file(source).read_all()["process"].to_pylist()[:1]
                os.kill(killed[0], signal.SIGKILL)
                return

    thread = threading.Thread(target=killer, daemon=True)
    thread.start()
    assert map_images_on_ray(Squares(seconds=0.05), ids(120), out, actors=2, commit_every=2) == 120
    thread.join(10)
    assert killed
    done = out.finish(computed=120, seconds=0)
    assert done["set_aside"] == [] and done["digest"] == plain(tmp_path, ids(120), Squares())["digest"]


@pytest.mark.slow
@pytest.mark.ray
def test_workers_that_never_survive_end_the_run(tmp_path: Path, ray_here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "BLOCKS_PER_ACTOR", 2)
    with pytest.raises(UserError, match="end before their first record"):
        map_images_on_ray(Squares(crash=tuple(ids(4))), ids(4), stage(tmp_path), actors=2)
    assert not stage(tmp_path).set_aside_reasons()


TWO_NODES = """
import sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
import ray
sys.path.insert(0, sys.argv[2])
import test_fanout as t
from seedbed.runtime.cluster import connect
from seedbed.runtime.fanout import map_images_on_ray

out = Path(sys.argv[1])
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 << 20})
second = nodes.add_node(num_cpus=1, object_store_memory=100 << 20)
nodes.wait_for_nodes()
import os
os.environ["RAY_ADDRESS"] = nodes.address
ray.cloudpickle.register_pickle_by_value(t)
with connect(out, actors=2, say=lambda text: None) as found:
    assert found.nodes == 2 and not found.own, found
    stage = t.stage(out)

    def remove():
        while len(set(r["process"] for r in stage.records())) < 2:
            time.sleep(0.1)
        gone.append(len(stage.records()))
        nodes.remove_node(second, allow_graceful=False)

    gone = []
    thread = threading.Thread(target=remove)
    thread.start()
    shown = t.Shown()
    computed = map_images_on_ray(t.Squares(seconds=0.1), t.ids(200), stage, actors=2, commit_every=2, progress=shown)
    thread.join()
    assert gone and gone[0] < 190, f"{gone}: the node did not go in the middle"
    assert sum(n["Alive"] for n in ray.nodes()) == 1
    done = stage.finish(computed=computed, seconds=0)
    print(computed, shown.done, done["count"], done["set_aside"], done["digest"])
nodes.shutdown()
"""


@pytest.mark.slow
@pytest.mark.ray
def test_a_node_that_goes_in_the_middle(tmp_path: Path) -> None:
    """Two nodes in one machine, one removed: its pictures are done elsewhere, nothing is lost, nothing set aside."""
    with tempfile.TemporaryDirectory(prefix="two-", dir="/tmp") as short:  # a folder of its own: nobody else finds this cluster by chance
        run = subprocess.run(
            [sys.executable, "-c", TWO_NODES, str(tmp_path), str(Path(__file__).parent)],
            capture_output=True,
            text=True,
            timeout=400,
            env={**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": short},
        )
    assert run.returncode == 0, run.stderr[-4000:]
    expected = plain(tmp_path, ids(200), Squares())
    *_, last = run.stdout.splitlines()
    assert last.split() == ["200", "200", "200", "[]", expected["digest"]], run.stdout + run.stderr[-2000:]


INTERRUPTED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_fanout as t
from seedbed.runtime.cluster import connect
from seedbed.runtime.fanout import map_images_on_ray
from seedbed.study import reported_errors

out = Path(sys.argv[1])
with reported_errors(), connect(out, actors=2):
    import ray
    ray.cloudpickle.register_pickle_by_value(t)
    print(map_images_on_ray(t.Squares(seconds=float(sys.argv[3])), t.ids(60), t.stage(out), actors=2, commit_every=1))
"""


def driver(tmp_path: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path), str(Path(__file__).parent), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
    )


@pytest.mark.slow
@pytest.mark.ray
def test_interrupted_and_started_again(tmp_path: Path) -> None:
    """Ctrl-C as a terminal sends it, to the whole process group: status 130, one line, and the next call does what is missing."""
    first = driver(tmp_path, 0.5)
    while len(list(stage(tmp_path).folder.glob("fragment-*.arrow"))) < 3:
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGINT)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 130 and out == "" and err.startswith("interrupted") and err.count("\n") == 1, out + err
    kept = len(stage(tmp_path).records())
    assert 3 <= kept < 60 and not stage(tmp_path).set_aside_reasons()
    second = driver(tmp_path, 0)
    out, err = second.communicate(timeout=120)
    assert (second.returncode, out, err) == (0, f"{60 - kept}\n", "")
    assert stage(tmp_path).finish(computed=0, seconds=0)["digest"] == plain(tmp_path, ids(60), Squares())["digest"]
