"""What the settings of every training have in common beside their fields."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any, Literal

from seedbed.config import Settings
from seedbed.loop.task import Pace

WORDS = ("imagenet", "none", "coco", "classifier")
"""Initial weights that are no path."""


class TrainingSettings(Settings):
    """Base of a training's settings. Each states these fields itself, in its own order, with its own defaults and their sources."""

    weights: str
    precision: Literal["fp32", "tf32", "bf16"]
    channels_last: bool
    checkpoint_every: int
    checkpoint_seconds: float
    log_every: int
    prefetch: int | None

    def to_dict(self, *, only_key: bool = False) -> dict[str, Any]:
        """In the key a file of weights stands by its content, not by its address."""
        out = super().to_dict(only_key=only_key)
        if only_key and self.weights not in WORDS and (path := Path(self.weights)).is_file():
            out["weights"] = _file_digest(self.weights, path.stat().st_mtime_ns, path.stat().st_size)
        return out

    def pace(self) -> Pace:
        return Pace(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Pace)})


@functools.lru_cache(maxsize=16)
def _file_digest(path: str, modified: int, size: int) -> str:
    with open(path, "rb") as content:
        return "sha256:" + hashlib.file_digest(content, "sha256").hexdigest()
