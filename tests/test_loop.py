"""The training loop: the same bits whatever happens to it, and an honest record."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_task import TinyTask, same_bits, weights

from seedbed import loop
from seedbed.loop import checkpoint as checkpoints
from seedbed.loop.ahead import ahead
from seedbed.loop.parallel import RESTARTS, WorkerLost, persist
from seedbed.types import UserError


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    loop.train(TinyTask(), folder)
    return folder


def lasting(folder: Path) -> list[dict[str, Any]]:
    """The log without times."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "eta")} for line in loop.read_log(folder)]


# --- record and result ------------------------------------------------------------------------------


def test_it_learns_and_says_so(undisturbed: Path) -> None:
    first, *lines = loop.read_log(undisturbed)
    assert first == {"step": 0, "steps": 24, "facts": {"initial_weights": "none"}}
    steps = [line for line in lines if "terms" in line]
    assert [line["step"] for line in steps] == [4, 8, 12, 16, 20, 24] and all(line["steps"] == 24 for line in steps)
    assert all(set(line) == {"step", "steps", "terms", "lr", "seconds", "eta"} for line in steps)
    assert all(set(line["terms"]) == {"bce", "small"} for line in steps) and steps[-1]["eta"] == 0
    assert [line["step"] for line in lines if "val/loss" in line] == [12, 24]
    assert steps[0]["lr"] == pytest.approx(0.05 * (1 - 3 / 24) ** 0.9)
    assert sorted(p.name for p in undisturbed.iterdir()) == [".training", "log.jsonl", "weights.pt"]
    assert all(tensor.is_contiguous() for tensor in weights(undisturbed).values())


def test_only_what_the_optimizer_has_is_trained(undisturbed: Path) -> None:
    torch.manual_seed(0)
    task = TinyTask(steps=2)
    built: list[torch.nn.Module] = []
    task.build = lambda build=task.build: built.append(build()) or built[-1]  # type: ignore[method-assign,misc]
    stems = []
    task.loss = lambda model, batch, step, loss=task.loss: stems.append(model.stem.weight.clone()) or loss(model, batch, step)  # type: ignore
    loop.train(task, undisturbed.parent / "stem")
    assert all(torch.equal(stems[0], stem) for stem in stems) and not built[0].stem.weight.requires_grad
    assert built[0].classifier.weight.grad is not None


def test_terms_are_those_of_the_batches(undisturbed: Path, tmp_path: Path) -> None:
    seen: list[float] = []
    task = TinyTask()
    task.loss = lambda model, batch, step, loss=task.loss: (  # type: ignore[method-assign,misc]
        lambda out: (seen.append(float(out.losses["bce"].detach())) if model.training else None, out)[1]
    )(loss(model, batch, step))
    loop.train(task, tmp_path)
    logged = [line["terms"]["bce"] for line in loop.read_log(tmp_path) if "terms" in line]
    assert logged == pytest.approx([sum(seen[i : i + 4]) / 4 for i in range(0, 24, 4)], rel=1e-6)


def test_a_finished_training_is_left_alone(undisturbed: Path, tmp_path: Path) -> None:
    before = (undisturbed / "weights.pt").stat().st_mtime_ns
    loop.train(TinyTask(hopeless=True), undisturbed)
    assert (undisturbed / "weights.pt").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "pace",
    [
        {"prefetch": 0},
        {"prefetch": 4},
        {"checkpoint_every": 1},
        {"checkpoint_seconds": 0.0},
    ],
    ids=str,
)
def test_the_way_of_working_does_not_change_bits(undisturbed: Path, tmp_path: Path, pace: dict[str, Any]) -> None:
    loop.train(TinyTask(pace=replace(TinyTask().pace, **pace)), tmp_path)
    assert same_bits(tmp_path, undisturbed) and lasting(tmp_path) == lasting(undisturbed)


@pytest.mark.parametrize(("pace", "tolerance"), [({"precision": "bf16"}, 0.02), ({"channels_last": False}, 1e-5)], ids=str)
def test_precision_and_layout_are_honoured(tmp_path: Path, pace: dict[str, Any], tolerance: float) -> None:
    """Without dropout, whose mask follows the layout."""
    loop.train(TinyTask(steps=8, plain=True), tmp_path / "default")
    loop.train(TinyTask(steps=8, plain=True, pace=replace(TinyTask().pace, **pace)), tmp_path / "other")
    found, reference = weights(tmp_path / "other"), weights(tmp_path / "default")
    assert "precision" not in pace or not same_bits(tmp_path / "other", tmp_path / "default")
    for name, tensor in reference.items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name], tensor, atol=tolerance, rtol=0)


def test_torch_is_left_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    before = (torch.get_num_threads(), torch.get_deterministic_debug_mode(), torch.backends.cudnn.allow_tf32)
    inside: list[Any] = []
    task = TinyTask(steps=2)
    task.judge = lambda parts: {}  # type: ignore[method-assign]
    task.optimizer = lambda model, steps, make=task.optimizer: (  # type: ignore[method-assign,misc]
        inside.append((torch.get_num_threads(), torch.get_deterministic_debug_mode())) or make(model, steps)
    )
    loop.train(task, tmp_path, threads=2)
    assert inside == [(2, 2)]
    assert before == (torch.get_num_threads(), torch.get_deterministic_debug_mode(), torch.backends.cudnn.allow_tf32)
    assert torch.equal(torch.rand(3), expected)


def test_reports_what_it_logs(tmp_path: Path) -> None:
    lines: list[Any] = []
    loop.train_locally(TinyTask(), tmp_path, workers=1, report=lines.append)
    assert lines == loop.read_log(tmp_path)


# --- kills --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moments", [(0.0, 0.2)])
def test_killed_and_started_again(tmp_path: Path, moments: tuple[float, ...]) -> None:
    """A real SIGKILL, twice, while it writes a checkpoint after every step."""
    steps = 2000
    command = [sys.executable, str(Path(__file__).with_name("tiny_task.py")), str(tmp_path / "killed"), str(steps)]
    for moment in moments:
        before = checkpoints.stamp(tmp_path / "killed")
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            while checkpoints.stamp(tmp_path / "killed") == before and process.poll() is None:
                time.sleep(0.01)
            time.sleep(moment)
            assert process.poll() is None, "it ended before it was killed"
            process.send_signal(signal.SIGKILL)
    reached = checkpoints.load(tmp_path / "killed" / "checkpoint.pt", identity_of(steps))
    assert reached is not None and 0 < reached["step"] < steps
    shorter = reached["step"] + 20  # the rest at our own pace: the schedule stays, only the end comes earlier
    for name in ("killed", "whole"):
        run_until(tmp_path / name, steps, shorter)
    one, other = (checkpoints.load(tmp_path / name / "checkpoint.pt", identity_of(steps)) for name in ("killed", "whole"))
    assert one is not None and other is not None and one["step"] == other["step"] == shorter
    assert all(torch.equal(one["model"][k], other["model"][k]) for k in other["model"])
    assert lasting(tmp_path / "killed") == lasting(tmp_path / "whole")


def identity_of(steps: int) -> str:
    return f"{TinyTask(steps=steps).identity()}/1 workers/cpu/1 threads"


class Stop(BaseException):
    """Stands for a kill in this process: nothing may be cleaned up by it."""


def run_until(folder: Path, steps: int, end: int) -> None:
    task = TinyTask(steps=steps, pace=loop.Pace(log_every=4, checkpoint_every=1, checkpoint_seconds=1e9, prefetch=0))

    def batch(step: int, rank: int, world: int, make: Any = task.batch) -> Any:
        if step == end:
            raise Stop
        return make(step, rank, world)

    task.batch = batch  # type: ignore[method-assign]
    with pytest.raises(Stop):
        loop.train(task, folder)


@pytest.mark.parametrize("call", ["os.replace", "os.fsync", "torch.save"])
def test_stopped_at_every_write(undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Stopped right before each of these calls in turn, again and again, until one try gets through."""
    module, name = {"os": os, "torch": torch}[call.split(".")[0]], call.split(".")[1]
    real = getattr(module, name)
    left = [0]

    def fragile(*args: Any, **kwargs: Any) -> Any:
        if left[0] == 0:
            raise Stop
        left[0] -= 1
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, fragile)
    tries = 0
    while not (tmp_path / "weights.pt").exists():
        left[0] = tries % 4  # 0 to 3 of them succeed before the next stop
        tries += 1
        assert tries < 200
        try:
            loop.train(TinyTask(), tmp_path)
        except Stop:
            continue
    assert tries > 5, "it was hardly stopped"
    assert same_bits(tmp_path, undisturbed) and lasting(tmp_path) == lasting(undisturbed)
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))


def test_a_damaged_checkpoint_is_put_away(undisturbed: Path, tmp_path: Path) -> None:
    run_until(tmp_path, 24, 10)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-200])
    loop.train(TinyTask(), tmp_path)
    assert same_bits(tmp_path, undisturbed) and lasting(tmp_path) == lasting(undisturbed)
    assert (tmp_path / "checkpoint.damaged").exists()


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    run_until(tmp_path, 24, 10)
    for task, threads in ((TinyTask(lr=0.01), 1), (TinyTask(), 2)):
        with pytest.raises(UserError, match="other settings") as error:
            loop.train(task, tmp_path, threads=threads)
        assert "checkpoint.pt" in error.value.text() and "--out" in error.value.remedy


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run_until(tmp_path, 24, 10)
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left") as error:
            loop.train(TinyTask(), tmp_path)
    assert "room" in error.value.remedy and (tmp_path / "checkpoint.pt").read_bytes() == kept
    assert not list(tmp_path.glob(".*.tmp"))


def test_one_training_in_a_folder_at_a_time(tmp_path: Path) -> None:
    with (
        checkpoints.only_writer(tmp_path),
        pytest.raises(UserError, match="another training"),
        checkpoints.only_writer(tmp_path, patience=0.1),
    ):
        pass


# --- divergence -------------------------------------------------------------------------------------


def test_not_a_number_stops_with_step_and_term(tmp_path: Path) -> None:
    with pytest.raises(loop.TrainingDiverged) as error:
        loop.train(TinyTask(poison=13), tmp_path)
    assert (error.value.step, error.value.term) == (13, "small") and "learning rate" in error.value.remedy
    saved = checkpoints.load(tmp_path / "checkpoint.pt", f"{TinyTask().identity()}/1 workers/cpu/1 threads")
    assert saved is not None and 0 < saved["step"] <= 13 and not (tmp_path / "weights.pt").exists()
    assert all(torch.isfinite(tensor).all() for tensor in saved["model"].values())
    again = pickle.loads(pickle.dumps(error.value))
    assert isinstance(again, loop.TrainingDiverged) and again.text() == error.value.text() and again.step == 13


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    task = TinyTask(steps=6)
    task.loss = lambda model, batch, step, loss=task.loss: _with_wild_gradient(loss(model, batch, step), model, step)  # type: ignore
    with pytest.raises(loop.TrainingDiverged) as error:
        loop.train(task, tmp_path)
    assert error.value.term == "weight classifier.weight" and not (tmp_path / "weights.pt").exists()


def _with_wild_gradient(out: Any, model: Any, step: int) -> Any:
    if step == 5 and model.training:  # a finite loss in the last step, an infinite gradient
        model.classifier.weight.register_hook(lambda gradient: gradient * float("inf"))
    return out


# --- pictures that are left out -------------------------------------------------------------------------


def test_what_is_left_out_is_logged_once(tmp_path: Path) -> None:
    with pytest.raises(loop.TrainingDiverged):
        loop.train(TinyTask(left_out="2007_000033", poison=20), tmp_path)
    loop.train(TinyTask(left_out="2007_000033"), tmp_path)
    found = [line["set_aside"] for line in loop.read_log(tmp_path) if "set_aside" in line]
    assert found == [{"id": "2007_000033", "reason": "can't be read"}]


# --- parts ----------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 40))
def test_shares(batch: int, world: int) -> None:
    slices = [loop.share(batch, rank, world) for rank in range(world)]
    rows = [row for s in slices for row in range(batch)[s]]
    sizes = [s.stop - s.start for s in slices]
    assert rows == list(range(batch)) and max(sizes) - min(sizes) <= 1


def test_more_workers_than_pictures(tmp_path: Path) -> None:
    task = TinyTask(batch_size=2)
    with pytest.raises(UserError, match="3 training workers can't share a batch of 2"):
        loop.train(task, tmp_path, world=3, synchronise=lambda module: module)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(), max_size=30), st.integers(0, 5))
def test_ahead_keeps_the_order(items: list[int], threads: int) -> None:
    assert list(ahead(lambda i: i * i, items, threads)) == [(i, i * i) for i in items]


def test_ahead_is_bounded_and_ends_with_its_user() -> None:
    made: list[int] = []
    with closing(ahead(lambda i: made.append(i), range(1000), 2)) as stream:
        next(stream)
        time.sleep(0.05)
    assert len(made) <= 3

    def fails(i: int) -> int:
        return 1 // (2 - i)

    with pytest.raises(ZeroDivisionError):
        list(ahead(fails, range(5), 2))


def attempts(folder: Path, saves: list[bool], error: Callable[[], BaseException]) -> tuple[int, BaseException | None]:
    """How often `persist` tries, when an attempt i leaves a new checkpoint (saves[i]) and then fails; the last one goes through."""
    tried = [0]

    def attempt() -> None:
        if tried[0] == len(saves):
            tried[0] += 1
            return
        tried[0] += 1
        if saves[tried[0] - 1]:
            checkpoints.save(folder / "checkpoint.pt", {"step": tried[0]})
        raise error()

    try:
        persist(attempt, folder, lambda text: None)
    except BaseException as raised:
        return tried[0], raised
    return tried[0], None


def test_restarts_without_limit_while_checkpoints_advance(tmp_path: Path) -> None:
    assert attempts(tmp_path, [False, True, False, True] * 5, lambda: WorkerLost("gone")) == (21, None)


def test_given_up_after_three_restarts_without_a_new_one(tmp_path: Path) -> None:
    tried, raised = attempts(tmp_path, [True] + [False] * 9, lambda: WorkerLost("gone"))
    assert tried == 1 + RESTARTS and isinstance(raised, WorkerLost)


@pytest.mark.parametrize("error", [UserError("no", remedy="yes"), TypeError("a bug")])
def test_not_restarted(tmp_path: Path, error: BaseException) -> None:
    assert attempts(tmp_path, [True] * 5, lambda: error) == (1, error)


def test_log_is_followed_through_a_restart(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n')
    seen: list[Any] = []
    with loop.follow(tmp_path, seen.append, every=0.02):
        with open(log, "a") as sink:
            sink.write('{"step": 2}\n{"st')
            sink.flush()
            time.sleep(0.15)
            sink.write('ep": 3}\n')
        time.sleep(0.15)
        log.write_text('{"step": 1}\n')
        time.sleep(0.15)
        with open(log, "a") as sink:
            sink.write('{"step": 2}\n')
    assert [line["step"] for line in seen] == [2, 3, 2]
    log.write_bytes(b'{"step": 1}\n{"step": 2')
    assert loop.read_log(tmp_path) == [{"step": 1}] and loop.read_log(tmp_path / "none") == []


# --- several processes ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One is killed on the way; the batch is shared unevenly."""
    lines: list[Any] = []
    loop.train_locally(TinyTask(batch_size=5), tmp_path / "whole", workers=2, report=lines.append)
    assert lines == loop.read_log(tmp_path / "whole") and lines[-1]["step"] == 24
    killed = TinyTask(batch_size=5, die_once=(1, 13, str(tmp_path / "mark")), left_out="x")
    loop.train_locally(killed, tmp_path / "killed", workers=2)
    assert (tmp_path / "mark").exists() and same_bits(tmp_path / "killed", tmp_path / "whole")
    assert "restart 1" in capfd.readouterr().err
    found = [json.dumps(line) for line in lasting(tmp_path / "killed") if "set_aside" not in line]
    assert found == [json.dumps(line) for line in lasting(tmp_path / "whole")]


@pytest.mark.slow
def test_two_processes_average_their_gradients(tmp_path: Path) -> None:
    """Without batch norm and dropout two shares of a batch give what the whole batch gives, but for rounding."""
    loop.train_locally(TinyTask(batch_size=5, plain=True), tmp_path / "one", workers=1)
    loop.train_locally(TinyTask(batch_size=5, plain=True), tmp_path / "two", workers=2)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=1e-4)
    logs = [[line["terms"]["bce"] for line in loop.read_log(tmp_path / name) if "terms" in line] for name in ("one", "two")]
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)


@pytest.mark.slow
def test_errors_of_processes(tmp_path: Path) -> None:
    with pytest.raises(loop.TrainingDiverged, match="step 7: small"):
        loop.train_locally(TinyTask(poison=7), tmp_path / "diverged", workers=2)
    with pytest.raises(UserError, match="no pictures"):
        loop.train_locally(TinyTask(hopeless=True), tmp_path / "hopeless", workers=2)
