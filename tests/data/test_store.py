"""The sample store: what goes in comes out, nothing is copied, damage is found, and a kill leaves one whole store."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_devkit import overwrite

from seedbed.data import DataConfig, Store, StoreInfo, StoreWriter, open_store, store_files, writer
from seedbed.data.settings import evenly
from seedbed.data.store_format import FORMAT, INDEX, color_map, metadata_crc
from seedbed.types import Sample, UserError

MakeStore = Callable[..., Store]
LABELS = [[1, 0, 0], [0, 1, 0], None, [1, 1, 0], [0, 0, 0], [0, 0, 1]]


def data_file(store: Store) -> Path:
    return store.path / store.info.files[0]["name"]


# --- what goes in comes out ------------------------------------------------------------------------

blobs = st.binary(max_size=200)
labels = st.none() | st.lists(st.integers(0, 1), min_size=3, max_size=3)
masks = st.dictionaries(st.sampled_from(("class", "aug")), blobs)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(blobs, labels, masks, st.integers(1, 900), st.integers(1, 900)), max_size=12), st.randoms(), st.integers(1, 4))
def test_roundtrip(tmp_path_factory: pytest.TempPathFactory, rows: list, random: object, batches: int) -> None:
    path = tmp_path_factory.mktemp("round") / "store"
    info = StoreInfo("made", ("a", "b", "c"), "free", mask_kinds=("class", "aug"), card={"x": 9}, made={"how": "here"})
    samples = [
        Sample(f"id {i}é", picture, h, w, None if row is None else np.array(row, np.uint8), None if row is None else "main", dict(m))
        for i, (picture, row, m, h, w) in enumerate(rows)
    ]
    order = [s.id for s in samples]
    random.shuffle(order)  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "BATCH_BYTES", 150 * batches)
        patch.setattr(writer, "FILE_BYTES", 2000)
        with StoreWriter(path, info) as out:
            for sample in samples:
                out.add(sample, splits=("all",))
            out.split("shuffled", order)
    store = open_store(path)
    assert store.ids() == [s.id for s in samples] and store.ids("shuffled") == order and len(store) == len(samples)
    for sample in samples:
        found = store[sample.id]
        assert bytes(found.picture) == sample.picture and (found.height, found.width) == (sample.height, sample.width)
        assert store.size(sample.id) == (sample.height, sample.width)
        assert {k: bytes(v) for k, v in found.masks.items()} == sample.masks
        assert found.label_source == sample.label_source
        assert (found.labels is None) == (sample.labels is None)
        assert sample.labels is None or (found.labels == sample.labels).all()
    assert list(store.has_label(order)) == [next(s for s in samples if s.id == i).labels is not None for i in order]
    assert list(store.has_mask(order, "aug")) == ["aug" in next(s for s in samples if s.id == i).masks for i in order]
    assert (store.info.dataset, store.info.classes, store.info.licence, store.info.card) == ("made", ("a", "b", "c"), "free", {"x": 9})
    assert sum(store.info.label_sources.values()) == len(samples) and store.info.made == {"how": "here"}
    assert list(store.verify()) == []


def test_same_content_same_files(make_store: MakeStore) -> None:
    first, second = make_store(LABELS, name="one"), make_store(LABELS, name="two")
    for entry in first.info.files:
        assert (first.path / entry["name"]).read_bytes() == (second.path / entry["name"]).read_bytes()
    assert first.checksum == second.checksum


def test_any_arrow_reader_understands_it(make_store: MakeStore) -> None:
    store = make_store(LABELS)
    table = pa.ipc.open_file(store.path / INDEX).read_all()
    assert table["labels"].to_pylist() == LABELS and table["split:all"].to_pylist() == list(range(6))
    metadata = {k.decode(): json.loads(v) for k, v in table.schema.metadata.items() if not k.endswith((b"crc32", b"sha256"))}
    assert metadata["dataset"] == "made" and metadata["classes"] == ["c0", "c1", "c2"] and metadata["splits"] == {"all": 6}
    assert metadata["version"] == FORMAT and metadata["count"] == 6 and len(metadata["palette"]) == 256
    samples = pa.ipc.open_file(data_file(store)).read_all()
    assert samples["id"].to_pylist() == store.ids() and samples["mask:class"].null_count == 3


def test_palette_is_vocs() -> None:
    assert color_map()[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)) and color_map()[255] == (224, 224, 192)
    assert len(set(color_map())) == 256


def test_bytes_are_views_of_the_file(make_store: MakeStore) -> None:
    store = make_store([[1]] * 200)
    before = pa.total_allocated_bytes()
    held = [store[ident] for ident in store.ids()]
    total = sum(len(s.picture) for s in held)
    assert total > 200_000 and pa.total_allocated_bytes() - before < total / 50
    assert all(isinstance(s.picture, memoryview) and s.picture.readonly and s.picture[0] == 0xFF for s in held)


def test_writing_needs_no_memory_for_the_whole(tmp_path: Path) -> None:
    import tracemalloc

    tracemalloc.start()
    with StoreWriter(tmp_path / "store", StoreInfo("made", ("a",))) as out:
        for i in range(60):
            out.add(Sample(f"p{i}", os.urandom(1 << 20), 1, 1, None, None), splits=("all",))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20, f"{peak / 1e6:.0f} MB for a store of 60 MB"


# --- questions -------------------------------------------------------------------------------------


def test_labels_without_decoding(make_store: MakeStore) -> None:
    store = make_store(LABELS)
    assert store.labels(["p0003", "p0002", "p0000"]).tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert store.has_label(["p0003", "p0002"]).tolist() == [True, False]
    assert store["p0002"].labels is None
    assert store.label_sources(store.ids()) == {"generator": 5, "none": 1} == dict(store.info.label_sources)
    assert store.labels([]).shape == (0, 3) and store.has_mask(["p0001", "p0002"]).tolist() == [False, True]
    assert store.has_mask(["p0000"], "no such kind").tolist() == [False]


def test_unknown_names_list_the_known(make_store: MakeStore) -> None:
    store = make_store(LABELS)
    with pytest.raises(UserError, match="no split 'trian'") as split:
        store.ids("trian")
    assert "all (6)" in split.value.text()
    with pytest.raises(UserError, match="'p9'"):
        store["p9"]
    with pytest.raises(UserError, match="'p9'"):
        store.labels(["p0000", "p9"])


def test_checksums_of_inputs_never_see_masks(make_store: MakeStore) -> None:
    plain, masked = make_store(LABELS, name="plain"), make_store(LABELS, name="masked", mask=b"other")
    assert plain.inputs_checksum("all") == masked.inputs_checksum("all")
    assert plain.truth_checksum("all") != masked.truth_checksum("all")
    relabelled = make_store([[0, 1, 1], *LABELS[1:]], name="relabelled")
    assert relabelled.truth_checksum("all") == plain.truth_checksum("all")
    assert relabelled.inputs_checksum("all") != plain.inputs_checksum("all")
    repainted = make_store(LABELS, name="repainted", seed=1)
    assert repainted.inputs_checksum("all") != plain.inputs_checksum("all")
    unlabelled = make_store([*LABELS[:4], None, LABELS[5]], name="unlabelled")  # no label is not the same as no class
    assert unlabelled.inputs_checksum("all") != plain.inputs_checksum("all")
    ids = plain.ids("all")
    assert plain.inputs_checksum(ids) == plain.inputs_checksum("all") != plain.inputs_checksum(ids[::-1])


def test_pickled_by_address(make_store: MakeStore) -> None:
    store = make_store(LABELS)
    sent = pickle.dumps(store)
    assert len(sent) < 1000 and pickle.loads(sent).labels(["p0003"]).tolist() == [[1, 1, 0]]
    make_store([[0, 0, 1]] * 6)
    with pytest.raises(UserError, match="replaced"):
        pickle.loads(sent)


# --- damage ----------------------------------------------------------------------------------------


def test_truncated(make_store: MakeStore) -> None:
    path = data_file(store := make_store(LABELS))
    overwrite(path, path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"damaged.* bytes of"):
        open_store(store.path)
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        open_store(store.path)


def test_garbage_at_the_front(make_store: MakeStore) -> None:
    for name in (INDEX, None):
        store = make_store([[1]] * 40, name=f"store-{name}")
        path = store.path / name if name else data_file(store)
        overwrite(path, os.urandom(4096) + path.read_bytes()[4096:])
        with pytest.raises(UserError, match="damaged") as error:
            open_store(store.path)
        assert str(store.path) in error.value.text() and "prepare.py" in error.value.text()


def contents(store: Store) -> list[tuple]:
    samples = (store[ident] for ident in store.ids())
    return [(s.id, bytes(s.picture), s.height, s.width, None if s.labels is None else s.labels.tolist()) for s in samples]


def test_every_flipped_byte_is_found(make_store: MakeStore, flipped: Callable[[Path, int], None]) -> None:
    store = make_store(LABELS)
    before, named = contents(store), set()
    for path in (store.path / INDEX, data_file(store)):
        good = path.read_bytes()
        for at in range(0, len(good), 29):
            flipped(path, at)
            try:
                opened = open_store(store.path)
                problems = dict(opened.verify())
                named |= set(problems)
                if not problems:
                    assert path.name == INDEX, f"byte {at} of {path.name} goes unseen"
                    assert contents(opened) == before, f"byte {at} of {path.name}"  # padding: nothing has changed
            except UserError as error:
                assert "damaged" in error.text() and str(store.path) in error.text()
            overwrite(path, good)
    assert set(store.ids()) <= named


def test_damaged_record_is_named(make_store: MakeStore, flipped: Callable[[Path, int], None]) -> None:
    store = make_store([[1]] * 100)
    path = data_file(store)
    flipped(path, path.read_bytes().index(bytes(store["p0070"].picture)) + 100)
    flipped(path, path.read_bytes().index(bytes(store["p0080"].masks["class"])))
    problems = dict(open_store(store.path).verify())
    assert set(problems) == {"p0070", "p0080"} and "picture" in problems["p0070"] and "class mask" in problems["p0080"]
    assert set(open_store(store.path).damaged(["p0001", "p0070", "p0080"])) == {"p0070"}, "masks decide nothing"


def test_damage_is_never_decoded(make_store: MakeStore, flipped: Callable[[Path, int], None]) -> None:
    store = make_store([[1]] * 3)
    path = data_file(store)
    sound = store["p0000"].pixels()
    assert sound.shape == (20, 30, 3) and store["p0001"].mask() is None
    # the last bytes of a JPEG's data: the decoder would take them without a word
    flipped(path, path.read_bytes().index(bytes(store["p0000"].picture)) + len(store["p0000"].picture) - 8)
    opened = open_store(store.path)
    with pytest.raises(UserError, match=r"picture of p0000 .*other bytes") as error:
        opened["p0000"].pixels()
    assert "--data.skip-unreadable" in error.value.text() and str(store.path) in error.value.text()
    assert (opened["p0000"].labels == [1]).all() and opened["p0001"].pixels().shape == (20, 30, 3)
    with pytest.raises(UserError, match="class mask of p0002 can't be read"):
        opened["p0002"].mask()  # stored as it was given: no picture at all


def test_newer_format(make_store: MakeStore) -> None:
    store = make_store(LABELS)
    path = store.path / INDEX
    table = pa.ipc.open_file(path).read_all()
    metadata = {**table.schema.metadata, b"version": b"99"}
    metadata[b"metadata_crc32"] = b"%d" % metadata_crc(metadata)
    with pa.ipc.new_file(path, table.schema.with_metadata(metadata)) as out:
        out.write_table(table.replace_schema_metadata(metadata))
    with pytest.raises(UserError, match="format 99") as error:
        open_store(store.path)
    assert "update Seedbed" in error.value.remedy


def test_what_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "kit" / "JPEGImages").mkdir(parents=True)
    for path, words in (
        ("", "no sample store is named"),
        ("none", "there is no"),
        ("file", "is a file"),
        ("folder", "no index.arrow"),
        ("kit", "is a devkit"),
    ):
        with pytest.raises(UserError, match=words) as error:
            open_store(tmp_path / path if path else path)
        assert "prepare.py" in error.value.remedy and path in error.value.text()


# --- writing ---------------------------------------------------------------------------------------


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="half way"), StoreWriter(tmp_path / "store", StoreInfo("made", ("a",))) as out:
        out.add(Sample("p", b"picture", 1, 1, None, None), splits=("all",))
        raise RuntimeError("half way")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_store(make_store: MakeStore) -> None:
    old = make_store(LABELS)
    with pytest.raises(RuntimeError), StoreWriter(old.path, StoreInfo("other", ("a",))) as out:
        out.add(Sample("q", b"picture", 1, 1, None, None))
        raise RuntimeError
    assert open_store(old.path).checksum == old.checksum and list(open_store(old.path).verify()) == []
    assert list(old.path.parent.iterdir()) == [old.path]


def test_replaced_whole_under_a_reader(make_store: MakeStore) -> None:
    old = make_store(LABELS)
    picture = bytes(old["p0005"].picture)
    new = make_store([[1, 0, 0]] * 3, seed=50)
    assert len(new) == 3 and sorted(p.name for p in new.path.iterdir()) == sorted([INDEX, data_file(new).name])
    assert bytes(old["p0005"].picture) == picture, "who has the old one open keeps it"


def test_a_crash_between_the_renames_keeps_the_old_store(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    old = make_store(LABELS)
    replace = os.replace

    def crash(source: Path, target: Path) -> None:
        if Path(target).name == INDEX:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        make_store([[1, 0, 0]] * 3, seed=50)
    monkeypatch.undo()
    assert open_store(old.path).checksum == old.checksum and list(open_store(old.path).verify()) == []
    make_store([[1, 0, 0]] * 3, seed=50)  # and the next one clears what the crash left
    assert len(list(old.path.iterdir())) == 2


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path) -> None:
    at_work = StoreWriter(tmp_path / "store", StoreInfo("made", ("a",)))
    code = "import sys, os; from seedbed.data import *; w = StoreWriter(sys.argv[1], StoreInfo('made', ('a',))); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, tmp_path / "store"], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    with StoreWriter(tmp_path / "store", StoreInfo("made", ("a",))):
        assert len(list(tmp_path.iterdir())) == 2, "the killed one's is gone, the one at work has its own"
    at_work.close()
    assert [p.name for p in tmp_path.iterdir()] == ["store"] and [p.name for p in (tmp_path / "store").iterdir()] == [INDEX]


@pytest.mark.parametrize("when", ["records", "end"])
def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((store_files.SampleFile, "take") if when == "records" else (os, "fsync")), full)
    with pytest.raises(UserError, match="No space left"), StoreWriter(tmp_path / "store", StoreInfo("made", ("a",))) as out:
        out.add(Sample("p", b"picture", 1, 1, None, None))
    assert list(tmp_path.iterdir()) == []


def test_never_into_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("thesis", "file"):
        with pytest.raises(UserError, match=name):
            StoreWriter(tmp_path / name, StoreInfo("made", ("a",)))
    assert (tmp_path / "thesis" / "chapter").read_text() == (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    with StoreWriter(tmp_path / "empty", StoreInfo("made", ("a",))):
        pass
    assert len(open_store(tmp_path / "empty")) == 0


def test_callers_mistakes(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "store", StoreInfo("made", ("a", "b"))) as out:
        good = Sample("p", b"picture", 1, 1, np.array([1, 0], np.uint8), "main")
        out.add(good)
        for bad, words in (
            (good, "before"),
            (Sample("q", b"", 1, 1, np.array([1], np.uint8), "main"), "2 numbers"),
            (Sample("q", b"", 1, 1, np.array([1, 2], np.uint8), "main"), "0 or 1"),
            (Sample("q", b"", 1, 1, None, None, {"depth": b""}), "depth"),
        ):
            with pytest.raises(ValueError, match=words):
                out.add(bad)


# --- settings --------------------------------------------------------------------------------------


@given(st.integers(0, 300), st.integers(0, 400))
def test_evenly(n: int, limit: int) -> None:
    ids = [str(i) for i in range(n)]
    taken = evenly(ids, limit)
    assert len(taken) == (min(n, limit) if limit else n) and taken == sorted(taken, key=int) and len(set(taken)) == len(taken)
    if taken:
        gaps = np.diff([int(i) for i in taken])
        assert taken[0] == "0" and (not len(gaps) or gaps.max() - gaps.min() <= 1)


def test_select(make_store: MakeStore, flipped: Callable[[Path, int], None]) -> None:
    store = make_store([[1]] * 10)
    assert DataConfig(limit=2).select(store, "all") == (["p0000", "p0005"], {})
    flipped(data_file(store), data_file(store).read_bytes().index(bytes(store["p0005"].picture)))
    store = DataConfig(store=str(store.path)).open()
    assert DataConfig(limit=2).select(store, "all")[0] == ["p0000", "p0005"]
    ids, left_out = DataConfig(limit=2, skip_unreadable=True).select(store, "all")
    assert ids == ["p0000"] and "picture" in left_out["p0005"]
    flipped(data_file(store), data_file(store).read_bytes().index(bytes(store["p0000"].masks["class"])))
    assert DataConfig(limit=2, skip_unreadable=True).select(DataConfig(store=str(store.path)).open(), "all")[0] == ["p0000"]
    assert DataConfig(store="a", cache="b", skip_unreadable=True).key() == DataConfig().key() != DataConfig(limit=1).key()


# --- remote ----------------------------------------------------------------------------------------


def test_remote_is_brought_once(make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from seedbed.data import remote

    origin = make_store(LABELS, name="origin")
    copies: list[str] = []
    copy = remote._copy
    monkeypatch.setattr(remote, "_copy", lambda source, index, target: (copies.append(target.name), copy(source, index, target)))
    stores: list[Store] = []
    threads = [threading.Thread(target=lambda: stores.append(open_store(origin.path.as_uri(), tmp_path / "cache"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 6 and len(copies) == 1
    assert {s.path for s in stores} == {tmp_path / "cache" / copies[0]} and stores[0].checksum == origin.checksum
    assert list(stores[0].verify()) == []
    data_file(origin).unlink()  # not needed any more
    assert bytes(open_store(origin.path.as_uri(), tmp_path / "cache")["p0001"].picture) == bytes(origin["p0001"].picture)


def _open_and_tell(uri: str, cache: Path, queue: multiprocessing.Queue) -> None:
    queue.put(len(open_store(uri, cache)))


def test_another_process_brings_its_own(make_store: MakeStore, tmp_path: Path) -> None:
    origin = make_store(LABELS, name="origin")
    sent = pickle.dumps(open_store(origin.path.as_uri(), tmp_path / "cache"))
    shutil.rmtree(tmp_path / "cache")  # as on another node
    assert pickle.loads(sent).ids() == origin.ids()
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue = context.Queue()
    workers = [context.Process(target=_open_and_tell, args=(origin.path.as_uri(), tmp_path / "other", queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=30) for _ in workers] == [6, 6, 6]
    for worker in workers:
        worker.join()
    assert len([p for p in (tmp_path / "other").iterdir() if p.is_dir()]) == 1


def test_remote_replaced_is_brought_again(make_store: MakeStore, tmp_path: Path) -> None:
    origin = make_store(LABELS, name="origin")
    assert len(open_store(origin.path.as_uri(), tmp_path / "cache")) == 6
    make_store([[1]] * 3, name="origin")
    assert len(open_store(origin.path.as_uri(), tmp_path / "cache")) == 3


def test_remote_damage_and_absence(make_store: MakeStore, tmp_path: Path, flipped: Callable[[Path, int], None]) -> None:
    origin = make_store(LABELS, name="origin")
    flipped(data_file(origin), data_file(origin).stat().st_size // 2)
    with pytest.raises(UserError, match="other bytes"):
        open_store(origin.path.as_uri(), tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]
    for uri, words in (
        ((tmp_path / "none").as_uri(), "there is no sample store"),
        ("nosuch://bucket/store", "nosuch"),
        ("s3://a bucket/store", "can't be read"),
    ):
        with pytest.raises(UserError, match=words):
            open_store(uri, tmp_path / "cache")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="can't be brought"):
        open_store(make_store(LABELS, name="whole").path.as_uri(), tmp_path / "file")
