"""What a training is: the contract between the loop and what it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from seedbed.optim import Optimizer
from seedbed.types import StepOutput, UserError


@dataclass(frozen=True)
class Pace:
    """How the loop goes about its work. Only precision and memory format change a result's bits."""

    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """fp32: float32 throughout; tf32: matrix products of a GPU in TF32; bf16: forward pass under bfloat16 autocast."""
    channels_last: bool = True
    """Pictures and weights with their channels last in memory: faster convolutions."""
    checkpoint_every: int = 500
    """Updates between two checkpoints at most."""
    checkpoint_seconds: float = 60.0
    """Seconds between two checkpoints at most (a step that takes longer is finished first)."""
    log_every: int = 10
    """Updates a line of the log."""
    prefetch: int | None = None
    """Threads that make batches ahead of the step; 0: none; None: one on a CPU, for a GPU half of the machine's cores, at most eight."""


class Task(Protocol):
    """What is trained. Pickled to every worker, opened there once; then a pure function of its settings and the step.

    A step's batch depends on nothing but (seed, step, image ids): not on the steps before, not on a thread, not on a resumption.
    `loss` is a mean over the pictures of its batch, so that the workers' shares of a batch add up to the batch's loss; one that divides by
    other counts is `Counting`.
    """

    seed: int
    batch_size: int
    """Pictures of one step over all workers."""
    pace: Pace
    set_aside: dict[str, str]
    """Pictures that were left out and why; may grow while training."""

    def open(self) -> None:
        """Opens data; afterwards `steps` is known."""
        ...

    @property
    def steps(self) -> int: ...

    def identity(self) -> str:
        """Digest of all that decides the result; a checkpoint of another identity is refused."""
        ...

    def build(self) -> nn.Module: ...

    def optimizer(self, model: nn.Module, steps: int) -> Optimizer:
        """Parameters that are in none of its groups are not trained."""
        ...

    def batch(self, step: int, rank: int, world: int) -> Any:
        """A dataclass of tensors: this worker's share (`share`) of the step's batch. Called from several threads."""
        ...

    def loss(self, model: nn.Module, batch: Any, step: int) -> StepOutput: ...

    def validates(self, done: int) -> bool:
        """Whether the model is validated after `done` updates."""
        ...

    def validate(self, model: nn.Module, device: str, rank: int, world: int) -> Any:
        """This worker's share of the validation: anything that can be pickled. Never changes the model."""
        ...

    def judge(self, parts: Sequence[Any]) -> Mapping[str, float]:
        """The shares of all workers -> named values, for example {"val/loss": .., "val/mAP": ..}."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """What the record should know and only the worker does, after `build`: the weights that were loaded, counts. Plain JSON values."""
        ...


@runtime_checkable
class Counting(Protocol):
    """A task whose loss divides by counts that are not known of a share alone, such as the labelled pixels of the whole batch.

    Its batches have two fields besides, `counts: Tensor | None = None` and `first: int = 0`. With one worker they stay as they are. With
    several, `counts` is (b, k), those of every picture of the step's batch, and `first` the place of the share's first picture in it;
    `loss` is then the share's part of the whole batch's loss: the parts of all workers add up to it.
    """

    def counts(self, batch: Any) -> Tensor:
        """(n, k) int64, of every picture of the share. Called from several threads."""
        ...


class TrainingDiverged(UserError):
    """A term of the loss, or a weight, is no finite number any more. Nothing of it was saved: the last good checkpoint is kept."""

    def __init__(self, step: int, term: str, value: float, folder: str) -> None:
        super().__init__(
            f"training diverged in step {step}: {term} is {value}",
            file=folder,
            field=term,
            remedy="lower the learning rate, or use --classifier.precision fp32; the last good checkpoint is kept there",
        )
        self.step, self.term, self.value = step, term, value

    def __reduce__(self) -> tuple[Any, ...]:
        return (TrainingDiverged, (self.step, self.term, self.value, str(self.file)))


def share(batch: int, rank: int, world: int) -> slice:
    """The rows of a batch that a worker takes: contiguous, and as even as can be."""
    return slice(rank * batch // world, (rank + 1) * batch // world)
