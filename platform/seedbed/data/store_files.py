"""The files of a store, from below: a sample file in the making, and the checks with which index and sample files are opened."""

from __future__ import annotations

import contextlib
import os
import zlib
from pathlib import Path
from typing import IO, Any, NoReturn

import pyarrow as pa
import pyarrow.ipc

from seedbed.data.store_format import FORMAT, INDEX, Index, StoreInfo, metadata_crc
from seedbed.types import UserError

PREPARE = "python datasets/voc2012/prepare.py --devkit DIR --out STORE"
BROKEN = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError, AttributeError)


class SampleFile:
    """One `samples-*.arrow` in the making; named by its content when it is closed."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema = path, schema
        self._sink: IO[bytes] = open(path, "wb")  # noqa: SIM115 (closed by close or abort)
        self._crc = 0
        self.bytes = 0
        self.closed = False
        self._writer = pa.ipc.new_file(pa.PythonFile(_Counted(self), mode="w"), schema)

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)

    def take(self, data: Any) -> int:
        self._crc = zlib.crc32(data, self._crc)
        self.bytes += len(data)
        return self._sink.write(data)

    def close(self, number: int) -> dict[str, Any]:
        records_end = self.bytes
        self._writer.close()
        head, tail = 8 + self._schema.serialize().size, self.bytes - records_end
        sync(self._sink)
        self._sink.close()
        name = f"samples-{number:05d}-{self._crc:08x}.arrow"
        os.rename(self._path, self._path.with_name(name))
        with open(self._path.with_name(name), "rb") as written:
            edges = zlib.crc32(written.read(head))
            written.seek(records_end)
            edges = zlib.crc32(written.read(), edges)
        return {"name": name, "bytes": self.bytes, "crc32": self._crc, "head": head, "tail": tail, "edges": edges}

    def abort(self) -> None:
        self._sink.close()


class _Counted:
    """What Arrow writes to: passes bytes on and keeps their checksum."""

    closed = False

    def __init__(self, file: SampleFile) -> None:
        self._file = file

    def write(self, data: Any) -> int:
        return self._file.take(data)

    def tell(self) -> int:
        return self._file.bytes

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def read_index(path: Path) -> tuple[StoreInfo, Index, str]:
    """What a store says of itself, its index, and the checksum of that; UserError where it is not as it was written."""
    file = path / INDEX
    if not file.is_file():
        _refuse(path)
    try:
        mapped = pa.memory_map(str(file))
        reader = pa.ipc.open_file(mapped)
        metadata = dict(reader.schema.metadata or {})
        version = int(metadata.get(b"version", b"0"))
    except BROKEN as error:
        refuse_damaged(file, "its index can't be read", error)
    if version > FORMAT:
        raise UserError(
            f"{path} has store format {version}, this Seedbed reads up to {FORMAT}",
            file=path,
            field="--data.store",
            remedy=f"update Seedbed, or make the store again: {PREPARE}",
        )
    try:
        if metadata_crc(metadata) != int(metadata[b"metadata_crc32"]):
            raise ValueError("checksum of the metadata")
        front = mapped.read_at(8 + reader.schema.serialize().size, 0)  # the schema stands at both ends; the reader looks at the second
        if front[:8] != b"ARROW1\0\0" or not pa.ipc.read_schema(pa.py_buffer(front[8:])).equals(reader.schema, check_metadata=True):
            raise ValueError("it begins with other bytes than were written")
        info = StoreInfo.from_metadata(metadata)
        batch = reader.get_batch(0)
        batch.validate(full=True)
        index = Index.from_batch(batch, info)
        if index.crc() != int(metadata[b"rows_crc32"]):
            raise ValueError("checksum of the rows")
    except BROKEN as error:
        refuse_damaged(file, f"its index is not as it was written ({error})", error)
    return info, index, metadata[b"rows_sha256"].decode()


def map_file(path: Path, entry: Any) -> pa.MemoryMappedFile:
    try:
        mapped = pa.memory_map(str(path))
    except OSError as error:
        refuse_damaged(path, f"{path.name} is missing or can't be opened", error)
    size = mapped.size()
    if size != entry["bytes"]:
        refuse_damaged(path, f"{path.name} has {size:,} bytes of {entry['bytes']:,}")
    if zlib.crc32(mapped.read_at(entry["tail"], size - entry["tail"]), zlib.crc32(mapped.read_at(entry["head"], 0))) != entry["edges"]:
        refuse_damaged(path, f"{path.name} begins or ends with other bytes than were written")
    return mapped


def refuse_damaged(file: Path, what: str, cause: BaseException | None = None) -> NoReturn:
    raise UserError(
        f"the store {file.parent} is damaged: {what}",
        file=file,
        field="--data.store",
        remedy=f"copy it again, or make it again: {PREPARE}",
    ) from cause


def _refuse(path: Path) -> NoReturn:
    """There is no index: say what is there instead."""
    if not path.exists():
        what = f"there is no sample store {path}"
    elif path.is_file():
        what = f"{path} is a file, not a sample store"
    elif (path / "JPEGImages").is_dir() or (path / "VOC2012").is_dir():
        what = f"{path} is a devkit, not a sample store"
    else:
        what = f"{path} is no sample store: it has no {INDEX}"
    raise UserError(what, file=path, field="--data.store", remedy=f"make one with: {PREPARE}")


def sync(sink: IO[bytes]) -> None:
    sink.flush()
    os.fsync(sink.fileno())


def sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some network file systems refuse it
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
