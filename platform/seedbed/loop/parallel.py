"""Several workers on one training: gradients averaged in the order of ranks, and starting again while it gets on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seedbed.loop.checkpoint import WEIGHTS, stamp
from seedbed.types import UserError

RESTARTS = 3
"""Restarts without a new checkpoint after which a training is given up."""


class WorkerLost(Exception):
    """A worker ended without an answer, or with one that says so."""


def backend_for(device: str) -> str:
    return "nccl" if device.startswith("cuda") else "gloo"


def data_parallel(module: nn.Module) -> nn.Module:
    """The module with its gradients averaged over all workers of the process group that is initialised.

    torch's DistributedDataParallel, but a gradient's sum is taken in the order of ranks: with it the bits depend on the number of workers
    alone, not on how gradients were put together in buckets (which changes after the first step, and so with a resumption) nor on the
    backend's way of reducing.
    """
    from torch.nn.parallel import DistributedDataParallel

    parallel: Any = DistributedDataParallel(module)
    parallel.register_comm_hook(None, lambda _, bucket: _mean_in_rank_order(bucket.buffer()))
    return parallel


def _mean_in_rank_order(own: Tensor) -> torch.futures.Future[Tensor]:
    import torch.distributed as dist

    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    total = parts[0]
    for part in parts[1:]:
        total += part
    total /= len(parts)
    future: torch.futures.Future[Tensor] = torch.futures.Future(devices=[own.device] if own.is_cuda else [])
    future.set_result(total)
    return future


class Team:
    """The workers of a training among themselves: small messages, never gradients."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self._group: Any = None
        if world > 1:
            import torch.distributed as dist

            # Messages are on the CPU: with nccl they would need the device.
            self._group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")

    def gather(self, message: Any) -> list[Any]:
        """Every worker's message, in the order of ranks, at every worker."""
        if self.world == 1:
            return [message]
        import torch.distributed as dist

        messages: list[Any] = [None] * self.world
        dist.all_gather_object(messages, message, group=self._group)
        return messages


TRANSIENT = (WorkerLost, RuntimeError, OSError)
"""What another attempt may not meet again: lost workers, and what the others, the network or a device then say."""


def persist(attempt: Callable[[], None], folder: Path, say: Callable[[str], None]) -> None:
    """Calls `attempt` until it ends: again after every loss of a worker, without limit while checkpoints advance, given up after three
    restarts without a new one. What a user can mend, and bugs, are raised at once."""
    without = 0
    while True:
        before = stamp(folder)
        try:
            attempt()
            return
        except UserError:
            raise
        except TRANSIENT as error:
            if (folder / WEIGHTS).exists():
                return  # lost after its work was done
            without = without if stamp(folder) == before else 0
            if without == RESTARTS:
                raise
            without += 1
            why = (str(error).strip() or type(error).__name__).splitlines()[-1][:200]
            say(f"training: a worker was lost ({why}); restart {without} since the last checkpoint")
