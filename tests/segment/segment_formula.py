"""The weights of the segmenters' golden numbers: by tensor name and seed, as their READMEs spell them out."""

from __future__ import annotations

import re
import zlib

import numpy as np
import torch

LAST_V2 = re.compile(r"\.increase\.bn\.weight$")
LAST_V1 = re.compile(r"(b[2-5](_\d)?\.bn_branch2b1|b[67]\.bn_branch2b2)\.weight$")
VARIANCE = {"base.layer1.conv1.bn": 4000.0, "base.layer5.block1.reduce.bn": 100.0, "base.layer5.block1.shortcut.bn": 100.0}


def segmenter_state(model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """A state dictionary without the batch counters."""
    state = {}
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        state[name] = torch.from_numpy(_values(name, tuple(value.shape), rng).astype(np.float32))
    return state


def _values(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if ".aspp." in name and len(shape) == 4:
        return 0.02 * rng.standard_normal(shape)
    if name == "cls_conv.weight":
        return 0.05 * rng.standard_normal(shape)
    if len(shape) == 4:
        return np.sqrt(2.0 / np.prod(shape[1:])) * rng.standard_normal(shape)
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape) * VARIANCE.get(name.removesuffix(".running_var"), 1.0)
    if name.endswith("weight"):
        return rng.uniform(*((0.1, 0.3) if LAST_V2.search(name) or LAST_V1.search(name) else (0.5, 1.5)), shape)
    return 0.1 * rng.standard_normal(shape)
