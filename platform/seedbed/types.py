"""The values that flow from stage to stage, and the words used for them.

Shapes in names and docstrings: n pictures or rows, c classes (without background), h and w rows and columns,
b batch, k RIB steps, s scales. Class indices run from 0 to c - 1; label maps hold 0 for background, class index + 1, and IGNORE.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = 255
"""Value of a pixel that is not labelled (VOC's void)."""


class UserError(Exception):
    """Something a user can mend: bad input or a bad setting. Ends the program with status 2, in the documented form, no traceback."""

    def __init__(self, message: str, *, remedy: str, file: object = None, field: str | None = None) -> None:
        super().__init__(message)
        self.message, self.remedy, self.file, self.field = message, remedy, file, field

    def __reduce__(self) -> tuple[Any, ...]:  # errors cross process borders
        return (_user_error, (self.message, self.remedy, self.file and str(self.file), self.field))

    def text(self) -> str:
        lines = [f"error: {self.message}"]
        if self.file is not None:
            lines.append(f"  file:   {self.file}")
        if self.field is not None:
            lines.append(f"  field:  {self.field}")
        return "\n".join([*lines, f"  remedy: {self.remedy}"])


def _user_error(message: str, remedy: str, file: str | None, field: str | None) -> UserError:
    return UserError(message, remedy=remedy, file=file, field=field)


@dataclass(frozen=True)
class Sample:
    """One picture of a store. Pictures and masks stay encoded; decoding is a method, so that looking up labels is free."""

    id: str
    picture: bytes | memoryview
    height: int
    width: int
    labels: np.ndarray | None
    """(c,) uint8, 1 where the class is present; None where the picture has no label."""
    label_source: str | None
    """annotations, main, masks or generator."""
    masks: dict[str, bytes | memoryview] = field(default_factory=dict)
    """Encoded label maps by kind: "class" (SegmentationClass), "aug" (SegmentationClassAug), "parts" (shapes: 1 head, 2 body)."""

    def pixels(self) -> np.ndarray:
        """(h, w, 3) uint8, RGB."""
        from PIL import Image

        with Image.open(io.BytesIO(self.picture)) as picture:
            return np.array(picture.convert("RGB"))

    def mask(self, kind: str = "class") -> np.ndarray | None:
        """(h, w) uint8 label map, or None where the picture has none of this kind."""
        from PIL import Image

        if kind not in self.masks:
            return None
        with Image.open(io.BytesIO(self.masks[kind])) as picture:
            return np.array(picture)


@dataclass(frozen=True)
class Views:
    """A picture as a network sees it at inference: every scale, with its mirror."""

    id: str
    height: int
    width: int
    scales: tuple[float, ...]
    tensors: Sequence[Tensor]
    """One float32 (r, 3, h_s, w_s) per scale, normalised; r = 2 with the mirror as second row, else 1."""


@dataclass
class Maps:
    """Localisation maps of one picture, for its labelled classes, at the network's stride.

    From `sums` the stride-4 and the full-size map of the field follow exactly (`methods/maps.py`); full-size floats are never stored.
    """

    id: str
    height: int
    width: int
    classes: np.ndarray
    """(n,) int64, labelled class indices, ascending."""
    scales: tuple[float, ...]
    sums: list[np.ndarray]
    """Per scale (n, h_s, w_s) float32: rectified map plus its mirrored twin, added up over the steps."""
    steps: int = 1
    """RIB: steps entered; a plain CAM: 1."""
    ended: str = "plain"
    """plain (no loop), margin, area, steps or companions."""
    log: dict[str, list[float]] = field(default_factory=dict)
    """Per step: `loss`, `target_loss` (signed sum of the target's labelled logits), `area_ratio`."""
    snapshots: list[list[np.ndarray]] | None = None
    """[k][scale] (n, h_s, w_s) float32: the map of step k alone; None unless asked for."""
    inputs: tuple[tuple[int, int], ...] = ()
    """SEAM's form: per scale, height and width of the network's input, to which a map is enlarged before it is brought to the picture's
    size; the sum is then normalized over its range, and `sums` of a plain CAM are signed. Empty: IRN's form."""


@dataclass(frozen=True)
class Seeds:
    """The label map made from a picture's maps at one threshold: (h, w) uint8, 0 background, class index + 1."""

    id: str
    label_map: np.ndarray


@dataclass(frozen=True)
class PseudoLabel:
    """What refinement makes of a picture's maps, twice: (h, w) uint8, 0 background, class index + 1."""

    id: str
    mask: np.ndarray
    """What is scored: nothing ignored."""
    labels: np.ndarray
    """What the segmenter is trained on: IGNORE where the refinement is not sure."""


@dataclass(frozen=True)
class Prediction:
    """A segmenter's label map of a picture: (h, w) uint8, 0 background, class index + 1."""

    id: str
    label_map: np.ndarray


@dataclass(frozen=True)
class StepOutput:
    """What a method's loss hands to the loop and to add-ons."""

    losses: dict[str, Tensor]
    """Named scalar terms; the loop minimises their sum."""
    logits_nchw: Tensor | None = None
    """Spatial class logits (n, c, h, w), before any rectification; classes only, no background."""
    background_n1hw: Tensor | None = None
    """Logits of the background channel (n, 1, h, w), where the network has one."""
    classification: str = ""
    """Name of the term that classifies by the mean of `logits_nchw`, or by `pooled_nc`; empty where there is none."""
    share: float = 1.0
    """Weight with which that classification stands in the term: 1/2 where it is one of two branches."""
    pooled_nc: Tensor | None = None
    """The class scores it classifies, where they are not the mean of `logits_nchw` (SEAM's: of the enlarged map)."""


@dataclass(frozen=True)
class Batch:
    """A training batch: images_nchw float32 normalised, labels_nc float32 0/1."""

    images_nchw: Tensor
    labels_nc: Tensor
    ids: tuple[str, ...] = ()
