"""What of torch's global state decides bits."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from typing import Any, cast

import torch

from seedbed.loop.task import Pace


def seed(device: str, *words: object) -> None:
    """torch's generators, for layers that draw numbers: a function of the step, not of the steps before."""
    number = int.from_bytes(hashlib.sha256(repr(words).encode()).digest()[:8], "little") >> 1
    torch.default_generator.manual_seed(number)  # torch.manual_seed, without what it does for devices that are not there
    if device.startswith("cuda"):
        torch.cuda.manual_seed(number)


@contextlib.contextmanager
def settled(pace: Pace, device: str, threads: int) -> Iterator[None]:
    """Threads, deterministic algorithms and precision as the training wants them; put back afterwards, with the generators' state."""
    cudnn, matmul, deterministic = torch.backends.cudnn, torch.backends.cuda.matmul, cast("Any", torch.utils.deterministic)
    before = (
        torch.get_num_threads(),
        torch.get_deterministic_debug_mode(),
        deterministic.fill_uninitialized_memory,
        (cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32),
    )
    cuda = device.startswith("cuda")
    if cuda:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with a fixed workspace
    torch.set_num_threads(threads)
    # An operation that can't be deterministic is an error; on a GPU, where methods may need one, a warning.
    torch.set_deterministic_debug_mode("warn" if cuda else "error")  # (use_deterministic_algorithms loads the compiler: five seconds)
    deterministic.fill_uninitialized_memory = False  # a debugging aid that costs a pass over every new tensor
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = False, pace.precision == "tf32", pace.precision == "tf32"
    try:
        with torch.random.fork_rng(devices=[torch.device(device)] if cuda else []):
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_deterministic_debug_mode(before[1])
        deterministic.fill_uninitialized_memory = before[2]
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before[3]
