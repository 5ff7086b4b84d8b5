"""Initial weights of networks on ResNet-38d: the published ImageNet file, and checkpoints of PSA, SEAM and HFPL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from seedbed.models.resnet38 import ResNet38Body, plain_name, read_resnet38
from seedbed.models.weights import FLAG, LoadReport, file_source, require_finite, shape_text, some
from seedbed.types import UserError


def load_resnet38(model: nn.Module, source: str | Path, *, field: str = FLAG) -> LoadReport:
    """Fills a network that holds ResNet-38d's tensors, under their own names or below `backbone.`, from a published file.

    source: `none`, the path of the ImageNet weights (MXNet's .params), or of a checkpoint of PSA, SEAM, HFPL or of DeepLab-v1 on this
    backbone. All of the backbone has to be there; heads that are not keep their fresh values. Raises UserError naming the file.
    """
    if str(source) == "none":
        return LoadReport("none", missing=tuple(model.state_dict()))
    if str(source) == "imagenet":
        message = "the ImageNet weights of ResNet-38d are a file that nobody offers by a checksum"
        remedy = "get ilsvrc-cls_rna-a1_cls1000_ep-0001.params (PSA's and SEAM's pages link it) and give its path; or say none"
        raise UserError(message, field=field, remedy=remedy)
    path = Path(source)
    state = read_resnet38(path, field)
    return _fill(model, state, path, field)


def _fill(model: nn.Module, state: Mapping[str, Tensor], path: Path, field: str) -> LoadReport:
    own = {plain_name(name): (name, value) for name, value in model.state_dict().items()}
    counted = [n for n in own if not n.endswith("num_batches_tracked")]
    missing = [n for n in counted if n not in state]
    backbone = set(_backbone_names())

    def refuse(what: str) -> UserError:
        remedy = "give the weights of ResNet-38d, or choose the backbone that the file belongs to"
        return UserError(f"{path.name} holds the weights of another network: {what}", file=path, field=field, remedy=remedy)

    lacking = [n for n in missing if n in backbone]
    if lacking:
        raise refuse(f"it lacks {some(lacking)} (it has {some(list(state))})")
    for name in counted:
        if name in state and state[name].shape != own[name][1].shape and name in backbone:
            raise refuse(f"{name} is {shape_text(state[name])}, not {shape_text(own[name][1])}")
    # A classifier of other classes is a fresh one, as in the official codes: their files come from every stage.
    fits = {n: v for n, v in state.items() if n in own and v.shape == own[n][1].shape}
    require_finite(fits, path.name, path, field)
    model.load_state_dict({own[n][0]: v for n, v in fits.items()}, strict=False)
    fresh = tuple(own[n][0] for n in counted if n not in fits)
    return LoadReport(file_source(path), tuple(sorted(own[n][0] for n in fits)), fresh, tuple(n for n in state if n not in fits))


def _backbone_names() -> Iterator[str]:
    with torch.device("meta"):
        names = list(ResNet38Body().state_dict())
    return (name for name in names if not name.endswith("num_batches_tracked"))
