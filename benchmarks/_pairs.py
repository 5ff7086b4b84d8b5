"""Measuring in pairs: ours and the reference take turns in one process, and a ratio is the median over the pairs.

    from _pairs import main, pair
    def rows(args):
        yield pair("threshold sweep", ours, reference, repeats=1 if args.quick else 5)
    if __name__ == "__main__":
        main(rows)

gives `python benchmarks/NAME.py [--json FILE] [--quick] [--only PART] [--threads N]` and a file of the documented form.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def pair(
    work: str,
    ours: Callable[[], Any],
    reference: Callable[[], Any],
    *,
    unit: str = "s",
    repeats: int = 5,
    warm: bool = True,
    memory: bool = False,
) -> dict[str, Any]:
    """A row; `work` is its name in the list of goals. ratio = reference / ours, above 1 where ours is faster; low, high: of a single pair.

    With memory, `memory_ratio` is ours / reference of the largest growth of resident memory during a call.
    """
    if warm:
        ours()
        reference()
    times: list[tuple[float, float]] = []
    peaks: list[tuple[float, float]] = []
    for i in range(repeats):
        first, second = (ours, reference) if i % 2 == 0 else (reference, ours)  # neither always comes second
        one, other = measured(first, memory), measured(second, memory)
        mine, theirs = (one, other) if i % 2 == 0 else (other, one)
        times.append((mine[0], theirs[0]))
        peaks.append((mine[1], theirs[1]))
    ratios = [theirs / mine for mine, theirs in times]
    return {
        "work": work,
        "ours": statistics.median(t[0] for t in times),
        "reference": statistics.median(t[1] for t in times),
        "unit": unit,
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "memory_ratio": statistics.median(a / b for a, b in peaks) if memory and all(b > 0 for _, b in peaks) else None,
        "memory_mb": [statistics.median(p[i] for p in peaks) for i in (0, 1)] if memory else None,
    }


def measured(work: Callable[[], Any], memory: bool = False) -> tuple[float, float]:
    """Seconds, and the largest growth of resident memory in MB (sampled every 2 ms; 0 where it isn't asked for)."""
    if not memory:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start, 0.0
    release_memory()
    before, peak, done = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    try:
        work()
        seconds = time.perf_counter() - start
    finally:
        done.set()
        watcher.join()
    return seconds, max(peak[0], resident()) - before


def resident() -> float:
    """Resident memory of this process, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def release_memory() -> None:
    """Freed memory goes back to the system, so that the next measurement starts from what is really held."""
    import ctypes
    import gc

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def machine(threads: int) -> dict[str, Any]:
    import numpy
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "threads": threads,
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "load": os.getloadavg()[0],
    }


def main(rows: Callable[[Any], Iterator[dict[str, Any]]], options: Callable[[argparse.ArgumentParser], Any] | None = None) -> None:
    """Command line of a benchmark. `rows(args)` yields the rows; args has json, quick, only, threads and what `options` adds."""
    about = sys.modules["__main__"].__doc__
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--quick", action="store_true", help="smaller work: shows that it runs, measures little")
    parser.add_argument("--only", default="", help="only rows whose name holds this text")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    if options is not None:
        options(parser)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    import torch

    torch.set_num_threads(args.threads)
    done = []
    print(f"{'work':<28}{'ours':>12}{'reference':>12}  unit {'ratio':>8}{'pairs':>16}{'memory':>9}")
    for row in rows(args):
        done.append(row)
        memory = "" if row.get("memory_ratio") is None else f"{row['memory_ratio']:.2f}"
        spread = f"{row['low']:.2f} to {row['high']:.2f}"
        figures = f"{row['ours']:>12.4g}{row['reference']:>12.4g}  {row['unit']:<5}{row['ratio']:>8.2f}"
        print(f"{row['work']:<28}{figures}{spread:>16}{memory:>9}", flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"machine": machine(args.threads), "rows": done}, indent=1) + "\n")
