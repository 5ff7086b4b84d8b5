"""The records of a stage and the typed values that they stand for: from one to the other and back."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from seedbed.artefacts.fragments import Fragments
from seedbed.artefacts.stage import find_stages
from seedbed.types import Maps, Prediction, PseudoLabel, Seeds, UserError

if TYPE_CHECKING:
    from torch import Tensor

SCORE_STEPS = 65535


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Named arrays as bytes: equal arrays give equal bytes."""
    head = [[name, arrays[name].dtype.str, list(arrays[name].shape)] for name in sorted(arrays)]
    text = json.dumps(head, separators=(",", ":")).encode()
    return len(text).to_bytes(4, "little") + text + b"".join(np.ascontiguousarray(arrays[name]).tobytes() for name in sorted(arrays))


def unpack(content: bytes) -> dict[str, np.ndarray]:
    length = int.from_bytes(content[:4], "little")
    out, at = {}, 4 + length
    for name, kind, shape in json.loads(content[4:at]):
        dtype = np.dtype(kind)
        count = int(np.prod(shape, dtype=np.int64))
        out[name] = np.frombuffer(content, dtype, count, at).reshape(shape)
        at += count * dtype.itemsize
    return out


def _join(planes: list[np.ndarray]) -> bytes:
    return b"".join(np.ascontiguousarray(p, dtype="<f4").tobytes() for p in planes)


def _split(content: bytes, n: int, shapes: list[list[int]], offset: int = 0) -> list[np.ndarray]:
    out = []
    for h, w in shapes:
        out.append(np.frombuffer(content, "<f4", n * h * w, offset).reshape(n, h, w).copy())
        offset += 4 * n * h * w
    return out


INPUTS = "maps.inputs"
"""Name below which `Maps.inputs` (s, 2) stands among a record's packed arrays: those without keep the bytes they always had."""


def maps_record(maps: Maps, seconds: float) -> dict[str, Any]:
    log = {name: np.asarray(values, dtype=np.float64) for name, values in maps.log.items()}
    if maps.inputs:
        log[INPUTS] = np.asarray(maps.inputs, dtype=np.int64)
    return {
        "id": maps.id,
        "height": maps.height,
        "width": maps.width,
        "classes": [int(c) for c in maps.classes],
        "scales": [float(s) for s in maps.scales],
        "shapes": [list(plane.shape[-2:]) for plane in maps.sums],
        "sums": _join(maps.sums),
        "steps": maps.steps,
        "ended": maps.ended,
        "log": pack(log),
        "snapshots": None if maps.snapshots is None else b"".join(_join(step) for step in maps.snapshots),
        "seconds": seconds,
    }


def maps_from(record: Mapping[str, Any]) -> Maps:
    n, shapes = len(record["classes"]), record["shapes"]
    size = 4 * n * sum(h * w for h, w in shapes)
    content = record["snapshots"]
    log = {name: values.tolist() for name, values in unpack(record["log"]).items()}
    count = 0 if content is None or size == 0 else len(content) // size
    return Maps(
        id=record["id"],
        height=record["height"],
        width=record["width"],
        classes=np.asarray(record["classes"], dtype=np.int64),
        scales=tuple(record["scales"]),
        sums=_split(record["sums"], n, shapes),
        steps=record["steps"],
        ended=record["ended"],
        inputs=tuple((h, w) for h, w in log.pop(INPUTS, [])),
        log=log,
        snapshots=None if content is None else [_split(content, n, shapes, k * size) for k in range(count)],
    )


def png(label_map: np.ndarray, palette: list[list[int]] | None = None) -> bytes:
    """A (h, w) uint8 label map as PNG; with a palette of (r, g, b) as the VOC devkit stores it."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(label_map, dtype=np.uint8), mode="L")
    if palette is not None:
        picture = picture.convert("L")
        picture = Image.frombytes("P", picture.size, picture.tobytes())
        picture.putpalette([value for colour in palette for value in colour])
    sink = io.BytesIO()
    picture.save(sink, format="PNG")
    return sink.getvalue()


def pixels_hash(label_map: np.ndarray) -> str:
    """SHA-256 of a label map: a PNG's own bytes depend on the zlib that wrote it."""
    return hashlib.sha256(np.ascontiguousarray(label_map, dtype=np.uint8).tobytes()).hexdigest()


def label_record(ident: str, label_map: np.ndarray, seconds: float) -> dict[str, Any]:
    """A (h, w) uint8 label map: seeds, confidence labels, predictions."""
    height, width = label_map.shape
    return {
        "id": ident,
        "height": height,
        "width": width,
        "pixels": pixels_hash(label_map),
        "label_map": png(label_map),
        "seconds": seconds,
    }


def scored_label_record(ident: str, label_map: np.ndarray, scores_2nhw: np.ndarray, seconds: float) -> dict[str, Any]:
    """A label map with the (2, n + 1, h, w) scores in 0..1 that it was made of, kept in steps of 1 / SCORE_STEPS."""
    from PIL import Image

    planes = np.rint(np.clip(scores_2nhw, 0, 1) * np.float32(SCORE_STEPS)).astype("<u2").reshape(-1, scores_2nhw.shape[-1])
    sink = io.BytesIO()
    Image.fromarray(planes).save(sink, format="PNG", compress_level=3)
    score_pixels = hashlib.sha256(planes.tobytes()).hexdigest()
    return {**label_record(ident, label_map, seconds), "score_pixels": score_pixels, "scores": sink.getvalue()}


def scores_from(record: Mapping[str, Any]) -> np.ndarray:
    """(2, n + 1, h, w) uint16, SCORE_STEPS for 1."""
    return decode_png(record["scores"]).astype(np.uint16, copy=False).reshape(2, -1, record["height"], record["width"])


def decode_png(content: bytes) -> np.ndarray:
    """The (h, w) label map of a PNG, uint8; uint16 where it has 16 bits."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as picture:
        return np.array(picture)


def seeds_from(record: Mapping[str, Any]) -> Seeds:
    return Seeds(id=record["id"], label_map=decode_png(record["label_map"]))


def pseudo_label_from(record: Mapping[str, Any]) -> PseudoLabel:
    return PseudoLabel(id=record["id"], mask=decode_png(record["label_map"]), labels=decode_png(record["labels"]))


def prediction_from(record: Mapping[str, Any]) -> Prediction:
    return Prediction(id=record["id"], label_map=decode_png(record["label_map"]))


def weights_record(name: str, array: np.ndarray, dtype: str) -> dict[str, Any]:
    return {"id": name, "dtype": dtype, "shape": list(array.shape), "data": np.ascontiguousarray(array).tobytes()}


def weights_from(folder: Path) -> dict[str, Tensor]:
    """Name -> tensor of a finished training's artefact: a state dictionary."""
    import torch

    arrays = {r["id"]: np.frombuffer(r["data"], np.dtype(r["dtype"])).reshape(r["shape"]) for r in Fragments(folder)}
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


Value = TypeVar("Value")


class Typed(Generic[Value]):
    """The records of a stage as the values they stand for: by id, and in the order of ids."""

    def __init__(self, records: Fragments, decode: Callable[[Mapping[str, Any]], Value], manifest: Mapping[str, Any]) -> None:
        self.records, self.manifest = records, manifest
        self._decode = decode

    def __len__(self) -> int:
        return len(self.records)

    def ids(self) -> list[str]:
        return self.records.ids()

    def __getitem__(self, ident: str) -> Value:
        return self._decode(self.records[ident])

    def __iter__(self) -> Iterator[Value]:
        return (self._decode(record) for record in self.records)


_DECODE: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "maps": maps_from,
    "seeds": seeds_from,
    "crf": seeds_from,
    "masks": pseudo_label_from,
    "predictions": prediction_from,
}


def open_stage(run: Path | str, stage: str, *, method: str | None = None, key: str | None = None) -> Typed[Any]:
    """The values of a finished stage of an output folder: `Maps` of maps, `Seeds` of seeds and crf, `PseudoLabel` of masks,
    `Prediction` of predictions, plain dictionaries of any other.

    Where several artefacts fit (one per method, seed or setting), name `method` or the beginning of `key`; else UserError lists them.
    """
    there = find_stages(Path(run), stage)
    fit = [m for m in there if method in (None, m["method"]) and (key is None or m["key"].startswith(key))]
    if len(fit) != 1:
        have = ", ".join(f"{m['method'] or '-'}:{m['key']}" for m in there) or "none"
        message = f"{len(fit)} artefacts of stage {stage!r} fit in {run}"
        raise UserError(message, file=run, field=f"method={method}, key={key}", remedy=f"name method= or key=; there are: {have}")
    return Typed(Fragments(Path(fit[0]["folder"])), _DECODE.get(stage, dict), fit[0])
