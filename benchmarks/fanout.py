"""What it costs to send per-image work to actors: the plain local loop beside Ray, on the same trivial work.

    python benchmarks/fanout.py [--json FILE] [--quick]

`fan-out`: milliseconds a picture for as many as VOC's trainaug has, starting the actors included, connecting to Ray not;
the overhead is the difference of the two columns.
`driver memory, 200,000 ids`: MB by which the driver's resident memory grows, beside its growth at 20,000 ids.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from _pairs import main, measured, pair

from seedbed.artefacts import Stage, column, stage_schema
from seedbed.local import LocalExecutor

SCHEMA = stage_schema(column("length", pa.int64()), column("text", pa.string()))


@dataclass(frozen=True)
class Trivial:
    """A record without any work: what remains is the cost of handing it round."""

    light: ClassVar[bool] = False

    def open(self) -> Callable[[str], dict[str, Any]]:
        return lambda ident: {"id": ident, "length": len(ident), "text": ident}


class Silent:
    def advance(self, n: int = 1, set_aside: int = 0) -> None:
        pass


def rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from seedbed.runtime.cluster import connect
    from seedbed.runtime.fanout import map_images_on_ray

    with tempfile.TemporaryDirectory() as folder, connect(Path(folder), actors=args.actors, device="cpu"):
        import ray

        ray.cloudpickle.register_pickle_by_value(sys.modules["__main__"])
        fresh = (Stage(Path(folder), "fanout", str(i), SCHEMA) for i in range(10_000))

        def on_ray(count: int) -> None:
            done = map_images_on_ray(Trivial(), names(count), next(fresh), actors=args.actors, threads=args.threads)
            assert done == count

        def plain(count: int) -> None:
            LocalExecutor(device="cpu", threads=args.threads, workers=1, commit_every=256).map_images(
                Trivial(), names(count), next(fresh), Silent()
            )

        if args.only in "fan-out":
            n = 500 if args.quick else 10_582
            row = pair("fan-out", lambda: on_ray(n), lambda: plain(n), unit="ms", repeats=1 if args.quick else 3)
            yield row | {k: row[k] * 1000 / n for k in ("ours", "reference")} | {"pictures": n, "actors": args.actors}
        if args.only in "driver memory, 200,000 ids":
            few, many = (500, 5000) if args.quick else (20_000, 200_000)
            on_ray(few)  # imports, and what Ray keeps from its first use on
            (_, small), (_, large) = measured(lambda: on_ray(few), True), measured(lambda: on_ray(many), True)
            ratio = small / max(large, 0.1)
            row = {"work": "driver memory, 200,000 ids", "ours": large, "reference": small, "unit": "MB", "memory_ratio": None}
            yield row | {"ratio": ratio, "low": ratio, "high": ratio, "pictures": [many, few]}


def names(count: int) -> list[str]:
    return [f"2007_{i:06d}" for i in range(count)]


if __name__ == "__main__":
    main(rows, lambda parser: parser.add_argument("--actors", type=int, default=2, help="actors (default 2)"))
