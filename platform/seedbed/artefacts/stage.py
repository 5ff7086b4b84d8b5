"""Artefacts: what a stage leaves behind. `OUT/stages/NAME/KEY/` with Arrow records and, last of all, a manifest.

Records are committed in immutable fragments (written beside, fsync, rename); readers drop an id's second record; a finished stage is
compacted to shards and its manifest makes it whole. A kill at any moment costs at most the open fragments.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import struct
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.ipc

from seedbed.types import UserError

FORMAT = 1
SHARD_BYTES = 256 << 20
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


def write_atomically(path: Path, content: bytes) -> None:
    """Written beside, fsync, rename, fsync of the folder: a reader sees the old content or the new one."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as sink:
            sink.write(content)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritten(path, error) from error
    _fsync_folder(path.parent)


def _unwritten(path: Path, error: OSError) -> UserError:
    remedy = "make room on the disk and start again: finished records are kept"
    return UserError(f"{path.name} can't be written: {error.strerror}", file=path.parent, remedy=remedy)


def _fsync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some network file systems refuse it
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def hold(out: Path) -> Iterator[None]:
    """The output folder for one driver at a time (flock); the second is told who has it."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file", file=out, field="--out", remedy="name a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock: IO[str] = open(out / ".lock", "a+")  # noqa: SIM115 (held as long as the run)
    except OSError as error:
        message = f"{out} can't be written: {error.strerror}"
        raise UserError(message, file=out, field="--out", remedy="name a folder that you may write") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip() or "another run"
            message = f"{out} is in use by {holder}"
            raise UserError(message, file=out, field="--out", remedy="wait for its end, or give another --out") from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        lock.flush()
        yield


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
            _write_table(self.folder / f"fragment-{uuid.uuid4().hex}.arrow", [table], self.schema)
            self._records = []
        self._since = time.monotonic()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.commit()  # also after an error: what was computed is kept


def _write_table(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as sink:
            with pa.ipc.new_file(sink, schema) as writer:
                for table in tables:
                    writer.write_table(table, max_chunksize=256)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritten(path, error) from error
    _fsync_folder(path.parent)


class Stage:
    """One artefact in the making or finished. Cheap to construct and to pickle: workers get it by value and write their own fragments."""

    def __init__(
        self,
        out: Path,
        name: str,
        key: str,
        schema: pa.Schema,
        *,
        settings: Mapping[str, Any] | None = None,
        inputs: Mapping[str, str] | None = None,
        version: int = 1,
        method: str | None = None,
    ) -> None:
        self.name, self.key, self.schema, self.method = name, key, schema, method
        self.settings, self.inputs, self.version = dict(settings or {}), dict(inputs or {}), version
        self.folder = Path(out).absolute() / "stages" / name / key

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The manifest of a whole artefact, None while it is not whole."""
        path = self.folder / "manifest.json"
        return json.loads(path.read_text()) if path.exists() else None

    def records(self) -> Fragments:
        return Fragments(self.folder)

    def pending(self, ids: Sequence[str]) -> list[str]:
        """Those ids that have neither a record nor a reason for having none."""
        if self.manifest is not None:
            return []
        known = self.records()
        for path in known.damaged:
            path.rename(path.with_suffix(".damaged"))
        aside = self.set_aside_reasons()
        return [i for i in ids if i not in known and i not in aside]

    def writer(self, commit_every: int = 256, seconds: float = 60.0) -> Writer:
        self.folder.mkdir(parents=True, exist_ok=True)
        return Writer(self.folder, self.schema, commit_every, seconds)

    def set_aside(self, ident: str, reason: str) -> None:
        """Notes that a picture has no record, and why. Written at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(ident.encode()).hexdigest()[:16]
        write_atomically(self.folder / f"aside-{name}.json", json.dumps({"id": ident, "reason": reason}).encode())

    def set_aside_reasons(self) -> dict[str, str]:
        notes = (json.loads(p.read_text()) for p in sorted(self.folder.glob("aside-*.json")))
        return {note["id"]: note["reason"] for note in notes}

    def finish(self, *, computed: int, seconds: float, summary: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Compacts the fragments to shards, writes the manifest, and only then removes the fragments."""
        known = self.records()
        old = known.paths()
        aside = {i: r for i, r in self.set_aside_reasons().items() if i not in known}
        self._compact(known)
        sink = hashlib.sha256()
        for ident in known.ids():
            sink.update(ident.encode() + b"\0" + known.hashes[ident].encode() + b"\n")
        manifest = {
            "format": FORMAT,
            "stage": self.name,
            "key": self.key,
            "method": self.method,
            "settings": self.settings,
            "inputs": self.inputs,
            "count": len(known),
            "set_aside": [{"id": i, "reason": r} for i, r in sorted(aside.items())],
            "digest": sink.hexdigest(),
            "computed": computed,
            "seconds": round(seconds, 3),
            "version": self.version,
            "summary": dict(summary or {}),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "manifest.json", json.dumps(manifest, indent=1).encode())
        for path in [*old, *self.folder.glob("aside-*.json"), *self.folder.glob(".*.tmp")]:
            path.unlink(missing_ok=True)
        return manifest

    def found(self) -> dict[str, Any] | None:
        """The manifest of a whole artefact, with `computed` set to what this call computed: nothing.

        None where records that it counts are damaged or gone: then it is whole no more, and what is missing is made again.
        """
        manifest = self.manifest
        assert manifest is not None
        if len(self.records()) != manifest["count"]:
            for aside in manifest["set_aside"]:
                self.set_aside(aside["id"], aside["reason"])
            (self.folder / "manifest.json").unlink()
            return None
        for leftover in self.folder.glob("fragment-*.arrow"):  # a kill between the manifest and the clean-up
            leftover.unlink(missing_ok=True)
        if manifest["computed"]:
            manifest["computed"] = 0
            write_atomically(self.folder / "manifest.json", json.dumps(manifest, indent=1).encode())
        return manifest

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _compact(self, known: Fragments) -> None:
        ids, start, number = known.ids(), 0, 0
        shards: list[tuple[Path, Path]] = []
        while start < len(ids):
            taken: list[str] = []
            size = 0
            while start + len(taken) < len(ids) and size < SHARD_BYTES:
                batch, _ = known.batch_of(ids[start + len(taken)])
                size += batch.nbytes // max(batch.num_rows, 1)
                taken.append(ids[start + len(taken)])
            temporary = self.folder / f".shard-{number:05d}.new"
            _write_table(temporary, (_rows(known, taken[i : i + 256]) for i in range(0, len(taken), 256)), self.schema)
            shards.append((temporary, self.folder / f"shard-{uuid.uuid4().hex[:8]}-{number:05d}.arrow"))
            start, number = start + len(taken), number + 1
        for temporary, final in shards:
            os.replace(temporary, final)


def _rows(known: Fragments, ids: Sequence[str]) -> pa.Table:
    parts = []
    for ident in ids:
        batch, row = known.batch_of(ident)
        parts.append(batch.slice(row, 1))
    return pa.Table.from_batches(parts).combine_chunks()


def find_stages(run: Path, stage: str | None = None) -> list[dict[str, Any]]:
    """Manifests of the whole artefacts under an output folder, oldest first."""
    paths = sorted((Path(run) / "stages").glob(f"{stage or '*'}/*/manifest.json"), key=lambda p: p.stat().st_mtime)
    return [{**json.loads(p.read_text()), "folder": str(p.parent)} for p in paths]
