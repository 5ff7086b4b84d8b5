"""The worker's side of the fan-out: what lives in an actor's process, opens the work once, and turns blocks of ids into fragments."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from seedbed.artefacts import Stage
from seedbed.local import ImageWork, reason
from seedbed.types import UserError

COMPUTED, KEPT, ASIDE = "computed", "kept", "aside"
"""States of an id: its record exists in the actor; the record is committed; set aside with a reason."""
REPORT_SECONDS = 0.5
ANSWER = pa.schema([("ids", pa.list_(pa.string())), ("states", pa.list_(pa.string())), ("error", pa.binary())])
"""One row per answer, so that Ray Data sends it whole and at once."""


class ImageActor:
    """Called by Ray Data with a table of one row, `ids`; yields tables of the schema ANSWER."""

    def __init__(self, work: ImageWork, stage: Stage, threads: int, commit_every: int, alone: bool) -> None:
        self.stage, self.commit_every, self.alone = stage, commit_every, alone
        self.failure: Exception | None = None
        try:
            if not stage.folder.is_dir():
                raise not_shared(stage.folder)
            set_threads(threads)
            self.compute = work.open()
        except Exception as error:
            self.failure = error

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        (ids,) = block["ids"].to_pylist()
        try:
            if self.failure is not None:
                raise self.failure
            yield from self._block(ids)
        except Exception as error:  # not the picture's: the work can't be opened, or the disk is full
            yield _answer([], _pickled(error))

    def _block(self, ids: Sequence[str]) -> Iterator[pa.Table]:
        aside: set[str] = set()
        rows: list[tuple[str, str]] = []
        told = time.monotonic()
        with self.stage.writer(self.commit_every) as writer:
            for ident in ids:
                note = self._note_attempt(ident) if self.alone else None
                try:
                    record = self.compute(ident)
                except Exception as error:
                    if poisoned(error):
                        writer.commit()
                        os._exit(70)  # every later picture of this process would fail too; a fresh one takes over
                    self.stage.set_aside(ident, reason(error))
                    aside.add(ident)
                    rows.append((ident, ASIDE))
                else:
                    writer.add(record)
                    rows.append((ident, COMPUTED))
                if note is not None:
                    note.unlink(missing_ok=True)
                if time.monotonic() - told > REPORT_SECONDS:
                    yield _answer(rows)
                    rows, told = [], time.monotonic()
        yield _answer([*rows, *((i, KEPT) for i in ids if i not in aside)])

    def _note_attempt(self, ident: str) -> Path:
        """A file that outlives the process: which picture it was at, and on which node."""
        import ray

        note = self.stage.folder / f".trying-{hashlib.sha256(ident.encode()).hexdigest()[:16]}"
        note.write_text(f"{ident}\n{ray.get_runtime_context().get_node_id()}")
        return note


def set_threads(threads: int) -> None:
    """Threads are part of the bits; torch may not be loaded yet, and this process must not decide to load it."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def poisoned(error: Exception) -> bool:
    """CUDA errors other than a lack of memory leave the process unable to compute anything."""
    return "CUDA error" in str(error) and "out of memory" not in str(error)


def _answer(states: Sequence[tuple[str, str]], error: bytes | None = None) -> pa.Table:
    row = {"ids": [i for i, _ in states], "states": [s for _, s in states], "error": error}
    return pa.Table.from_pylist([row], schema=ANSWER)


def _pickled(error: Exception) -> bytes:
    """An error for the driver; a bug's comes with the traceback of this process."""
    if not isinstance(error, UserError):
        error.add_note("in a worker:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(content := pickle.dumps(error))
    except Exception:
        return pickle.dumps(RuntimeError(reason(error)))
    return content


def not_shared(folder: Path, what: str = "a worker does not see the output folder") -> UserError:
    return UserError(
        what, file=folder, field="--out", remedy="give a folder on a file system that every node mounts at the same path (docs/cluster.md)"
    )
