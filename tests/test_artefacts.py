"""Artefacts: nothing committed is lost, a record counts once, equal contents give equal digests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedbed.artefacts import MAPS, Fragments, Stage, column, find_stages, hold, open_stage, stage_schema
from seedbed.artefacts.records import label_record, maps_from, maps_record, pack, png, seeds_from, unpack
from seedbed.types import Maps, UserError

SCHEMA = stage_schema(column("value", pa.int64()), column("blob", pa.binary()), column("seconds", pa.float64(), volatile=True))


def stage(out: Path, key: str = "k") -> Stage:
    return Stage(out, "maps", key, SCHEMA, settings={"a": 1}, inputs={"classifier": "c"}, method="cam")


def record(i: int, seconds: float = 0.0) -> dict[str, object]:
    return {"id": f"p{i:04d}", "value": i, "blob": bytes([i % 256]) * i, "seconds": seconds}


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(12)), st.integers(1, 12), st.integers(0, 12))
def test_digest_knows_no_order_no_fragments_no_times(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], every: int, again: int
) -> None:
    plain, mixed = stage(tmp_path_factory.mktemp("a")), stage(tmp_path_factory.mktemp("b"))
    with plain.writer(100) as writer:
        for i in range(12):
            writer.add(record(i))
    with mixed.writer(every) as writer:
        for i in order:
            writer.add(record(i, seconds=1.5))
    with mixed.writer(1) as writer:  # a killed worker's pictures, done twice
        for i in range(again):
            writer.add(record(i, seconds=9.0))
    assert plain.finish(computed=12, seconds=1)["digest"] == mixed.finish(computed=12, seconds=2)["digest"]
    assert len(mixed.records()) == 12 and [r["value"] for r in mixed.records()] == list(range(12))


def test_digest_sees_every_lasting_column(tmp_path: Path) -> None:
    digests = set()
    for number, change in enumerate([{}, {"value": 7}, {"blob": b"x"}, {"id": "other"}]):
        s = stage(tmp_path / str(number))
        with s.writer() as writer:
            writer.add({**record(3), **change})
        digests.add(s.finish(computed=1, seconds=0)["digest"])
    assert len(digests) == 4


def test_pending_leaves_out_what_is_done_or_set_aside(tmp_path: Path) -> None:
    s = stage(tmp_path)
    with s.writer(1) as writer:
        writer.add(record(1))
    s.set_aside("p0002", "truncated")
    assert s.pending(["p0001", "p0002", "p0003"]) == ["p0003"]
    manifest = s.finish(computed=1, seconds=0)
    assert manifest["set_aside"] == [{"id": "p0002", "reason": "truncated"}] and manifest["count"] == 1
    assert s.pending(["p0003"]) == []  # a whole artefact is whole


def test_found_says_that_nothing_was_computed(tmp_path: Path) -> None:
    s = stage(tmp_path)
    with s.writer() as writer:
        writer.add(record(1))
    s.finish(computed=1, seconds=0)
    files = {p: p.stat().st_mtime_ns for p in s.folder.glob("*.arrow")}
    assert s.found()["computed"] == 0
    assert files == {p: p.stat().st_mtime_ns for p in s.folder.glob("*.arrow")}


def test_batches_of_a_finished_stage_are_bound_by_count_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty small records, then four of 3,000 bytes, one above the bound by itself, and small ones again."""
    sizes = [10] * 30 + [3000] * 4 + [9000] + [10] * 5

    def made(out: Path) -> tuple[Stage, str, list[dict[str, object]]]:
        s = stage(out)
        with s.writer() as writer:
            for i, size in enumerate(sizes):
                writer.add({**record(i), "blob": bytes([i]) * size})
        before = list(s.records())
        digest = s.finish(computed=len(sizes), seconds=0)["digest"]
        assert list(s.records()) == before
        return s, digest, before

    def batches(s: Stage) -> list[list[dict[str, object]]]:
        (shard,) = s.folder.glob("*.arrow")
        with pa.ipc.open_file(pa.memory_map(str(shard))) as reader:
            return [reader.get_batch(b).to_pylist() for b in range(reader.num_record_batches)]

    plain, digest, records = made(tmp_path / "plain")
    assert len(batches(plain)) == 1
    monkeypatch.setattr("seedbed.artefacts.stage.BATCH_RECORDS", 8)
    monkeypatch.setattr("seedbed.artefacts.stage.BATCH_BYTES", 7000)
    bound, bound_digest, same = made(tmp_path / "bound")
    assert [len(batch) for batch in batches(bound)] == [8, 8, 8, 8, 2, 1, 5]
    assert [r for batch in batches(bound) for r in batch] == records == same and bound_digest == digest


def test_damaged_fragment_is_computed_again(tmp_path: Path) -> None:
    s = stage(tmp_path)
    with s.writer(1) as writer:
        writer.add(record(1))
        writer.add(record(2))
    victim = sorted(s.folder.glob("*.arrow"))[0]
    victim.write_bytes(victim.read_bytes()[:100])
    assert len(s.pending(["p0001", "p0002"])) == 1


def test_more_fragments_than_open_files(tmp_path: Path) -> None:
    s = stage(tmp_path)
    with s.writer(1) as writer:
        for i in range(100):
            writer.add(record(i))
    found = s.records()
    assert [found[f"p{i:04d}"]["value"] for i in range(99, -1, -1)] == list(range(99, -1, -1))
    assert len(found._open) <= Fragments.OPEN


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from test_artefacts import record, stage
from pathlib import Path
from typing import Any
s = stage(Path({out!r}))
with s.writer(5) as writer:
    for i in range(10**6):
        writer.add(record(i % 4000))
        if i == 12: print("go", flush=True)
        time.sleep(0.001)
"""


def test_kill_costs_at_most_the_open_fragment(tmp_path: Path) -> None:
    code = KILLED.format(tests=str(Path(__file__).parent), out=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "go\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(stage(tmp_path).records()) >= 10
    stage(tmp_path).finish(computed=0, seconds=0)
    assert not list(stage(tmp_path).folder.glob(".*.tmp"))


def test_full_disk_is_a_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from seedbed.artefacts import fragments as module

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    s = stage(tmp_path)
    with s.writer(1) as writer:
        writer.add(record(1))
        monkeypatch.setattr(module.os, "fsync", full)
        with pytest.raises(UserError) as caught:
            writer.add(record(2))
        monkeypatch.undo()
        writer._records.clear()
    assert "No space left" in caught.value.message and "room" in caught.value.remedy
    assert len(s.records()) == 1


def test_second_driver_is_told_who_has_the_folder(tmp_path: Path) -> None:
    with hold(tmp_path / "out"), pytest.raises(UserError) as caught, hold(tmp_path / "out"):
        pass
    assert f"process {os.getpid()}" in caught.value.message
    with hold(tmp_path / "out"):
        pass


def test_output_that_is_a_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError), hold(tmp_path / "out"):
        pass
    assert (tmp_path / "out").read_text() == "mine"


@given(st.integers(0, 3), st.integers(0, 3), st.booleans())
def test_maps_come_back_as_they_went(n: int, k: int, snapshots: bool) -> None:
    rng = np.random.default_rng(n * 10 + k)
    shapes = [(3, 4), (6, 8)]
    planes = [rng.standard_normal((n, *s)).astype(np.float32) for s in shapes]
    steps = [[p + i for p in planes] for i in range(k)] if snapshots else None
    maps = Maps("a", 30, 40, np.arange(n), (1.0, 2.0), planes, 3, "margin", {"loss": [1.0, -2.0]}, steps)
    back = maps_from({**maps_record(maps, 0.1), "hash": ""})
    assert (back.id, back.height, back.steps, back.ended, back.log) == ("a", 30, 3, "margin", {"loss": [1.0, -2.0]})
    assert all(np.array_equal(a, b) for a, b in zip(planes, back.sums, strict=True))
    if steps is not None and n:
        assert back.snapshots is not None and len(back.snapshots) == k
        assert all(np.array_equal(a, b) for one, two in zip(steps, back.snapshots, strict=True) for a, b in zip(one, two, strict=True))


def test_equal_arrays_pack_to_equal_bytes() -> None:
    arrays = {"b": np.arange(3), "a": np.zeros((0, 2), np.float32)}
    assert pack(arrays) == pack(dict(reversed(arrays.items())))
    assert {k: (v.dtype, v.tolist()) for k, v in unpack(pack(arrays)).items()} == {k: (v.dtype, v.tolist()) for k, v in arrays.items()}


def test_palette_png_keeps_its_values() -> None:
    import io

    from PIL import Image

    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    with Image.open(io.BytesIO(png(values, [[i, 0, 255 - i] for i in range(256)]))) as picture:
        assert picture.mode == "P" and np.array_equal(np.array(picture), values)
    assert np.array_equal(seeds_from(label_record("x", values, 0.0)).label_map, values)


def test_open_stage_lists_what_there_is(tmp_path: Path) -> None:
    for key, method in (("k1", "cam"), ("k2", "rib")):
        s = Stage(tmp_path, "maps", key, MAPS, method=method)
        with s.writer() as writer:
            writer.add(maps_record(Maps("a", 8, 8, np.arange(1), (1.0,), [np.ones((1, 1, 1), np.float32)]), 0.0))
        s.finish(computed=1, seconds=0)
    assert isinstance(next(iter(open_stage(tmp_path, "maps", method="rib"))), Maps)
    with pytest.raises(UserError) as caught:
        open_stage(tmp_path, "maps")
    assert "cam:k1" in caught.value.remedy and "rib:k2" in caught.value.remedy
    assert len(find_stages(tmp_path)) == 2


def test_a_stage_that_another_process_is_just_finishing_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its manifest is there, and a fragment goes away between the look at the folder and the look into the file."""
    s = stage(tmp_path)
    with s.writer() as writer:
        writer.add(record(1))
    s.finish(computed=1, seconds=0)
    works, looked = Stage.records, []

    def records(self: Stage) -> Any:
        looked.append(1)
        if len(looked) == 1:
            raise FileNotFoundError(2, "gone", "fragment-0.arrow")
        return works(self)

    monkeypatch.setattr(Stage, "records", records)
    assert s.found()["count"] == 1 and len(looked) == 2 and s.manifest is not None


def test_a_finished_stage_that_lost_records_is_whole_no_more(tmp_path: Path) -> None:
    s = stage(tmp_path)
    with s.writer() as writer:
        writer.add(record(1))
        writer.add(record(2))
    s.set_aside("p0003", "truncated")
    digest = s.finish(computed=2, seconds=0)["digest"]
    shard = next(s.folder.glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:50])
    assert s.found() is None and s.manifest is None
    assert s.pending(["p0001", "p0002", "p0003"]) == ["p0001", "p0002"]
    with s.writer() as writer:
        writer.add(record(1))
        writer.add(record(2))
    manifest = s.finish(computed=2, seconds=0)
    assert manifest["digest"] == digest and manifest["set_aside"] == [{"id": "p0003", "reason": "truncated"}]
