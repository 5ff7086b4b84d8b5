"""Records of a stage in immutable Arrow fragments: their schema, their hash, how they are written and read."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from seedbed.artefacts.files import fsync_folder, unwritten

BATCH_RECORDS = 256
"""The most records in one batch of a file."""
_VOLATILE = {b"volatile": b"1"}


def column(name: str, kind: pa.DataType, *, volatile: bool = False) -> pa.Field:
    """A column of a stage's schema; a volatile one (times, encoded copies) stays out of the record's hash."""
    return pa.field(name, kind, metadata=_VOLATILE if volatile else None)


def stage_schema(*columns: pa.Field) -> pa.Schema:
    """Every stage's records begin with their id and end with the hash of their canonical bytes."""
    return pa.schema([pa.field("id", pa.string(), nullable=False), *columns, pa.field("hash", pa.string(), nullable=False)])


def record_hash(record: Mapping[str, Any], schema: pa.Schema) -> str:
    """SHA-256 over the canonical bytes of a record: every lasting column with its name, in the schema's order."""
    sink = hashlib.sha256()
    for f in schema:
        if f.name in ("id", "hash") or (f.metadata or {}).get(b"volatile"):
            continue
        sink.update(f.name.encode() + b"=")
        _feed(sink, record.get(f.name))
    return sink.hexdigest()


def _feed(sink: Any, value: Any) -> None:
    if value is None:
        sink.update(b"n;")
    elif isinstance(value, bytes | bytearray | memoryview):
        sink.update(b"b%d:" % len(value))
        sink.update(value)
    elif isinstance(value, str):
        _feed(sink, value.encode())
    elif isinstance(value, bool):
        sink.update(b"t;" if value else b"f;")
    elif isinstance(value, float):
        sink.update(b"d" + struct.pack("<d", value))
    elif isinstance(value, int):
        sink.update(b"i%d;" % value)
    elif isinstance(value, Mapping):
        sink.update(b"m%d:" % len(value))
        for name in sorted(value):
            _feed(sink, name)
            _feed(sink, value[name])
    else:
        items = list(value)
        sink.update(b"l%d:" % len(items))
        for item in items:
            _feed(sink, item.item() if hasattr(item, "item") else item)


class Fragments:
    """Read access to the Arrow files of one stage folder: by id, in the order of ids, an id's second record dropped.

    Files are memory-mapped when asked for and at most 32 stay open, so that ten thousand fragments need no ten thousand descriptors.
    """

    OPEN = 32

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: list[Path] = []
        self.damaged: list[Path] = []
        """Files that can't be read. fsync comes before rename, so this is damage from outside; their records are computed again."""
        self._where: dict[str, tuple[int, int, int]] = {}
        self.hashes: dict[str, str] = {}
        self._open: OrderedDict[int, pa.ipc.RecordBatchFileReader] = OrderedDict()
        self._lock = threading.Lock()  # threads that read ahead share the open files
        for path in sorted(folder.glob("*.arrow")):
            self._index(path)

    def _index(self, path: Path) -> None:
        number = len(self._files)
        try:
            with pa.memory_map(str(path)) as source:
                reader = pa.ipc.open_file(source)
                rows = [(b, reader.get_batch(b).select(["id", "hash"]).to_pydict()) for b in range(reader.num_record_batches)]
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise  # the system's trouble, not the file's
            self.damaged.append(path)
            return
        self._files.append(path)
        for b, batch in rows:
            for row, (ident, value) in enumerate(zip(batch["id"], batch["hash"], strict=True)):
                if ident not in self._where:
                    self._where[ident] = (number, b, row)
                    self.hashes[ident] = value

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, ident: object) -> bool:
        return ident in self._where

    def ids(self) -> list[str]:
        return sorted(self._where)

    def batch_of(self, ident: str) -> tuple[pa.RecordBatch, int]:
        number, b, row = self._where[ident]
        with self._lock:
            reader = self._open.get(number)
            if reader is None:
                reader = self._open[number] = pa.ipc.open_file(pa.memory_map(str(self._files[number])))
                if len(self._open) > self.OPEN:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(number)
            return reader.get_batch(b), row

    def __getitem__(self, ident: str) -> dict[str, Any]:
        if ident not in self._where:
            raise KeyError(ident)
        batch, row = self.batch_of(ident)
        return {name: batch.column(i)[row].as_py() for i, name in enumerate(batch.schema.names)}

    def columns(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """Only these columns of every record, in the order of ids: the large ones are not read."""
        for ident in self.ids():
            batch, row = self.batch_of(ident)
            yield tuple(batch.column(name)[row].as_py() for name in names)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[ident] for ident in self.ids())

    def paths(self) -> list[Path]:
        return list(self._files)


class Writer:
    """Collects records and commits them as fragments: every `commit_every` records, every `seconds`, and at the end."""

    def __init__(self, folder: Path, schema: pa.Schema, commit_every: int, seconds: float = 60.0) -> None:
        self.folder, self.schema, self.commit_every, self.seconds = folder, schema, commit_every, seconds
        self._records: list[dict[str, Any]] = []
        self._since = time.monotonic()

    def add(self, record: Mapping[str, Any]) -> str:
        """Takes a record (without hash) and returns its hash; it is safe after the next commit."""
        value = record_hash(record, self.schema)
        self._records.append({**record, "hash": value})
        if len(self._records) >= self.commit_every or time.monotonic() - self._since >= self.seconds:
            self.commit()
        return value

    def commit(self) -> None:
        """Everything collected so far becomes one immutable fragment under a fresh name."""
        if self._records:
            table = pa.Table.from_pylist(self._records, schema=self.schema)
            write_table(self.folder / f"fragment-{uuid.uuid4().hex}.arrow", [table], self.schema)
            self._records = []
        self._since = time.monotonic()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.commit()  # also after an error: what was computed is kept


def write_table(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as sink:
            with pa.ipc.new_file(sink, schema) as writer:
                for table in tables:
                    writer.write_table(table, max_chunksize=BATCH_RECORDS)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise unwritten(path, error) from error
    fsync_folder(path.parent)
