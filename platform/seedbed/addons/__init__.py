"""Add-ons by name: losses that improve any method. A new add-on is one file and one line here."""

from __future__ import annotations

from typing import Any

from seedbed.registry import loaded
from seedbed.types import UserError

ADDONS: dict[str, str] = {
    "isl": "seedbed.addons.isl:Isl",
    "fsl": "seedbed.addons.fsl:Fsl",
}
"""Name -> where its class lives; loaded when it is asked for. Applied in this order."""


def addon_class(name: str) -> Any:
    """The class of an add-on; a name that is not known raises UserError with the known ones."""
    if name not in ADDONS:
        raise UserError(f"there is no add-on {name!r}", field="--addons", remedy=f"choose from {', '.join(ADDONS)}")
    return loaded(ADDONS[name])
