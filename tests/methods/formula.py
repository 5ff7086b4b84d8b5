"""The weights of the golden numbers: by tensor name and seed, as their README spells them out."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def formula_state(model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """A state dictionary for a ResNet of bottlenecks, without the batch counters."""
    state = {}
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        shape = tuple(value.shape)
        if name == "classifier.weight":
            array = 0.05 * rng.standard_normal(shape)
        elif len(shape) == 4:
            array = np.sqrt(2.0 / np.prod(shape[1:])) * rng.standard_normal(shape)
        elif name.endswith("running_var"):
            array = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("weight"):
            array = rng.uniform(*((0.1, 0.3) if ".bn3." in name else (0.5, 1.5)), shape)
        else:
            array = 0.1 * rng.standard_normal(shape)
        state[name] = torch.from_numpy(array.astype(np.float32))
    return state
