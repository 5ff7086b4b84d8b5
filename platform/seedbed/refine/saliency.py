"""Saliency maps that others made: a folder with a picture for every id, in any of the usual forms."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from seedbed.types import UserError

VERSION = 2
"""Of what is read out of a file: part of the key of the masks that are made with saliency maps."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".npy")
ENDINGS = tuple(dict.fromkeys(form for suffix in SUFFIXES for form in (suffix, suffix.upper(), suffix.title())))
FLAG = "--refine.saliency"
OVERSHOOT, UNDERSHOOT = 2.0, 0.25
"""Values of floating point stay below so many times full salience, and above minus so much of it: resizing leaves both at edges."""
SHOWN = 3
PLAIN = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L")
"""Pillow's modes of one number a pixel."""
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, UnidentifiedImageError, Image.DecompressionBombError)


def saliency_path(folder: Path, image_id: str) -> Path:
    """The map of a picture; UserError naming the id where there is none."""
    for ending in ENDINGS:
        path = folder / f"{image_id}{ending}"
        if path.is_file():
            return path
    message = f"there is no saliency map of {image_id}"
    raise UserError(message, file=folder / f"{image_id}.png", field=FLAG, remedy="add it, or leave the picture out")


def check_folder(folder: Path, ids: Sequence[str]) -> None:
    """Every picture has a map; said before the first stage, with the ids that lack one."""
    if not folder.is_dir():
        remedy = "name a folder with one picture ID.png for every picture of data.map-split"
        raise UserError(f"{folder} is no folder", file=folder, field=FLAG, remedy=remedy)
    there = {p.stem for p in folder.iterdir() if p.suffix in ENDINGS}
    missing = [i for i in ids if i not in there]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3:,} more" if len(missing) > 3 else "")
        remedy = "add them, or name pictures that have one with --data.map-split"
        raise UserError(f"there is no saliency map of {shown}", file=folder, field=FLAG, remedy=remedy)


def check_headers(folder: Path, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Every map says of itself that it can be read and has its picture's (h, w); said before the first stage, with those that do not.

    No pixel is decoded, but of pictures with an alpha channel.
    """
    faults = []
    for ident, shape in sizes.items():
        path = saliency_path(folder, ident)
        try:
            _fits(_opened(path)[1], shape, path)
        except UserError as error:
            faults.append(error)
    if faults:
        more = [f"and {len(faults) - SHOWN:,} more"] if len(faults) > SHOWN else []
        message = "; ".join([*(fault.message for fault in faults[:SHOWN]), *more])
        raise UserError(message, file=faults[0].file, field=FLAG, remedy=faults[0].remedy)


def folder_digest(folder: Path, ids: Sequence[str]) -> str:
    """Hex SHA-256 of the maps of these pictures, in order, and of how they are read: the folder's place in a stage's key."""
    sink = hashlib.sha256(f"{VERSION}\n".encode())
    for ident in ids:
        content = saliency_path(folder, ident).read_bytes()
        sink.update(f"{ident} {len(content)}\n".encode() + hashlib.sha256(content).digest())
    return sink.hexdigest()


def salient(folder: Path, image_id: str, shape: tuple[int, int], threshold: float = 0.5) -> np.ndarray:
    """(h, w) bool: where the map of a picture exceeds `threshold` of full salience.

    Taken are 8-bit and 16-bit pictures (full salience: 255, 65,535), masks of 0 and 1 or of 0 and 255 in any mode, and arrays (.npy)
    and pictures of whole or floating point numbers in 0..1, 0..255 or 0..65,535. A map whose values pass none of 1, 255, 65,535 is of
    that range, so an 8-bit map without a value above 1 is taken for a mask. Floating point numbers may overshoot their range, as
    bicubic resizing leaves them, and are clipped to it: below 2 they are of 0..1, below 510 of 0..255.

    Refused are a map of another size (it belongs to another picture), and one with transparent pixels: cut-outs of colour and grey
    maps look the same, and mean different things.
    """
    return _read(saliency_path(folder, image_id), shape) > threshold


def _opened(path: Path) -> tuple[Callable[[], np.ndarray], tuple[int, ...]]:
    """What reads a map's numbers, and their shape as the file's header has it."""
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, allow_pickle=False, mmap_mode="r")
            if not isinstance(array, np.ndarray):
                raise ValueError("it holds several arrays")
            if array.dtype.kind not in "biuf":
                raise ValueError(f"its values are of type {array.dtype}, not real numbers")
            return lambda: np.array(array), array.shape
        with Image.open(path) as picture:
            veiled = picture.mode not in PLAIN and picture.has_transparency_data and not _two(picture)
            if veiled and np.array(picture.convert("RGBA"))[..., 3].min() < 255:
                raise ValueError("it has transparent pixels, and whether colour or transparency is meant can't be told")
            return lambda: _pixels(path), picture.size[::-1]
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def _two(picture: Image.Image) -> bool:
    """Whether it is a mask of 0 and 1 with a palette, whose colours say nothing."""
    return picture.mode == "P" and int(np.max(picture.getextrema())) <= 1


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture if picture.mode in PLAIN or _two(picture) else picture.convert("L"))


def _unreadable(path: Path, error: BaseException) -> UserError:
    return UserError(f"{path.name} can't be read: {error}", file=path, field=FLAG, remedy="make it again, as one grey number a pixel")


def _fits(shape: tuple[int, ...], wanted: tuple[int, int], path: Path) -> None:
    """UserError unless a map of this shape, but for axes of length 1 that a (h, w) map does not have, is one of a picture of (h, w)."""
    if shape == wanted or (len(shape) > 2 and [n for n in shape if n > 1] == [n for n in wanted if n > 1]):
        return
    plane = shape if len(shape) == 2 else tuple(n for n in shape if n > 1)
    if len(plane) != 2 or not all(plane):
        message = f"{path.name} is no map of numbers: its shape is {shape}"
        raise UserError(message, file=path, field=FLAG, remedy="give one number a pixel")
    message = f"the saliency map of {path.stem} has {plane[0]} x {plane[1]} pixels, the picture {wanted[0]} x {wanted[1]}"
    raise UserError(message, file=path, field=FLAG, remedy="make it for this picture, at its size")


def _read(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Salience of a picture of `shape` as (h, w) float32 in 0..1."""
    read, found = _opened(path)
    _fits(found, shape, path)
    try:
        array = read().reshape(shape)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if not np.isfinite(array).all():
        raise UserError(f"{path.name} has values that are no numbers", file=path, field=FLAG, remedy="give one number a pixel")
    soft = array.dtype.kind == "f"
    low, top = float(array.min()), float(array.max())
    # Pillow reads 16-bit pictures as such; other whole numbers go by what they hold.
    ranges = (1.0, 65535.0) if array.dtype == np.uint16 else (1.0, 255.0, 65535.0)
    full = next((full for full in ranges if (top < full * OVERSHOOT if soft else top <= full)), None)
    if full is None:
        remedy = "give salience in 0..1, 0..255 or 0..65535"
        raise UserError(f"{path.name} has values up to {top:g}", file=path, field=FLAG, remedy=remedy)
    if low < (-full * UNDERSHOOT if soft else 0):
        raise UserError(f"{path.name} has negative values", file=path, field=FLAG, remedy="give salience from 0 up")
    return np.clip(array.astype(np.float64) / full, 0, 1).astype(np.float32)
