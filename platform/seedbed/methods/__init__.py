"""Methods by name. One paper is one file; a new method is that file and one line here."""

from __future__ import annotations

from typing import Any

from torch import nn

from seedbed.models import build_network
from seedbed.registry import loaded
from seedbed.types import UserError

METHODS: dict[str, str] = {
    "cam": "seedbed.methods.cam:Cam",
    "rib": "seedbed.methods.rib:Rib",
    "seam": "seedbed.methods.seam:Seam",
}
"""Name -> where its class lives; loaded when it is asked for."""


def method_class(name: str) -> Any:
    """The class of a method; a name that is not known raises UserError with the known ones."""
    if name not in METHODS:
        raise UserError(f"there is no method {name!r}", field="--method", remedy=f"choose one of {', '.join(sorted(METHODS))}")
    return loaded(METHODS[name])


def build_for(method: str, backbone: str, num_classes: int) -> nn.Module:
    """The network that a method's classifier is, with fresh random weights: one of its own over the backbone, or the plain classifier."""
    build = getattr(method_class(method), "build", None)
    return build_network(backbone, num_classes) if build is None else build(backbone, num_classes)
