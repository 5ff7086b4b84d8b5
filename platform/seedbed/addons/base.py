"""The contract of an add-on: a loss that any method's training can be given, and that no method knows of; and what add-ons share."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import Tensor

from seedbed.types import Batch, StepOutput, UserError


class Addon(Protocol):
    """Changes what a training step minimises; may rewrite a named term, or add one of its own name.

    An add-on with parameters of its own is a `torch.nn.Module`; they are trained with the network's, and kept with its weights.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    """Code version: part of the key of what it trains; goes up whenever the result changes."""

    def __call__(self, out: StepOutput, batch: Batch, seed: int, step: int) -> StepOutput:
        """What comes at random is drawn per picture, by `data.transforms.generator(seed, name, id, step)`: never by worker or order."""
        ...


def with_background(out: StepOutput, what: str, field: str, without: str) -> Tensor:
    """Class scores and, behind them, the background's: (n, c + 1, h, w) float32.

    A network without that channel is a UserError: `what` needs it, and with the setting `field` at `without` nothing does.
    """
    assert out.logits_nchw is not None
    if out.background_n1hw is None:
        raise UserError(
            f"{what} needs a network with a background channel",
            field=field,
            remedy=f"say {field} {without}, or choose a method that has one (seam)",
        )
    return torch.cat([out.logits_nchw.float(), out.background_n1hw.float()], 1)
