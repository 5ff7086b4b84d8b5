"""The contract of an add-on: a loss that any method's training can be given, and that no method knows of."""

from __future__ import annotations

from typing import ClassVar, Protocol

from seedbed.types import Batch, StepOutput


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
