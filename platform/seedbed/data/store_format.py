"""What a sample store looks like on disk: `index.arrow` and the `samples-*.arrow` that it names.

The index has a row per sample (id, size, labels, where its bytes lie, SHA-256 and CRC-32 of the picture and of each mask, position in
every split); its schema metadata carries dataset, classes, palette, licence, splits, counts, checksums and format version. The other files
hold the encoded bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

FORMAT = 1
INDEX = "index.arrow"
LABEL_SOURCES = ("annotations", "main", "masks", "generator")


def color_map() -> tuple[tuple[int, int, int], ...]:
    """The 256 RGB colors of VOC's label maps: the bits of an index, dealt in turn to red, green and blue from the highest bit down."""
    return tuple(
        tuple(sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3))  # type: ignore[misc]
        for index in range(256)
    )


@dataclass(frozen=True)
class StoreInfo:
    """What a store says of itself. Whoever writes one gives the upper part, the writer fills in the lower."""

    dataset: str
    classes: tuple[str, ...]
    """Without background: class index i is value i + 1 in masks."""
    licence: str = ""
    palette: tuple[tuple[int, int, int], ...] = field(default_factory=color_map)
    """256 RGB colors for label maps."""
    mask_kinds: tuple[str, ...] = ("class",)
    subset: bool = False
    """True where a split holds fewer pictures than were published."""
    card: Mapping[str, int] = field(default_factory=dict)
    """Published number of pictures by split; empty where nothing was published."""
    made: Mapping[str, Any] = field(default_factory=dict)
    """How the store was made: settings and version. Not part of any key."""
    set_aside: tuple[Mapping[str, str], ...] = ()
    """[{id, reason}] of what was left out when the store was made."""

    splits: Mapping[str, int] = field(default_factory=dict)
    label_sources: Mapping[str, int] = field(default_factory=dict)
    """How many samples each source of class labels served; "none" counts those without labels."""
    count: int = 0
    files: tuple[Mapping[str, Any], ...] = ()
    """[{name, bytes, crc32, head, tail, edges}]: CRC-32 of the whole file, and of its first `head` and last `tail` bytes, which say where
    the records lie: that much is looked at on opening, so that one damaged record does not close the store."""
    version: int = FORMAT

    def to_metadata(self) -> dict[bytes, bytes]:
        return {f.name.encode(): json.dumps(getattr(self, f.name), sort_keys=True).encode() for f in dataclasses.fields(self)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes]) -> StoreInfo:
        values = {f.name: json.loads(metadata[f.name.encode()]) for f in dataclasses.fields(cls)}
        for name in ("classes", "mask_kinds", "set_aside", "files"):
            values[name] = tuple(values[name])
        values["palette"] = tuple((r, g, b) for r, g, b in values["palette"])
        return cls(**values)


@dataclass
class Index:
    """The index as arrays of n rows; `place` is (file, batch, row) of the bytes, a split's array the position in its list or -1."""

    ids: list[str]
    height: np.ndarray
    width: np.ndarray
    labels: np.ndarray
    labelled: np.ndarray
    source: np.ndarray
    picture: np.ndarray
    masks: dict[str, np.ndarray]
    crc32: dict[str, np.ndarray]
    """Of "picture" and of every mask kind, 0 where there is none: what `Sample.pixels` and `mask` are held against, some ten times faster
    than SHA-256, which is for keys and `Store.verify`."""
    place: np.ndarray
    splits: dict[str, np.ndarray]

    def checksum(self) -> str:
        """SHA-256 over all values, whatever the layout of the file that carries them: the identity of a store's content."""
        sink = hashlib.sha256()
        for part in self._values():
            sink.update(part)
        return sink.hexdigest()

    def crc(self) -> int:
        """CRC-32 of the same, some ten times faster: what is looked at on opening."""
        crc = 0
        for part in self._values():
            crc = zlib.crc32(part, crc)
        return crc

    def _values(self) -> Iterator[bytes | memoryview]:
        yield "\n".join(self.ids).encode()
        groups = {"masks": self.masks, "crc32": self.crc32, "splits": self.splits}
        arrays = {f"{group}.{name}": array for group, members in groups.items() for name, array in members.items()}
        for name in ("height", "width", "labels", "labelled", "source", "picture", "place"):
            arrays[name] = getattr(self, name)
        for name in sorted(arrays):
            array = np.ascontiguousarray(arrays[name])
            yield f"{name}:{array.dtype.str}:{array.shape}".encode()
            yield array.reshape(-1).view(np.uint8).data

    def to_batch(self, info: StoreInfo) -> pa.RecordBatch:
        c = self.labels.shape[1]
        labels = pa.FixedSizeListArray.from_arrays(pa.array(self.labels.reshape(-1)), c, mask=pa.array(~self.labelled))
        source = pa.DictionaryArray.from_arrays(pa.array(self.source, mask=self.source < 0), pa.array(LABEL_SOURCES))
        columns: dict[str, pa.Array] = {
            "id": pa.array(self.ids, pa.string()),
            "height": pa.array(self.height),
            "width": pa.array(self.width),
            "labels": labels,
            "label_source": source,
            "file": pa.array(self.place[:, 0]),
            "batch": pa.array(self.place[:, 1]),
            "row": pa.array(self.place[:, 2]),
            "sha256:picture": _digests(self.picture),
        }
        columns |= {f"sha256:mask:{kind}": _digests(digests) for kind, digests in self.masks.items()}
        columns |= {f"crc32:{name}": pa.array(crc) for name, crc in self.crc32.items()}
        columns |= {f"split:{name}": pa.array(at, mask=at < 0) for name, at in self.splits.items()}
        metadata = {**info.to_metadata(), b"rows_sha256": self.checksum().encode(), b"rows_crc32": b"%d" % self.crc()}
        metadata[b"metadata_crc32"] = b"%d" % metadata_crc(metadata)
        schema = pa.schema([pa.field(name, column.type) for name, column in columns.items()], metadata=metadata)
        return pa.record_batch(list(columns.values()), schema=schema)

    @classmethod
    def from_batch(cls, batch: pa.RecordBatch, info: StoreInfo) -> Index:
        """Zero-copy wherever the column has no gaps."""
        labels = batch.column("labels")
        n, c = len(labels), len(info.classes)
        labelled = labels.is_valid().to_numpy(zero_copy_only=False)
        values = labels.values.to_numpy()[: n * c].reshape(n, c)
        source = batch.column("label_source").indices
        return cls(
            ids=batch.column("id").to_pylist(),
            height=batch.column("height").to_numpy(),
            width=batch.column("width").to_numpy(),
            labels=values if labelled.all() else values * labelled[:, None],
            labelled=labelled,
            source=_filled(source),
            picture=_rows_of_digests(batch.column("sha256:picture")),
            masks={kind: _rows_of_digests(batch.column(f"sha256:mask:{kind}")) for kind in info.mask_kinds},
            crc32={name: batch.column(f"crc32:{name}").to_numpy() for name in ("picture", *info.mask_kinds)},
            place=np.stack([batch.column(name).to_numpy() for name in ("file", "batch", "row")], axis=1),
            splits={name: _filled(batch.column(f"split:{name}")) for name in info.splits},
        )


def metadata_crc(metadata: Mapping[bytes, bytes]) -> int:
    """CRC-32 over the names and values of an index's metadata, its own left out."""
    crc = 0
    for name in sorted(metadata):
        if name != b"metadata_crc32":
            crc = zlib.crc32(b"%d:%d:%b%b" % (len(name), len(metadata[name]), name, metadata[name]), crc)
    return crc


def sample_schema(mask_kinds: tuple[str, ...]) -> pa.Schema:
    """Of the files with the bytes: what a sample is, without its labels (those are in the index)."""
    columns = [pa.field("id", pa.string(), nullable=False), pa.field("picture", pa.binary(), nullable=False)]
    return pa.schema(
        [*columns, *(pa.field(f"mask:{kind}", pa.binary()) for kind in mask_kinds)], metadata={b"version": str(FORMAT).encode()}
    )


def _digests(rows: np.ndarray) -> pa.Array:
    """(n, 32) to fixed-size binary, all-zero rows to null."""
    return pa.array([row.tobytes() if row.any() else None for row in rows], pa.binary(32))


def _rows_of_digests(column: pa.Array) -> np.ndarray:
    rows = np.frombuffer(column.buffers()[1], np.uint8, count=32 * len(column), offset=32 * column.offset).reshape(-1, 32)
    return rows * column.is_valid().to_numpy(zero_copy_only=False)[:, None] if column.null_count else rows


def _filled(column: pa.Array) -> np.ndarray:
    return column.fill_null(-1).to_numpy(zero_copy_only=False)
