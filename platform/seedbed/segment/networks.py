"""The segmenter's network by its settings, its parameter groups, and its initial weights: ImageNet's, COCO's, a file's, or none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seedbed.data.transforms import STD
from seedbed.models.mxnet_params import is_mxnet, read_params, resnet38_names
from seedbed.models.segmenter import Segmenter
from seedbed.models.weights import Fitting, LoadReport, file_source, fill, imagenet_weights, read_checkpoint, trained_on, unwrapped
from seedbed.optim import Adam, Optimizer, PolySGD
from seedbed.segment.settings import SegmenterConfig
from seedbed.types import UserError

FLAG = "--segmenter.weights"
COCO = "https://github.com/kazuto1011/deeplab-pytorch/releases/download/v1.0/deeplabv1_resnet101-coco.pth"
HEAD = re.compile(r"^(base\.aspp|aspp|squeeze|conv_fov2?|bn_fov2?|cls_conv)\.")
"""New layers of all segmenters: an initial file may lack them."""
SPARE = re.compile(r"(^|\.)(fc|classifier|fc8|linear1000)\.|num_batches_tracked$|^(backbone\.)?(f8_|f9)")
"""Tensors of classifiers that no segmenter has a place for."""


def build_segmenter(config: SegmenterConfig, num_classes: int) -> Segmenter:
    """With fresh random weights; num_classes with background."""
    config = config.resolved()
    model: Segmenter
    if config.model == "deeplab_v2":
        from seedbed.models.deeplab import DeepLabV2

        model = DeepLabV2(num_classes, int(config.backbone.removeprefix("resnet")), stride_in_3x3=config.stride == "3x3")
    elif config.model == "deeplab_v1":
        from seedbed.models.deeplab_v1 import DeepLabV1

        model = DeepLabV1(num_classes)
    else:
        from seedbed.models.deeplab_small import SmallDeepLab

        model = SmallDeepLab(num_classes, config.backbone)
    use: Any = config.batch_norm
    momentum = 0.1 if config.weights == "none" else None
    return model.use_batch_norm(use, momentum)


def segmenter_optimizer(model: Segmenter, config: SegmenterConfig) -> Optimizer:
    """One group per rate. Frozen batch norm stands in none of them, so that nothing of it moves."""
    config = config.resolved()
    groups = []
    for group in [*model.groups(), *([model.batch_norm_parameters()] if config.batch_norm == "trained" else [])]:
        factor = group.factor if group.factor == 1 else group.factor / 10 * config.lr_head_factor
        groups.append({"params": group.parameters, "lr": config.lr * factor, "weight_decay": config.weight_decay if group.decay else 0.0})
    if config.optimizer == "adam":
        return Adam(groups, config.lr, config.weight_decay, config.rates())
    return PolySGD(groups, config.lr, config.weight_decay, config.steps, momentum=config.momentum, schedule=config.rates())


@dataclass(frozen=True)
class InitialWeights:
    """What a segmenter started from. `trained_on` goes into the protocol record: masks mean that supervision was not weak."""

    report: LoadReport
    trained_on: str
    """none, imagenet, masks or unknown: a guess for files, which `--segmenter.weights-from` overrules in the record."""


def initialise(model: Segmenter, config: SegmenterConfig) -> InitialWeights:
    """Fills the network as `config.weights` says; a UserError names the file and the remedy."""
    if config.weights == "none":
        return InitialWeights(LoadReport("none", missing=tuple(model.state_dict())), "none")
    file: Path | None = None
    if config.weights == "imagenet":
        source, state = _torchvision(model)
        origin = trained_on(source, state)
    elif config.weights == "coco":
        source, state = "coco (deeplab-pytorch, deeplabv1_resnet101-coco)", _downloaded(COCO)
        origin = trained_on(source, state)
    else:
        file = Path(config.weights)
        read = _read(file)
        source, state = file_source(file), _fitting(read, model, file)
        origin = trained_on(source, read)
    return InitialWeights(fill_segmenter(model, state, source, file), origin)


def fill_segmenter(model: Segmenter, state: Mapping[str, Tensor], source: str, file: Path | None) -> LoadReport:
    """Tensors by name: with or without `module.` and the network's own prefix (`base.`, `backbone.`). The head alone may be missing."""
    return fill(model, state, source, file, FLAG, FITTING)


def _foreign(name: str, own: Mapping[str, Tensor]) -> bool:
    cut = not any(".layer4." in n for n in own)  # a backbone without its last stage
    return not SPARE.search(name) and not (cut and re.search(r"(^|\.)layer4\.", name))


def own_name(name: str, own: Mapping[str, Tensor]) -> str | None:
    """A tensor's name in this network, from its name in a file; None where it has no place."""
    name = unwrapped(name)
    for candidate in (name, f"base.{name}", f"backbone.{name}"):
        if candidate in own:
            return candidate
    return None


FITTING = Fitting(
    own_name=own_name,
    head=HEAD,
    foreign=_foreign,
    of_classes="is a segmenter of {0} classes with background, the data have {1}",
    remedy="choose the network it belongs to with --segmenter.model and --segmenter.backbone, or give another file",
)


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A torchvision ResNet's tensors under DeepLab-v2's names, for an input in BGR from 0 to 255 less the mean.

    The first convolution takes over the division by 255 and the deviation, so that the network sees what it was trained on (Caffe's mean
    and torchvision's differ by one level at most).
    """
    units = {"conv1": "reduce.conv", "bn1": "reduce.bn", "conv2": "conv3x3.conv", "bn2": "conv3x3.bn"}
    units |= {"conv3": "increase.conv", "bn3": "increase.bn", "downsample.0": "shortcut.conv", "downsample.1": "shortcut.bn"}
    out = {}
    for name, value in state.items():
        if match := re.fullmatch(r"layer(\d)\.(\d+)\.(conv\d|bn\d|downsample\.\d)\.(\w+)", name):
            layer, block, unit, part = match.groups()
            out[f"base.layer{int(layer) + 1}.block{int(block) + 1}.{units[unit]}.{part}"] = value
        elif name == "conv1.weight":
            scale = 1 / (255 * torch.tensor(STD, dtype=torch.float64))
            out["base.layer1.conv1.conv.weight"] = (value.double() * scale[:, None, None]).flip(1).float()
        elif name.startswith("bn1."):
            out[f"base.layer1.conv1.bn.{name.removeprefix('bn1.')}"] = value
    return out


def _torchvision(model: Segmenter) -> tuple[str, dict[str, Tensor]]:
    if getattr(model, "depth", None) is None:
        message = f"there are no ImageNet weights to download for {type(model).__name__}"
        raise UserError(message, field=FLAG, remedy=f"give a published file's path as {FLAG}, or none")
    source, state = imagenet_weights(model, FLAG)
    if hasattr(model, "base"):
        return source, from_torchvision(state)
    return source, {name: value for name, value in state.items() if not name.startswith(("layer4.", "fc."))}


def _fitting(state: dict[str, Tensor], model: Segmenter, file: Path) -> dict[str, Tensor]:
    """A torchvision ResNet's file in place of a published DeepLab one."""
    if not hasattr(model, "base") or "layer1.0.conv1.weight" not in state:
        return state
    if not getattr(model, "stride_in_3x3", True):
        message = f"{file.name} is a torchvision ResNet, whose stride lies in the 3x3 convolutions"
        raise UserError(message, file=file, field=FLAG, remedy="say --segmenter.stride 3x3")
    return from_torchvision(state)


def _downloaded(url: str) -> dict[str, Tensor]:
    name = url.rsplit("/", 1)[-1]
    target = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(target), progress=False)
        except Exception as error:  # no network, a proxy's page in place of the file, a full disk
            message = f"{name} can't be downloaded ({str(error).splitlines()[0][:120]})"
            remedy = f"download the file where there is a network and give its path as {FLAG}"
            raise UserError(message, file=url, field=FLAG, remedy=remedy) from error
    return _read(target)


def _read(path: Path) -> dict[str, Tensor]:
    if path.is_file() and is_mxnet(path):
        return {name: torch.from_numpy(array.astype("float32")) for name, array in resnet38_names(read_params(path, FLAG)).items()}
    return read_checkpoint(path, FLAG)
