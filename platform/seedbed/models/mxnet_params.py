"""Tensors of MXNet's `.params` files, read without MXNet: the form in which the ImageNet weights of ResNet-38 were published.

A file is a list of arrays and a list of their names. An array says its version first; the published file is of the oldest, which has no
version and begins with the number of its dimensions. Nothing in a file is executed, and no size in it is believed before it is there.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from seedbed.types import UserError

LIST = 0x112
"""The first eight bytes of a file, little-endian; eight zeros follow."""
FIRST, SECOND, THIRD = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
"""Versions of an array: with dimensions of 64 bits; with a kind of storage; with the shapes of NumPy."""
DENSE = 0
TYPES = {0: "<f4", 1: "<f8", 2: "<f2", 3: "u1", 4: "<i4", 5: "i1", 6: "<i8"}
MOST_DIMENSIONS = 32


def is_mxnet(path: Path) -> bool:
    """By content."""
    with path.open("rb") as file:
        return file.read(8) == LIST.to_bytes(8, "little")


def read_params(path: Path, field: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of a `.params` file by name, `arg:` and `aux:` taken off. UserError says what is wrong with a file, and where in it."""
    return _Reader(path, field).arrays()


def resnet38_names(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names of the ImageNet file -> those of `models/resnet38.py`; the layer of 1000 classes is left out.

    res4b5_branch2a_weight -> b4_5.conv_branch2a.weight, bn5a_branch2b1_moving_mean -> b5.bn_branch2b1.running_mean.
    """
    norm = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var"}
    out = {}
    for name, array in arrays.items():
        block = re.fullmatch(r"(res|bn)(\d)(?:a|b(\d+))_(branch\w+?)_(weight|gamma|beta|moving_mean|moving_var)", name)
        last = re.fullmatch(r"bn7_(gamma|beta|moving_mean|moving_var)", name)
        if block:
            kind, stage, number, branch, what = block.groups()
            unit = f"b{stage}_{number}" if number else f"b{stage}"
            out[f"{unit}.{'conv' if kind == 'res' else 'bn'}_{branch}.{norm.get(what, what)}"] = array
        elif last:
            out[f"bn7.{norm[last[1]]}"] = array
        elif name == "conv1a_weight":
            out["conv1a.weight"] = array
    return out


class _Reader:
    def __init__(self, path: Path, field: str | None) -> None:
        self.path, self.field, self.at = path, field, 0
        self.content = path.read_bytes()

    def arrays(self) -> dict[str, np.ndarray]:
        magic, _ = self.numbers("QQ", "its head")
        if magic != LIST:
            raise self.error(f"is no MXNet parameter file: it begins with {magic:#x}, not {LIST:#x}")
        count = self.count("arrays", 4)
        found = [self.array(i) for i in range(count)]
        names = [self.name(i) for i in range(self.count("names", 8))]
        if len(names) != count:
            raise self.error(f"has {count} arrays and {len(names)} names")
        if self.at != len(self.content):
            raise self.error(f"goes on for {len(self.content) - self.at} bytes after its last name")
        return {
            name.removeprefix("arg:").removeprefix("aux:"): array for name, array in zip(names, found, strict=True) if array is not None
        }

    def array(self, number: int) -> np.ndarray | None:
        """None for one that was never filled."""
        what = f"array {number}"
        (version,) = self.numbers("I", what)
        if version in (SECOND, THIRD):
            (storage,) = self.numbers("i", what)
            if storage != DENSE:
                raise self.error(f"has a sparse {what} (storage {storage}), which is not read")
        if version in (FIRST, SECOND, THIRD):
            (dimensions,) = self.numbers("i", what)
            kind = "q"
        else:
            dimensions, kind = version, "I"
        if dimensions <= 0 and (version == THIRD) == (dimensions == -1):
            return None
        if not 0 <= dimensions <= MOST_DIMENSIONS:
            raise self.error(f"has an {what} of {dimensions} dimensions: another version of the format, or a damaged file")
        shape = self.numbers(kind * dimensions, what)
        if any(side < 0 for side in shape):
            raise self.error(f"has an {what} of the shape {shape}")
        _, _, flag = self.numbers("iii", what)  # the device and its number come first
        if flag not in TYPES:
            raise self.error(f"has an {what} of type {flag}, which is not known")
        dtype = np.dtype(TYPES[flag])
        data = self.take(math.prod(shape) * dtype.itemsize, f"{what} of the shape {'x'.join(map(str, shape))}")
        return np.frombuffer(data, dtype).reshape(shape)

    def name(self, number: int) -> str:
        (length,) = self.numbers("Q", f"name {number}")
        try:
            return self.take(length, f"name {number}").decode()
        except UnicodeDecodeError as error:
            raise self.error(f"has a name {number} that is no text") from error

    def count(self, what: str, least: int) -> int:
        (count,) = self.numbers("Q", f"the number of {what}")
        if count * least > len(self.content) - self.at:
            raise self.error(f"announces {count} {what} in {len(self.content) - self.at} bytes")
        return count

    def numbers(self, kinds: str, what: str) -> tuple[int, ...]:
        form = f"<{kinds}"
        return struct.unpack(form, self.take(struct.calcsize(form), what))

    def take(self, size: int, what: str) -> bytes:
        if size > len(self.content) - self.at:
            raise self.error(f"ends within {what}: {size:,} bytes are needed at {self.at:,}, the file has {len(self.content):,}")
        self.at += size
        return self.content[self.at - size : self.at]

    def error(self, what: str) -> UserError:
        remedy = "download the file again and compare its size; it has to be a .params file of MXNet"
        return UserError(f"{self.path.name} {what}", file=self.path, field=self.field, remedy=remedy)
