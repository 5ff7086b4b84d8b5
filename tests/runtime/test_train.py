"""Training on Ray: the same bits as without it, and what becomes of lost workers. Each case starts workers, some ten seconds."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import tiny_task
from tiny_task import TinyTask, same_bits

from seedbed import loop
from seedbed.loop import checkpoint
from seedbed.types import UserError

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def on_ray(small_ray: None) -> Any:
    """`train_on_ray` for tasks whose class Ray's workers can't import."""
    import ray

    from seedbed.runtime.train import train_on_ray

    ray.cloudpickle.register_pickle_by_value(tiny_task)
    return train_on_ray


def test_one_worker_gives_the_bits_of_this_process(on_ray: Any, tmp_path: Path) -> None:
    loop.train_locally(TinyTask(), tmp_path / "here", workers=1)
    lines: list[Any] = []
    on_ray(TinyTask(), tmp_path / "ray", workers=1, report=lines.append)
    assert same_bits(tmp_path / "ray", tmp_path / "here")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "Ctrl-C has become Ray's"
    assert lines == loop.read_log(tmp_path / "ray") and lines[-1]["step"] == 24
    assert not (tmp_path / "ray" / ".ray").exists(), "Ray's own files are left behind"


def test_two_workers_one_of_them_killed(on_ray: Any, tmp_path: Path) -> None:
    """The bits of two local processes, although a worker is killed in the middle."""
    loop.train_locally(TinyTask(batch_size=5), tmp_path / "here", workers=2)
    said: list[str] = []
    task = TinyTask(batch_size=5, die_once=(1, 13, str(tmp_path / "mark")))
    on_ray(task, tmp_path / "ray", workers=2, say=said.append)
    assert (tmp_path / "mark").exists() and len(said) == 1 and "restart 1" in said[0]
    assert same_bits(tmp_path / "ray", tmp_path / "here")


def test_errors_come_out_as_they_were_raised(on_ray: Any, tmp_path: Path) -> None:
    with pytest.raises(loop.TrainingDiverged, match="step 7: small"):
        on_ray(TinyTask(poison=7), tmp_path / "diverged", workers=1)
    assert (tmp_path / "diverged" / "checkpoint.pt").exists()
    with pytest.raises(TypeError, match="a bug"):
        on_ray(TinyTask(bug=True), tmp_path / "bug", workers=2)
    with pytest.raises(UserError, match="GPU"):
        on_ray(TinyTask(), tmp_path / "gpu", workers=64, device="cuda")


def test_given_up_after_three_restarts_without_a_new_checkpoint(on_ray: Any, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(loop.WorkerLost):
        on_ray(TinyTask(die_always=2), tmp_path, workers=1, say=said.append)
    assert len(said) == 3 and not (tmp_path / "weights.pt").exists()


def test_storage_has_a_name_of_its_own(on_ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same name in the same storage would make Ray Train resume, and train nothing. A relative folder is not the workers'."""
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        on_ray(TinyTask(steps=4), Path(name))
        os.rename(name, f"{name}-done")
    assert same_bits(tmp_path / "first-done", tmp_path / "second-done")


def test_interrupted(on_ray: Any, tmp_path: Path) -> None:
    """Ctrl-C ends the workers and is KeyboardInterrupt; the training goes on from its checkpoint."""

    def press() -> None:
        while checkpoint.stamp(tmp_path) is None:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        on_ray(TinyTask(delay=0.2, steps=600), tmp_path)
    with checkpoint.only_writer(tmp_path, patience=20):  # its worker is gone
        pass
    assert checkpoint.stamp(tmp_path) is not None and not (tmp_path / "weights.pt").exists()
