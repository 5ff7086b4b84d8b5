"""What loading costs the segmenter's training: pictures per second of a training, beside a bare loop over one batch in memory.

Both make the same updates of the same network; ours decodes, augments and logs as a run does. On a CPU the loader may cost a tenth at most.
`--model`, `--backbone`, `--crop`, `--device cuda`, `--precision bf16`, `--compile` measure a training as it runs on a GPU; the row then
has the share of the time that the steps waited for data, and the matrix rate that the updates reach.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from _pairs import main, pair

from seedbed import loop
from seedbed.artefacts import LABELS, Stage
from seedbed.artefacts.records import label_record
from seedbed.data import open_store
from seedbed.data.shapes import CLASSES, ShapesConfig, make_shapes
from seedbed.loop import run as run_module
from seedbed.loop.ahead import ahead
from seedbed.loop.determinism import settled
from seedbed.loop.run import _placed
from seedbed.segment import SegmenterConfig, SegmenterTask


class Waiting:
    """`loop.ahead` with a clock: the seconds that the steps wait for their batches, without the first one's."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, *given: Any) -> Iterator[Any]:
        batches, first = ahead(*given), True
        try:
            while True:
                began = time.perf_counter()
                made = next(batches, None)
                if made is None:
                    return
                self.seconds += 0.0 if first else time.perf_counter() - began
                first = False
                yield made
        finally:
            batches.close()


def labelled(folder: Path, pictures: int, size: int) -> tuple[Path, Path, tuple[str, ...]]:
    """A store of made pictures, and an artefact with their masks as labels."""
    path = make_shapes(folder / "store", ShapesConfig(size=size, train=pictures, val=0))
    store = open_store(path)
    stage, ids = Stage(folder, "masks", "made", LABELS), store.ids("train")
    with stage.writer() as writer:
        for ident in ids:
            mask = store[ident].mask("class")
            assert mask is not None
            writer.add(label_record(ident, mask, 0.0))
    stage.finish(computed=len(ids), seconds=0)
    return path, stage.folder, tuple(ids)


def bare(task: SegmenterTask, device: str, updates: int) -> None:
    """The same updates on one batch in memory: no loop, no log, no checkpoint."""
    with settled(task.pace, device, torch.get_num_threads()):
        torch.manual_seed(0)
        model = task.build().to(device).train()
        if task.pace.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = task.optimizer(model, task.steps)
        batch = _placed(task.batch(0, 0, 1), device, task.pace.channels_last)
        for step in range(updates):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=task.pace.precision == "bf16"):
                loss = task.loss(model, batch, step).losses["loss"]
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()


def rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    name = "segmenter loader"
    if args.only not in name:
        return
    updates = args.updates or (4 if args.quick else 60)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path, labels, ids = labelled(folder, max(64, 4 * args.batch) if args.quick else max(240, 4 * args.batch), args.size)
        config = SegmenterConfig.named(
            "small", weights="none", steps=updates, batch=args.batch, crop=args.crop, compile=args.compile,
            precision=args.precision, model=args.model, backbone=args.backbone,
        )  # fmt: skip
        made, shares, waiting = iter(range(10**6)), list[float](), Waiting()
        run_module.ahead = waiting  # type: ignore[assignment]

        def task() -> SegmenterTask:
            fresh = SegmenterTask(str(path), None, ids, labels, config, 0, len(CLASSES) + 1, column="label_map")
            fresh.open()
            return fresh

        def ours() -> None:
            waiting.seconds, began = 0.0, time.perf_counter()
            loop.train(task(), folder / f"run-{next(made)}", device=args.device, threads=torch.get_num_threads())

            shares.append(waiting.seconds / (time.perf_counter() - began))

        figures = pair(
            name, ours, lambda: bare(task(), args.device, updates), repeats=args.pairs or (1 if args.quick else 5), warm=not args.quick
        )
        pictures = updates * args.batch
        row = {**figures, "ours": pictures / figures["ours"], "reference": pictures / figures["reference"], "unit": "1/s"}
        row["waiting_share"] = statistics.median(shares)
        print(f"    waiting for data: {100 * row['waiting_share']:.1f} % of the time")
        if args.device == "cuda":
            row |= matrix_rates(task(), args.batch, pictures / figures["ours"], pictures / figures["reference"])
            print(f"    {row['tflops']:.0f} TFLOP/s ({row['bare_tflops']:.0f} without loading), matrix products {row['matrix_tflops']:.0f}")
        yield row


def matrix_rates(task: SegmenterTask, batch: int, ours: float, reference: float) -> dict[str, float]:
    """TFLOP/s of the training (2 per multiply-add, forward and backward), and of a large bfloat16 product on the same device."""
    from torch.utils.flop_counter import FlopCounterMode

    model = task.build().cuda().train()
    with FlopCounterMode(display=False) as counter:
        task.loss(model, _placed(task.batch(0, 0, 1), "cuda", True), 0).losses["loss"].backward()
    one = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        one @ one
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(20):
        one @ one
    torch.cuda.synchronize()
    peak = 20 * 2 * 8192**3 / (time.perf_counter() - began)
    each = counter.get_total_flops() / batch
    return {"tflops": ours * each / 1e12, "bare_tflops": reference * each / 1e12, "matrix_tflops": peak / 1e12}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--updates", type=int, default=0, help="updates a measurement (default 60, with --quick 4)")
    parser.add_argument("--pairs", type=int, default=0, help="how many pairs (default 5, with --quick 1)")
    parser.add_argument("--model", default="small", choices=["small", "deeplab_v2"])
    parser.add_argument("--backbone", default="auto")
    parser.add_argument("--size", type=int, default=96, help="side of the made pictures")
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "bf16"])
    parser.add_argument("--compile", action="store_true")


if __name__ == "__main__":
    main(rows, options)
