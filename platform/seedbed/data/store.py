"""The sample store: pictures, class labels and masks by id, memory-mapped, so that any number of processes share one copy.

Opening looks at the index and at both ends of every file; `verify` reads all of it. Pictures and masks stay encoded until asked for.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from seedbed.data.settings import DataConfig
from seedbed.data.store_files import BROKEN, PREPARE, map_file, read_index, refuse_damaged
from seedbed.data.store_format import LABEL_SOURCES, StoreInfo
from seedbed.data.writer import StoreWriter
from seedbed.types import Sample, UserError

__all__ = ["DataConfig", "Store", "StoreInfo", "StoreWriter", "open_store"]


def open_store(path: str | Path, cache: Path | str | None = None) -> Store:
    """A finished store, ready for random access.

    A plain path is opened where it is. A URI (`s3://`, `gs://`, `hdfs://`, `file://`, any that pyarrow knows) is brought to `cache`, a
    folder of this node, once per node. Raises UserError where there is no store, or a damaged one, or one of a newer format.
    """
    if "://" in str(path):
        return _open_remote(str(path), None if cache is None else str(cache))
    if not str(path):
        raise UserError("no sample store is named", field="--data.store", remedy=f"give --data.store STORE; make one with: {PREPARE}")
    return Store(Path(path))


@dataclass(frozen=True)
class StoredSample(Sample):
    """A sample whose bytes are looked at before they are decoded: damage is an error with a name, never another picture."""

    store: Path | None = None
    crc32: dict[str, int] = field(default_factory=dict)

    def pixels(self) -> np.ndarray:
        return self._sound("picture", self.picture, super().pixels)

    def mask(self, kind: str = "class") -> np.ndarray | None:
        return self._sound(kind, self.masks[kind], lambda: super(StoredSample, self).mask(kind)) if kind in self.masks else None

    def _sound(self, name: str, content: bytes | memoryview, decode: Callable[[], Any]) -> Any:
        what, cause = "it has other bytes than were written", None
        if zlib.crc32(content) == self.crc32[name]:
            try:
                return decode()
            except (OSError, SyntaxError, ValueError) as error:
                what, cause = str(error), error
        raise UserError(
            f"the {name if name == 'picture' else name + ' mask'} of {self.id} can't be read: {what}",
            file=self.store,
            field=name,
            remedy="copy or make the store again"
            + (", or leave damaged pictures out with --data.skip-unreadable" if name == "picture" else ""),
        ) from cause


class Store:
    """Samples by id. Cheap to pickle: a worker gets the address and maps the same pages."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path).absolute()
        self.remote: tuple[str, str | None] | None = None
        """Address and cache, where the store was brought from elsewhere: another node brings its own copy."""
        self.info, self._index, self.checksum = read_index(self.path)
        self._maps = [map_file(self.path / entry["name"], entry) for entry in self.info.files]
        self._readers: list[pa.ipc.RecordBatchFileReader | None] = [None] * len(self._maps)
        self._batches: dict[tuple[int, int], list[pa.Array | None]] = {}
        self._lock = threading.Lock()
        self._looked_at: dict[str, str | None] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopen, (self.remote or str(self.path), self.checksum))

    @cached_property
    def _row(self) -> dict[str, int]:
        return dict(zip(self._index.ids, range(len(self)), strict=True))

    def __len__(self) -> int:
        return len(self._index.ids)

    def __contains__(self, ident: object) -> bool:
        return ident in self._row

    def ids(self, split: str | None = None) -> list[str]:
        """Ids of a split in the order of its list; without a name all ids. An unknown split raises UserError with the known ones."""
        if split is None:
            return list(self._index.ids)
        if split not in self._index.splits:
            known = ", ".join(f"{name} ({n:,})" for name, n in self.info.splits.items()) or "none"
            raise UserError(f"the store has no split {split!r}", file=self.path, field="split", remedy=f"choose one of: {known}")
        at = self._index.splits[split]
        rows = np.flatnonzero(at >= 0)
        return [self._index.ids[row] for row in rows[np.argsort(at[rows], kind="stable")]]

    def __getitem__(self, ident: str) -> Sample:
        """The sample, its bytes as views of the mapped file."""
        row = self._row_of(ident)
        index = self._index
        file, batch, at = (int(v) for v in index.place[row])
        picture, *masks = self._columns(file, batch)
        source = int(index.source[row])
        return StoredSample(
            id=ident,
            picture=_view(picture[at]),
            height=int(index.height[row]),
            width=int(index.width[row]),
            labels=index.labels[row] if index.labelled[row] else None,
            label_source=None if source < 0 else LABEL_SOURCES[source],
            masks={kind: _view(column[at]) for kind, column in zip(self.info.mask_kinds, masks, strict=True) if column[at].is_valid},
            store=self.path,
            crc32={name: int(crc[row]) for name, crc in index.crc32.items()},
        )

    def size(self, ident: str) -> tuple[int, int]:
        """Height and width, without decoding."""
        row = self._row_of(ident)
        return int(self._index.height[row]), int(self._index.width[row])

    def labels(self, ids: Sequence[str]) -> np.ndarray:
        """(n, c) uint8; rows of zeros where there is no label (`has_label` tells). Nothing is decoded."""
        return self._index.labels[self._rows(ids)]

    def has_label(self, ids: Sequence[str]) -> np.ndarray:
        """(n,) bool."""
        return self._index.labelled[self._rows(ids)]

    def has_mask(self, ids: Sequence[str], kind: str = "class") -> np.ndarray:
        """(n,) bool."""
        rows = self._rows(ids)
        return self._index.masks[kind][rows].any(axis=1) if kind in self._index.masks else np.zeros(len(rows), bool)

    def label_sources(self, ids: Sequence[str]) -> dict[str, int]:
        """How many of the pictures got their labels from where."""
        found = self._index.source[self._rows(ids)]
        names = ("none", *LABEL_SOURCES)
        return {names[code + 1]: int(n) for code, n in zip(*np.unique(found, return_counts=True), strict=True)}

    def inputs_checksum(self, which: str | Sequence[str]) -> str:
        """Hex SHA-256 of what a method may see of a split or a list of ids: pictures and class labels, in order; never masks."""
        ids = self.ids(which) if isinstance(which, str) else list(which)
        rows, index = self._rows(ids), self._index
        sink = hashlib.sha256("\n".join(ids).encode())
        for array in (index.picture[rows], index.labels[rows], index.labelled[rows]):
            sink.update(f"{array.shape}".encode() + array.tobytes())
        return sink.hexdigest()

    def truth_checksum(self, which: str | Sequence[str]) -> str:
        """Hex SHA-256 of what scores are counted against: the masks of a split, or of a list of ids, in order."""
        ids = self.ids(which) if isinstance(which, str) else list(which)
        rows = self._rows(ids)
        sink = hashlib.sha256("\n".join(ids).encode())
        for kind in sorted(self._index.masks):
            sink.update(f"{kind}:".encode() + self._index.masks[kind][rows].tobytes())
        return sink.hexdigest()

    def damaged(self, ids: Sequence[str]) -> dict[str, str]:
        """Reads these pictures whole, each once: id -> what is wrong, for those whose bytes are not those that were written.

        Masks are not looked at: what is trained on must not depend on them. A damaged one is named where it is scored against.
        """
        for ident in ids:
            if ident not in self._looked_at:
                self._looked_at[ident] = self._problem(self._row_of(ident), masks=False)
        return {ident: problem for ident in ids if (problem := self._looked_at[ident])}

    def verify(self) -> Iterator[tuple[str, str]]:
        """Reads every byte; yields (id, problem) for damaged samples, and (file, problem) for damage between them."""
        touched: set[int] = set()
        order = np.lexsort((self._index.place[:, 2], self._index.place[:, 1], self._index.place[:, 0]))
        for row in order:
            problem = self._problem(row)
            if problem:
                touched.add(int(self._index.place[row, 0]))
                yield self._index.ids[row], problem
        for number, entry in enumerate(self.info.files):
            if number not in touched:
                crc = 0
                with open(self.path / entry["name"], "rb") as content:
                    while chunk := content.read(1 << 20):
                        crc = zlib.crc32(chunk, crc)
                if crc != entry["crc32"]:
                    yield entry["name"], "the file is damaged between its records"

    def _problem(self, row: int, *, masks: bool = True) -> str | None:
        file, batch, at = (int(v) for v in self._index.place[row])
        try:
            picture, *others = self._columns(file, batch)
        except UserError as error:
            return error.message
        digests = [("picture", picture, self._index.picture)]
        if masks:
            digests += [
                (f"{kind} mask", column, self._index.masks[kind]) for kind, column in zip(self.info.mask_kinds, others, strict=True)
            ]
        wrong = []
        for name, column, expected in digests:
            there = column[at].is_valid
            if there != bool(expected[row].any()) or (there and hashlib.sha256(column[at].as_buffer()).digest() != expected[row].tobytes()):
                wrong.append(name)
        return f"{' and '.join(wrong)}: other bytes than were written (checksum)" if wrong else None

    def _row_of(self, ident: str) -> int:
        return int(self._rows([ident])[0])

    def _rows(self, ids: Sequence[str]) -> np.ndarray:
        try:
            return np.fromiter(map(self._row.__getitem__, ids), np.int64, count=len(ids))
        except KeyError as error:
            raise UserError(
                f"the store has no sample {error.args[0]!r}", file=self.path, field="id", remedy="name an id of the store"
            ) from None

    def _columns(self, file: int, batch: int) -> list[Any]:
        """Picture and mask columns of one batch, as views of the mapped file."""
        found = self._batches.get((file, batch))
        if found is None:
            with self._lock:
                try:
                    reader = self._readers[file]
                    if reader is None:
                        reader = self._readers[file] = pa.ipc.open_file(self._maps[file])
                    records = reader.get_batch(batch)
                    records.validate(full=True)  # offsets only: a damaged one must not reach outside the mapping
                    found = [records.column(name) for name in ("picture", *(f"mask:{kind}" for kind in self.info.mask_kinds))]
                except BROKEN as error:
                    refuse_damaged(self.path / self.info.files[file]["name"], f"batch {batch} can't be read: {error}", error)
                self._batches[file, batch] = found
        return found


def _open_remote(uri: str, cache: str | None) -> Store:
    from seedbed.data.remote import bring

    store = Store(bring(uri, None if cache is None else Path(cache)))
    store.remote = (uri, cache)
    return store


def _view(scalar: Any) -> memoryview:
    return memoryview(scalar.as_buffer()).cast("B")  # Arrow's own are of signed bytes


def _reopen(address: str | tuple[str, str | None], checksum: str) -> Store:
    store = Store(Path(address)) if isinstance(address, str) else _open_remote(*address)
    if store.checksum != checksum:
        raise UserError(
            f"the store {store.path} was replaced while it was in use",
            file=store.path,
            field="--data.store",
            remedy="start the run again",
        )
    return store
