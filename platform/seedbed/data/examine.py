"""One sample of a devkit: read, decoded to its end, compared; and in words what is wrong with it."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from seedbed.data import voc
from seedbed.types import IGNORE, Sample

MAX_PIXELS = 64 << 20
_NAMED = 5
"""So many strange values of a mask are named."""


@dataclass
class Examined:
    """One sample as it was found: whole, or with the reason why it is set aside."""

    id: str
    sample: Sample | None = None
    reason: str = ""
    digest: bytes = b""
    """SHA-256 of the picture's file."""
    without_pixels: tuple[int, ...] = ()
    """Labelled classes that no mask shows."""
    without_label: tuple[int, ...] = ()
    """Classes that a mask shows and the label lacks."""


def examine(root: Path, ident: str, classes: Sequence[str], labels: voc.ClassLabels, *, labelled: bool = True) -> Examined:
    """Reads, decodes and compares one sample. `labelled` False: a picture whose class labels are nobody's business (the test split)."""
    try:
        content = voc.read_file(root, f"JPEGImages/{ident}.jpg")
        height, width = _decoded_size(content, f"JPEGImages/{ident}.jpg")
        masks: dict[str, bytes | memoryview] = {}
        shown = np.zeros(len(classes), bool)
        for kind, folder in voc.MASK_FOLDERS.items():
            relative = f"{folder}/{ident}.png"
            if os.path.lexists(root / relative):
                mask = voc.read_file(root, relative)
                shown |= _classes_shown(mask, relative, (height, width), len(classes))
                masks[kind] = mask
        found = labels.of(ident) if labelled else None
        if found is None and labelled and masks:
            found = shown.astype(np.uint8), "masks"
    except ValueError as error:
        return Examined(ident, reason=str(error))
    vector, source = found or (None, None)
    sample = Sample(ident, content, height, width, vector, source, masks)
    examined = Examined(ident, sample, digest=hashlib.sha256(content).digest())
    if vector is not None and masks:
        examined.without_pixels = tuple(int(i) for i in np.flatnonzero((vector == 1) & ~shown))
        examined.without_label = tuple(int(i) for i in np.flatnonzero((vector == 0) & shown))
    return examined


def _decoded_size(content: bytes, relative: str) -> tuple[int, int]:
    """Height and width of a picture that decodes to its end."""
    with _opened(content, relative, ("JPEG", "PNG")) as picture:
        _decode(picture, relative)
        return picture.height, picture.width


def _classes_shown(content: bytes, relative: str, size: tuple[int, int], classes: int) -> np.ndarray:
    """(c,) bool, classes that the mask has pixels of; ValueError for a mask of another size or kind, or with values that are no class."""
    with _opened(content, relative, ("PNG",)) as mask:
        if (mask.height, mask.width) != size:
            raise ValueError(f"{relative} is {mask.width} x {mask.height}, the picture {size[1]} x {size[0]}")
        if mask.mode not in ("P", "L"):
            raise ValueError(f"{relative} has mode {mask.mode}: a mask holds class numbers (a palette or one byte a pixel), not colors")
        _decode(mask, relative)
        counts = np.array(mask.histogram()[:256])
    strange = [v for v in np.flatnonzero(counts) if v > classes and v != IGNORE]
    if strange:
        named = ", ".join(f"{v} ({counts[v]:,} pixels)" for v in strange[:_NAMED])
        raise ValueError(f"{relative} has values that are no class: {named}; masks hold 0 to {classes}, and {IGNORE} for void")
    return counts[1 : classes + 1] > 0


def _opened(content: bytes, relative: str, formats: tuple[str, ...]) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(content), formats=formats)
    except Exception as error:  # whatever a decoder makes of bytes that are no picture
        raise ValueError(f"{relative} is no {' or '.join(formats)} picture ({len(content):,} bytes)") from error
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(f"{relative} claims {picture.width:,} x {picture.height:,} pixels")
    return picture


def _decode(picture: Image.Image, relative: str) -> None:
    try:
        picture.load()
    except Exception as error:
        what = "is truncated" if "truncated" in str(error) or isinstance(error, EOFError) else "is damaged"
        raise ValueError(f"{relative} {what} ({str(error) or type(error).__name__})") from error
