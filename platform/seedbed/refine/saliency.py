"""Saliency maps that others made: a folder with a picture for every id, in any of the usual forms."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from seedbed.types import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".npy")


def saliency_path(folder: Path, image_id: str) -> Path:
    """The map of a picture; UserError naming the id where there is none."""
    for suffix in (*SUFFIXES, *(s.upper() for s in SUFFIXES)):
        path = folder / f"{image_id}{suffix}"
        if path.is_file():
            return path
    message = f"there is no saliency map of {image_id}"
    raise UserError(message, file=folder / f"{image_id}.png", field="--refine.saliency", remedy="add it, or leave the picture out")


def check_folder(folder: Path, ids: Sequence[str]) -> None:
    """Every picture has a map; said before the first stage, with the ids that lack one."""
    if not folder.is_dir():
        remedy = "name a folder with one picture ID.png for every picture of data.map-split"
        raise UserError(f"{folder} is no folder", file=folder, field="--refine.saliency", remedy=remedy)
    there = {p.stem for p in folder.iterdir() if p.suffix.lower() in SUFFIXES}
    missing = [i for i in ids if i not in there]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3:,} more" if len(missing) > 3 else "")
        remedy = "add them, or name pictures that have one with --data.map-split"
        raise UserError(f"there is no saliency map of {shown}", file=folder, field="--refine.saliency", remedy=remedy)


def folder_digest(folder: Path, ids: Sequence[str]) -> str:
    """Hex SHA-256 of the maps of these pictures, in order: the folder's place in a stage's key."""
    sink = hashlib.sha256()
    for ident in ids:
        content = saliency_path(folder, ident).read_bytes()
        sink.update(f"{ident} {len(content)}\n".encode() + hashlib.sha256(content).digest())
    return sink.hexdigest()


def salient(folder: Path, image_id: str, shape: tuple[int, int], threshold: float = 0.5) -> np.ndarray:
    """(h, w) bool: where the map of a picture exceeds `threshold` of full salience.

    Taken are 8-bit and 16-bit pictures (full salience: 255, 65,535), masks of 0 and 1 or of 0 and 255 in any mode, and .npy arrays of
    numbers in 0..1 or 0..255. (An 8-bit map without a value above 1 is
    taken for a mask.) A map of another size is refused: it belongs to another picture.
    """
    path = saliency_path(folder, image_id)
    values = _read(path)
    if values.shape != shape:
        message = f"the saliency map of {image_id} has {values.shape[0]} x {values.shape[1]} pixels, the picture {shape[0]} x {shape[1]}"
        raise UserError(message, file=path, field="--refine.saliency", remedy="make it for this picture, at its size")
    return values > threshold


def _read(path: Path) -> np.ndarray:
    """Salience as (h, w) float32 in 0..1."""
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as picture:
                plain = picture.mode in ("1", "L", "I", "F", "I;16", "I;16B", "I;16L")
                two = picture.mode == "P" and int(np.max(picture.getextrema())) <= 1  # a mask with a palette
                array = np.array(picture if plain or two else picture.convert("L"))
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError) as error:
        raise UserError(f"{path.name} can't be read: {error}", file=path, field="--refine.saliency", remedy="make it again") from error
    array = np.squeeze(array)
    if array.ndim != 2 or not np.isfinite(array.astype(np.float64)).all():
        message = f"{path.name} is no map of numbers: its shape is {array.shape}"
        raise UserError(message, file=path, field="--refine.saliency", remedy="give one number a pixel")
    low, top = float(array.min()), float(array.max())
    if low < 0:
        raise UserError(f"{path.name} has negative values", file=path, field="--refine.saliency", remedy="give salience from 0 up")
    sixteen = array.dtype == np.uint16 or top > 255  # Pillow reads 16-bit pictures as such; other whole numbers by what they hold
    full = 1.0 if array.dtype == bool or top <= 1 else 65535.0 if sixteen else 255.0
    return (array.astype(np.float64) / full).astype(np.float32)
