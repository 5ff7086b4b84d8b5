"""A store on another machine is brought to a folder of this node: once, however many processes ask for it at the same time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from seedbed.data.store_files import read_index
from seedbed.data.store_format import INDEX
from seedbed.types import UserError

CHUNK = 8 << 20


def bring(uri: str, cache: Path | None = None) -> Path:
    """The local folder of the store at `uri`, which is copied unless this node has it already.

    The folder is named by address and content: a store that was replaced is brought again, and whoever uses the old copy keeps it.
    """
    root = cache if cache is not None else Path(tempfile.gettempdir()) / f"seedbed-{os.getuid()}" / "stores"
    with _mended(uri):
        import pyarrow.fs

        filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
        source = _Source(filesystem, path.rstrip("/"), uri)
        index = source.read(INDEX)
    name = f"{Path(path).name}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}-{hashlib.sha256(index).hexdigest()[:12]}"
    target = root / name
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(root / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (target / INDEX).exists():
                _copy(source, index, target)
    except OSError as error:
        raise UserError(
            f"{uri} can't be brought to {root}: {error.strerror or error}",
            file=root,
            field="--data.cache",
            remedy="name a folder of this node that you may write, on a disk with room for the store",
        ) from error
    return target


class _Source:
    """Files of the store's folder on the other file system."""

    def __init__(self, filesystem: Any, path: str, uri: str) -> None:
        self.filesystem, self.path, self.uri = filesystem, path, uri

    def read(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
            return stream.read()

    def copy(self, name: str, target: Path) -> int:
        """Streams a file here; its CRC-32."""
        crc = 0
        with _mended(self.uri):
            stream = self.filesystem.open_input_stream(f"{self.path}/{name}")
        with stream, open(target, "wb") as out:
            while chunk := self._chunk(stream):
                crc = zlib.crc32(chunk, crc)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        return crc

    def _chunk(self, stream: Any) -> bytes:
        with _mended(self.uri):
            return stream.read(CHUNK)


def _copy(source: _Source, index: bytes, target: Path) -> None:
    beside = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed: the lock is ours
    beside.mkdir()
    try:
        (beside / INDEX).write_bytes(index)
        for entry in read_index(beside)[0].files:
            if source.copy(entry["name"], beside / entry["name"]) != entry["crc32"]:
                raise UserError(
                    f"{source.uri} is damaged: {entry['name']} has other bytes than were written",
                    file=f"{source.uri.rstrip('/')}/{entry['name']}",
                    field="--data.store",
                    remedy="upload the store again, and check it with prepare.py --check --out STORE",
                )
        os.rename(beside, target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


@contextlib.contextmanager
def _mended(uri: str) -> Iterator[None]:
    """What another file system answers, as an error that a user can mend."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(
            f"there is no sample store at {uri}",
            file=uri,
            field="--data.store",
            remedy="give the address of a folder made by prepare.py --devkit DIR --out STORE and copied there whole",
        ) from error
    except (OSError, pa.ArrowException, ImportError, ValueError) as error:
        raise UserError(
            f"{uri} can't be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            file=uri,
            field="--data.store",
            remedy="check the address, the network and this node's credentials",
        ) from error
