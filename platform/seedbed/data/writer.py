"""Writing a sample store: streamed, so that memory stays flat, and atomic, so that a store is whole or not there."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import glob
import hashlib
import os
import shutil
import uuid
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from seedbed.data.store_files import SampleFile, sync, sync_folder
from seedbed.data.store_format import INDEX, LABEL_SOURCES, Index, StoreInfo, sample_schema
from seedbed.types import Sample, UserError

BATCH_BYTES = 4 << 20
FILE_BYTES = 512 << 20
NO_MASK = bytes(32)
_LOCK = "being-written"


class StoreWriter:
    """`with StoreWriter(path, info) as w: w.add(sample, splits=("train",))`. Leaving the block after an error leaves no trace.

    Samples go to a folder beside; `close` moves it into place. Over an existing store the new index replaces the old one in a single
    rename, and only then the old bytes go: at every moment there is one whole store.
    """

    def __init__(self, path: Path | str, info: StoreInfo) -> None:
        self.path, self.info = Path(path).absolute(), info
        _refuse_foreign(self.path)
        self._folder = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}.tmp")
        self._schema = sample_schema(info.mask_kinds)
        self._rows: list[dict[str, Any]] = []
        self._known: dict[str, int] = {}
        self._splits: dict[str, list[str]] = {}
        self._pending: list[dict[str, Any]] = []
        self._pending_bytes = 0
        self._file: SampleFile | None = None
        self._files: list[dict[str, Any]] = []
        self._batch = 0
        self._lock: IO[str] | None = None
        with self._disk():
            _clear_stale(self.path)
            fresh = self._folder.with_suffix(".new")  # not yet to be taken for a stale one
            fresh.mkdir(parents=True)
            self._lock = _held(fresh / _LOCK)
            fresh.rename(self._folder)

    def add(self, sample: Sample, splits: Sequence[str] = ()) -> None:
        """Takes a sample and appends its id to the named splits. A second sample of the same id is an error of the caller."""
        if sample.id in self._known:
            raise ValueError(f"{sample.id} was added before")
        if sample.labels is not None and (len(sample.labels) != len(self.info.classes) or not np.isin(sample.labels, (0, 1)).all()):
            raise ValueError(f"{sample.id}: labels are {len(self.info.classes)} numbers, 0 or 1")
        unknown = set(sample.masks) - set(self.info.mask_kinds)
        if unknown:
            raise ValueError(f"{sample.id}: mask kinds {sorted(unknown)} are not among the store's {self.info.mask_kinds}")
        picture = bytes(sample.picture)
        masks = {kind: bytes(data) for kind, data in sample.masks.items()}
        self._known[sample.id] = len(self._rows)
        self._rows.append(
            {
                "id": sample.id,
                "size": (sample.height, sample.width),
                "labels": None if sample.labels is None else np.asarray(sample.labels, np.uint8),
                "source": -1 if sample.label_source is None else LABEL_SOURCES.index(sample.label_source),
                "picture": hashlib.sha256(picture).digest(),
                "masks": {kind: hashlib.sha256(data).digest() for kind, data in masks.items()},
                "crc32": {name: zlib.crc32(data) for name, data in {"picture": picture, **masks}.items()},
                "place": (len(self._files), self._batch, len(self._pending)),
            }
        )
        self._pending.append({"id": sample.id, "picture": picture, **{f"mask:{kind}": data for kind, data in masks.items()}})
        self._pending_bytes += len(picture) + sum(map(len, masks.values()))
        for name in splits:
            self._splits.setdefault(name, []).append(sample.id)
        if self._pending_bytes >= BATCH_BYTES:
            self._flush()

    def split(self, name: str, ids: Iterable[str]) -> None:
        """Sets a split's list, in its own order; every id must have been added by the time of `close`."""
        self._splits[name] = list(ids)

    def describe(self, **fields: Any) -> None:
        """Sets fields of the info that are known only at the end, such as `subset` or `set_aside`."""
        self.info = dataclasses.replace(self.info, **fields)

    def close(self) -> Path:
        """Makes the store whole and moves it into place."""
        with self._disk():
            self._flush()
            self._close_file()
            index = self._index()
            counts = {s: int((index.source == i).sum()) for i, s in enumerate(LABEL_SOURCES)} | {"none": int((index.source < 0).sum())}
            info = dataclasses.replace(
                self.info,
                splits={name: len(ids) for name, ids in self._splits.items()},
                label_sources={source: n for source, n in counts.items() if n},
                count=len(index.ids),
                files=tuple(self._files),
            )
            batch = index.to_batch(info)
            with open(self._folder / INDEX, "wb") as sink:
                with pa.ipc.new_file(sink, batch.schema) as writer:
                    writer.write_batch(batch)
                sync(sink)
            self._move_into_place()
        if self._lock is not None:
            self._lock.close()
        return self.path

    def abort(self) -> None:
        """Forgets everything written so far."""
        if self._lock is not None:
            self._lock.close()
        if self._file is not None:
            self._file.abort()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _index(self) -> Index:
        rows, n = self._rows, len(self._rows)
        c = len(self.info.classes)
        empty = np.zeros(c, np.uint8)
        splits = {}
        for name, ids in self._splits.items():
            at = np.full(n, -1, np.int32)
            for position, ident in enumerate(ids):
                at[self._known[ident]] = position
            if (at >= 0).sum() != len(ids):
                raise ValueError(f"split {name!r} names a sample twice")
            splits[name] = at
        return Index(
            ids=[r["id"] for r in rows],
            height=np.array([r["size"][0] for r in rows], np.int32),
            width=np.array([r["size"][1] for r in rows], np.int32),
            labels=np.array([empty if r["labels"] is None else r["labels"] for r in rows], np.uint8).reshape(n, c),
            labelled=np.array([r["labels"] is not None for r in rows], bool),
            source=np.array([r["source"] for r in rows], np.int8),
            picture=_stacked([r["picture"] for r in rows]),
            masks={kind: _stacked([r["masks"].get(kind, NO_MASK) for r in rows]) for kind in self.info.mask_kinds},
            crc32={name: np.array([r["crc32"].get(name, 0) for r in rows], np.uint32) for name in ("picture", *self.info.mask_kinds)},
            place=np.array([r["place"] for r in rows], np.int32).reshape(n, 3),
            splits=splits,
        )

    def _flush(self) -> None:
        if not self._pending:
            return
        with self._disk():
            if self._file is None:
                self._file = SampleFile(self._folder / f"samples-{len(self._files):05d}.new", self._schema)
            self._file.write(pa.RecordBatch.from_pylist(self._pending, schema=self._schema))
        self._pending, self._pending_bytes = [], 0
        self._batch += 1
        if self._file.bytes >= FILE_BYTES:
            self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._files.append(self._file.close(len(self._files)))
            self._file, self._batch = None, 0

    def _move_into_place(self) -> None:
        try:
            os.rename(self._folder, self.path)
            (self.path / _LOCK).unlink()
        except OSError:
            if not (self.path / INDEX).exists():
                raise
            self._replace()
        sync_folder(self.path)
        sync_folder(self.path.parent)

    def _replace(self) -> None:
        """The index last: it is what makes the new store the store."""
        names = [entry["name"] for entry in self._files]
        for name in [*names, INDEX]:
            os.replace(self._folder / name, self.path / name)
        for old in self.path.glob("samples-*.arrow"):
            if old.name not in names:
                old.unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextlib.contextmanager
    def _disk(self) -> Any:
        try:
            yield
        except OSError as error:
            self.abort()
            raise UserError(
                f"the store {self.path} can't be written: {error.strerror or error}",
                file=self.path,
                field="--out",
                remedy="name a folder that you may write, on a disk with enough room",
            ) from error
        except BaseException:
            self.abort()
            raise


def _held(lock: Path) -> IO[str] | None:
    """The lock of a folder in the making, held until the process ends or the writer lets go; None where somebody else holds it."""
    handle = open(lock, "w")  # noqa: SIM115 (that it stays open is its purpose)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        return None
    return handle


def _clear_stale(path: Path) -> None:
    """Removes what a killed writer left beside; one that is still at work holds its lock."""
    for folder in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            lock = _held(folder / _LOCK)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                lock.close()


def _stacked(digests: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


def _refuse_foreign(path: Path) -> None:
    """Never write into a folder that is something else."""
    if path.is_dir() and (path / INDEX).exists():
        return
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        what = "a folder with other content" if path.is_dir() else "a file"
        raise UserError(f"{path} is {what}", file=path, field="--out", remedy="name a folder that does not exist yet, or an existing store")
