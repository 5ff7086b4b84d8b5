"""What loading costs the segmenter's training: pictures per second of a training, beside a bare loop over one batch in memory.

Both make the same updates of the same network; ours decodes, augments and logs as a run does. On a CPU the loader may cost a tenth at most:
a ratio of 0.9. Three rows: every picture decoded each time it is asked for, as in a set that fits no memory; kept once decoded, as small
sets are (each training begins with nothing kept); and JPEGs of 500 x 375, each decoded, with a crop of 321.
`--model`, `--backbone`, `--crop`, `--device cuda`, `--precision bf16`, `--compile` measure a training as it runs on a GPU; the row then
has the share of the time that the steps waited for data, and the matrix rate that the updates reach.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _pairs import main, pair
from PIL import Image

from seedbed import loop
from seedbed.artefacts import LABELS, Stage
from seedbed.artefacts.records import label_record
from seedbed.data import open_store
from seedbed.data.shapes import CLASSES, ShapesConfig, make_shapes, samples
from seedbed.data.store import StoreInfo, StoreWriter
from seedbed.loop import run as run_module
from seedbed.loop.ahead import ahead
from seedbed.loop.determinism import settled
from seedbed.loop.run import _placed
from seedbed.segment import SegmenterConfig, SegmenterTask
from seedbed.segment.task import SegmentBatch
from seedbed.types import Sample

PHOTOGRAPH = (375, 500)
"""Height and width of most pictures of PASCAL VOC."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What a row measures."""

    name: str
    size: int
    """Side of the made pictures; of photographs the longer side."""
    crop: int
    batch: int
    updates: int
    pictures: int
    decoded_mb: int
    pairs: int
    photographs: bool = False


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


def labelled(folder: Path, case: Case) -> tuple[Path, Path, tuple[str, ...]]:
    """A store of made pictures, and an artefact with their masks as labels."""
    shapes = ShapesConfig(size=case.size, train=case.pictures, val=0)
    path = photographs(folder / "store", shapes) if case.photographs else make_shapes(folder / "store", shapes)
    store = open_store(path)
    stage, ids = Stage(folder, "masks", "made", LABELS), store.ids("train")
    with stage.writer() as writer:
        for ident in ids:
            mask = store[ident].mask("class")
            assert mask is not None
            writer.add(label_record(ident, mask, 0.0))
    stage.finish(computed=len(ids), seconds=0)
    return path, stage.folder, tuple(ids)


def photographs(path: Path, shapes: ShapesConfig) -> Path:
    """The made pictures at the size and in the format of a photograph; their noise makes their files as large as a photograph's."""
    height, width = PHOTOGRAPH

    def cut(sample: Sample) -> Sample:
        mask = sample.mask("class")
        assert mask is not None and sample.width == width
        data = {"picture": encoded(sample.pixels()[:height], "JPEG", quality=95), "class": encoded(mask[:height], "PNG")}
        return dataclasses.replace(sample, picture=data["picture"], height=height, masks={"class": data["class"]})

    with StoreWriter(path, StoreInfo("photographs", CLASSES, "CC0-1.0: made pictures", ((0, 0, 0),) * 256, ("class",))) as writer:
        for sample in samples("train", shapes):
            writer.add(cut(sample), splits=("train",))
    return path


def encoded(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind, **options)
    return sink.getvalue()


def bare(task: SegmenterTask, memory: SegmentBatch, device: str, updates: int) -> None:
    """The same updates on one batch in memory: no loop, no log, no checkpoint."""
    with settled(task.pace, device, torch.get_num_threads()):
        torch.manual_seed(0)
        model = task.build().to(device).train()
        if task.pace.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = task.optimizer(model, task.steps)
        batch = _placed(memory, device, task.pace.channels_last)
        for step in range(updates):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=task.pace.precision == "bf16"):
                loss = task.loss(model, batch, step).losses["loss"]
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """The rows; a photograph takes so much longer that fewer of them are measured."""
    crop, batch, pairs = args.crop or 96, args.batch or 16, args.pairs or (1 if args.quick else 5)
    updates = args.updates or (4 if args.quick else 60)
    small = Case("segmenter loader", args.size, crop, batch, updates, max(64 if args.quick else 240, 4 * batch), 0, pairs)
    yield small
    yield dataclasses.replace(small, name="segmenter loader, cached", decoded_mb=256)
    crop, batch, updates = args.crop or 321, args.batch or 8, args.updates or (2 if args.quick else 12)
    pictures, pairs = batch if args.quick else 4 * batch, args.pairs or (1 if args.quick else 3)
    yield Case("segmenter loader, 500 x 375", PHOTOGRAPH[1], crop, batch, updates, pictures, 0, pairs, photographs=True)


def rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for case in cases(args):
        if args.only in case.name:
            with tempfile.TemporaryDirectory() as scratch:
                yield measure(case, args, Path(scratch))


def measure(case: Case, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    path, labels, ids = labelled(folder, case)
    config = SegmenterConfig.named(
        "small", weights="none", steps=case.updates, batch=case.batch, crop=case.crop, compile=args.compile,
        precision=args.precision, model=args.model, backbone=args.backbone, decoded_mb=case.decoded_mb,
    )  # fmt: skip
    made, shares, waiting = iter(range(10**6)), list[float](), Waiting()
    run_module.ahead = waiting  # type: ignore[assignment]

    def task() -> SegmenterTask:
        fresh = SegmenterTask(str(path), None, ids, labels, config, 0, len(CLASSES) + 1, column="label_map")
        fresh.open()
        return fresh

    memory = task().batch(0, 0, 1)

    def ours() -> None:
        waiting.seconds, began = 0.0, time.perf_counter()
        loop.train(task(), folder / f"run-{next(made)}", device=args.device, threads=torch.get_num_threads())
        shares.append(waiting.seconds / (time.perf_counter() - began))

    figures = pair(case.name, ours, lambda: bare(task(), memory, args.device, case.updates), repeats=case.pairs, warm=not args.quick)
    pictures = case.updates * case.batch
    row = {**figures, "ours": pictures / figures["ours"], "reference": pictures / figures["reference"], "unit": "1/s"}
    row |= {"waiting_share": statistics.median(shares), "crop": case.crop, "batch": case.batch, "decoded_mb": case.decoded_mb}
    print(f"    {case.name}: waiting for data {100 * row['waiting_share']:.1f} % of the time")
    if args.device == "cuda":
        row |= matrix_rates(task(), case.batch, pictures / figures["ours"], pictures / figures["reference"])
        print(f"    {row['tflops']:.0f} TFLOP/s ({row['bare_tflops']:.0f} without loading), matrix products {row['matrix_tflops']:.0f}")
    return row


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
    parser.add_argument("--updates", type=int, default=0, help="updates a measurement (default 60, of photographs 12)")
    parser.add_argument("--pairs", type=int, default=0, help="how many pairs (default 5, of photographs 3)")
    parser.add_argument("--model", default="small", choices=["small", "deeplab_v2"])
    parser.add_argument("--backbone", default="auto")
    parser.add_argument("--size", type=int, default=96, help="side of the made pictures, of photographs always 500 x 375")
    parser.add_argument("--crop", type=int, default=0, help="side of the crops (default 96, of photographs 321)")
    parser.add_argument("--batch", type=int, default=0, help="pictures an update (default 16, of photographs 8)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "bf16"])
    parser.add_argument("--compile", action="store_true")


if __name__ == "__main__":
    main(rows, options)
