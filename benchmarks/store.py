"""Opening a sample store of VOC's size, and taking samples from it, beside the ways that need no store.

    python benchmarks/store.py [--json FILE] [--quick] [--pairs 9] [--samples 10582] [--kilobytes 20]

Made samples of random bytes (VOC's pictures have some 90 kB: the pickle would be four times slower still). All three hold the same bytes
and are in the page cache. `store open`: until ids of a split, labels and one sample's bytes are at hand; the reference reads and unpickles
one file with everything. `store open, folder tree`: the reference lists VOC's folder of pictures and reads the split list and a pickled
dictionary of labels, as the official readers do. `store access`: 1,000 samples in random order; the reference opens and reads their files.
Memory is the growth of the process: private to it in the reference, shared pages in ours.
"""

from __future__ import annotations

import argparse
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _pairs import main, pair

from seedbed.data import StoreInfo, StoreWriter, open_store
from seedbed.types import Sample

CLASSES = 20


def write_all(folder: Path, samples: int, size: int) -> None:
    """The same samples as a store, as a folder tree and as one pickled list."""
    rng = np.random.default_rng(0)
    labels = (rng.random((samples, CLASSES)) < 0.08).astype(np.uint8)
    (folder / "JPEGImages").mkdir()
    pickled, by_id, ids = [], {}, []
    with StoreWriter(folder / "store", StoreInfo("made", tuple(f"class {i}" for i in range(CLASSES)))) as writer:
        for number in range(samples):
            ident, picture = f"2008_{number:06d}", rng.bytes(size)
            writer.add(Sample(ident, picture, 375, 500, labels[number], "generator"), splits=("trainaug",))
            (folder / "JPEGImages" / f"{ident}.jpg").write_bytes(picture)
            pickled.append({"id": ident, "picture": picture, "labels": labels[number]})
            by_id[ident] = labels[number].astype(np.float32)
            ids.append(ident)
    (folder / "all.pickle").write_bytes(pickle.dumps(pickled))
    (folder / "labels.pickle").write_bytes(pickle.dumps(by_id))
    (folder / "trainaug.txt").write_text("\n".join(ids))


def rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    samples, size = (500, 2000) if args.quick else (args.samples, args.kilobytes * 1000)
    pairs = 3 if args.quick else args.pairs
    folder = Path(tempfile.mkdtemp(prefix="store-benchmark-"))
    try:
        write_all(folder, samples, size)
        last = f"2008_{samples - 1:06d}"

        def ours() -> int:
            store = open_store(folder / "store")
            ids = store.ids("trainaug")
            return len(ids) + int(store.labels(ids).sum()) + len(bytes(store[last].picture))

        def unpickled() -> int:
            everything = {entry["id"]: entry for entry in pickle.loads((folder / "all.pickle").read_bytes())}
            return len(everything) + int(sum(e["labels"].sum() for e in everything.values())) + len(everything[last]["picture"])

        def listed() -> int:
            files = {path.stem: path for path in (folder / "JPEGImages").iterdir()}
            ids = (folder / "trainaug.txt").read_text().split()
            labels = pickle.loads((folder / "labels.pickle").read_bytes())
            return len(ids) + int(np.stack([labels[ident] for ident in ids]).sum()) + len(files[last].read_bytes())

        if not ours() == unpickled() == listed():
            raise RuntimeError("the three do not hold the same")
        store = open_store(folder / "store")
        chosen = [f"2008_{i:06d}" for i in np.random.default_rng(1).integers(0, samples, 1000)]

        def mapped() -> int:
            return sum(memoryview(store[ident].picture)[-1] for ident in chosen)

        def files() -> int:
            return sum((folder / "JPEGImages" / f"{ident}.jpg").read_bytes()[-1] for ident in chosen)

        if mapped() != files():
            raise RuntimeError("store and files do not hold the same")
        for work, mine, reference, memory in (
            ("store open", ours, unpickled, True),
            ("store open, folder tree", ours, listed, False),
            ("store access", mapped, files, False),
        ):
            if args.only in work:
                yield milliseconds(pair(work, mine, reference, repeats=pairs, memory=memory))
    finally:
        shutil.rmtree(folder)


def milliseconds(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "ours": row["ours"] * 1e3, "reference": row["reference"] * 1e3, "unit": "ms"}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", type=int, default=9, help="measured pairs of every row (default 9)")
    parser.add_argument("--samples", type=int, default=10_582, help="samples (default 10,582, VOC's trainaug)")
    parser.add_argument("--kilobytes", type=int, default=20, help="size of a picture's file (default 20)")


if __name__ == "__main__":
    main(rows, options)
