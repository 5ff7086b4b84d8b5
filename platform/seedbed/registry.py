"""What the registries of methods, add-ons and networks share: a class stands there as text, and its module loads when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any


def loaded(place: str) -> Any:
    """What stands at `package.module:name`."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
