"""Methods by name. One paper is one file; a new method is that file and one line here."""

from __future__ import annotations

import importlib
from typing import Any

from seedbed.types import UserError

METHODS: dict[str, str] = {
    "cam": "seedbed.methods.cam:Cam",
    "rib": "seedbed.methods.rib:Rib",
}
"""Name -> where its class lives; loaded when it is asked for."""


def method_class(name: str) -> Any:
    """The class of a method; a name that is not known raises UserError with the known ones."""
    if name not in METHODS:
        raise UserError(f"there is no method {name!r}", field="--method", remedy=f"choose one of {', '.join(sorted(METHODS))}")
    module, _, attribute = METHODS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
