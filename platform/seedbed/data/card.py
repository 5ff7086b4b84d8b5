"""A dataset's card: what was published, read from a TOML file beside the dataset's prepare script."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from seedbed.data.store_format import color_map


@dataclass(frozen=True)
class Card:
    """Name, classes (without background), licence, 256 RGB colors for label maps, and the published number of pictures by split."""

    name: str
    classes: tuple[str, ...]
    licence: str
    palette: tuple[tuple[int, int, int], ...]
    splits: Mapping[str, int]

    @classmethod
    def read(cls, path: Path) -> Card:
        fields = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        colors = [(int(c[0:2], 16), int(c[2:4], 16), int(c[4:6], 16)) for c in fields.get("palette", ())]
        palette = (*colors, *color_map()[len(colors) :])
        return cls(fields["name"], tuple(fields["classes"]), fields["licence"], palette, dict(fields["splits"]))
