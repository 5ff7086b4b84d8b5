"""Networks by name. A network is single-device code: it knows neither workers nor Ray."""

from __future__ import annotations

from typing import Any

from torch import nn

from seedbed.registry import loaded
from seedbed.types import UserError

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet18": ("seedbed.models.resnet:ResNet", {"depth": 18}),
    "resnet34": ("seedbed.models.resnet:ResNet", {"depth": 34}),
    "resnet50": ("seedbed.models.resnet:ResNet", {"depth": 50}),
    "resnet101": ("seedbed.models.resnet:ResNet", {"depth": 101}),
    "resnet38": ("seedbed.models.resnet38:ResNet38", {}),
    "small": ("seedbed.models.small:SmallNet", {}),
}
"""Name -> where its class lives, loaded when it is asked for, and what its constructor gets besides `num_classes`."""


def build_network(name: str, num_classes: int) -> nn.Module:
    """A network with fresh random weights, which keeps to the contract `methods.base.Network`; an unknown name is a UserError."""
    if name not in NETWORKS:
        raise UserError(
            f"there is no network {name!r}", field="--classifier.backbone", remedy=f"choose one of {', '.join(sorted(NETWORKS))}"
        )
    place, arguments = NETWORKS[name]
    return loaded(place)(num_classes=num_classes, **arguments)
