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
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from seedbed.artefacts.files import write_atomically
from seedbed.artefacts.fragments import BATCH_RECORDS, Fragments, Writer, write_table

FORMAT = 1
SHARD_BYTES = 256 << 20
OF_PICTURES = ("inputs", "split", "truth", "tolerance")
"""Settings that say which pictures a stage looks at and how these are scored, not what becomes of one."""
BATCH_BYTES = 16 << 20
"""What compacting gathers in memory before it writes. A record of AffinityNet's scores or of many classes' maps has megabytes."""


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
        if "uncounted" in self.schema.names:  # the record is there, but does not count in the scores
            aside |= {ident: why for ident, why in known.columns("id", "uncounted") if why}
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
        try:
            count = len(self.records())
        except FileNotFoundError:  # another process is just finishing it and puts its fragments away
            with self.alone():
                count = len(self.records())
        if count != manifest["count"]:
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

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """For one process or thread at a time (flock): who comes second waits, and then looks whether the artefact is whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / ".lock"
        with open(path, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
            if self.manifest is not None:  # whoever still waits for this file finds the artefact whole
                path.unlink(missing_ok=True)

    def relatives(self) -> list[dict[str, Any]]:
        """Manifests of whole artefacts that differ from this one in nothing but their pictures and how these are scored.

        What a stage that looks at one picture at a time makes of it is the same in each. `folder` is added.
        """
        found = []
        for path in sorted(self.folder.parent.glob("*/manifest.json")):
            other = json.loads(path.read_text())
            same = (other["inputs"], other["version"], other["format"]) == (self.inputs, self.version, FORMAT)
            if other["key"] != self.key and same and _of_the_work(other["settings"]) == _of_the_work(self.settings):
                found.append({**other, "folder": str(path.parent)})
        return found

    def take_over(self, records: Fragments, ids: Sequence[str]) -> None:
        """Commits other artefact's records of these pictures as this one's own."""
        with self.writer() as writer:
            for ident in ids:
                writer.add({name: value for name, value in records[ident].items() if name != "hash"})

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
            write_table(temporary, _batches(known, taken), self.schema)
            shards.append((temporary, self.folder / f"shard-{uuid.uuid4().hex[:8]}-{number:05d}.arrow"))
            start, number = start + len(taken), number + 1
        for temporary, final in shards:
            os.replace(temporary, final)


def _batches(known: Fragments, ids: Sequence[str]) -> Iterator[pa.Table]:
    """The records in this order, at most BATCH_RECORDS and BATCH_BYTES at a time; a larger record comes alone."""
    parts: list[pa.RecordBatch] = []
    size = 0
    for ident in ids:
        batch, row = known.batch_of(ident)
        part = batch.slice(row, 1)
        if parts and (len(parts) == BATCH_RECORDS or size + part.nbytes > BATCH_BYTES):
            yield pa.Table.from_batches(parts).combine_chunks()
            parts, size = [], 0
        parts.append(part)
        size += part.nbytes
    if parts:
        yield pa.Table.from_batches(parts).combine_chunks()


def _of_the_work(settings: Mapping[str, Any]) -> Any:
    """Settings without those of the pictures and their scores; as JSON has it: a manifest's tuples are lists."""
    return json.loads(json.dumps({name: value for name, value in settings.items() if name not in OF_PICTURES}))


def fills_labels(settings: Mapping[str, Any]) -> bool:
    """Of predictions: whether they are the first segmenter's, which fill labels and are not scored."""
    return "tolerance" not in settings


def find_stages(run: Path, stage: str | None = None) -> list[dict[str, Any]]:
    """Manifests of the whole artefacts under an output folder, oldest first."""
    paths = sorted((Path(run) / "stages").glob(f"{stage or '*'}/*/manifest.json"), key=lambda p: p.stat().st_mtime)
    return [{**json.loads(p.read_text()), "folder": str(p.parent)} for p in paths]
