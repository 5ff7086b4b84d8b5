"""Initial weights: torchvision's, a file's, or none. Nothing in a file is ever executed.

Published checkpoints of IRN and RIB hold every tensor under up to three names; all of them are understood.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seedbed.types import UserError

FLAG = "--classifier.weights"
"""The setting that errors name where a caller does not say another."""

PLAIN = re.compile(r"(module\.)?(resnet\d+\.)?(conv1|layer1\.0\.conv1)\.")
ALIAS = re.compile(r"(module\.)?(stage|backbone\.)\d")


SEGMENTS = re.compile(
    r"(base\.)?(aspp|squeeze|conv_fov2?|bn_fov2?|cls_conv|classifier\.\d+|aux_classifier|decode_head|auxiliary_head|segmentation_head)\."
)
"""Layers of segmenters: this project's, deeplab-pytorch's, YudeWang's, torchvision's, mmsegmentation's, segmentation_models.pytorch's."""
CLASSIFIES = re.compile(r"(classifier|fc8|newly_added\.0)\.weight")
"""The last layer of the field's classifiers: a file with one and with COCO in its name was trained on COCO's class labels."""


def unwrapped(name: str) -> str:
    """A tensor's name without what wrapping networks put before it (DataParallel, deeplab-pytorch's multi-scale input)."""
    return re.sub(r"^(module\.|scale\.)+", "", name)


def trained_on(source: str, names: Iterable[str]) -> str:
    """What weights were probably trained on: none, imagenet, masks or unknown, by their source and their tensors' names in the file.

    masks: a segmentation head, or a file name with COCO or DeepLab; a guess, because no published file says it.
    """
    if source in ("none", "classifier"):
        return source
    file, bare = source.split(" (SHA-256")[0].lower(), [unwrapped(n) for n in names]
    if any(SEGMENTS.match(n) for n in bare) or ("coco" in file and not any(CLASSIFIES.fullmatch(n) for n in bare)):
        return "masks"
    if re.search("imagenet|ilsvrc", file):
        return "imagenet"
    return "masks" if "deeplab" in file else "unknown"


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's tensors. `source` stands in the protocol record as `initial_weights`."""

    source: str
    matched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    """Tensors of the network that the file does not have; they keep their random values."""
    unexpected: tuple[str, ...] = ()
    """Tensors of the file that have no place in the network, by their name in the file."""

    @property
    def trained_on(self) -> str:
        """none, imagenet, masks or unknown; classifier where that network's weights were taken."""
        return trained_on(self.source, (*self.matched, *self.unexpected))

    def text(self) -> str:
        parts = [f"{self.source}: {len(self.matched)} tensors"] if self.matched else [self.source]
        if self.matched and self.missing:
            parts.append(f"fresh: {some(self.missing)}")
        if self.unexpected:
            parts.append(f"not used: {some(self.unexpected)}")
        return "; ".join(parts)


def load_weights(model: nn.Module, source: str | Path, field: str = FLAG) -> LoadReport:
    """Fill a network from `imagenet`, `none` (it stays as it was initialised) or a path; a UserError names the file, the flag `field` and
    the remedy."""
    if hasattr(model, "load_published"):  # its published weights have forms and names of their own
        return model.load_published(source, field)  # type: ignore[operator]
    if str(source) == "none":
        return LoadReport("none", missing=tuple(model.state_dict()))
    if str(source) == "imagenet":
        text, state = imagenet_weights(model, field)
        return _fill(model, state, text, None, field)
    path = Path(source)
    state = read_checkpoint(path, field)
    return _fill(model, state, file_source(path), path, field)


def file_source(path: Path) -> str:
    """How reports and the protocol record name a file of weights: its name, and 16 digits of its checksum."""
    with path.open("rb") as file:
        return f"{path.name} (SHA-256 {hashlib.file_digest(file, 'sha256').hexdigest()[:16]})"


def read_checkpoint(path: Path, field: str = FLAG) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a torch checkpoint, whatever its suffix; a state dictionary may lie one level down."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}", file=path, field=field, remedy="give the path of a .safetensors, .pth, .pt or .ckpt file")
    try:
        content = _safetensors(path, field) if _is_safetensors(path) else torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged or hostile file makes the readers say
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path.name} is no checkpoint that can be read without running code from it ({reason})",
            file=path,
            field=field,
            remedy="check that the file is whole and from where it should be; if it holds more than tensors, save its state_dict() alone",
        ) from error
    for key in ("state_dict", "model", "model_state", "model_state_dict", "weights"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise UserError(
            f"{path.name} holds no tensors by name", file=path, field=field, remedy="save the network's state_dict() and give that file"
        )
    return tensors


def network_name(name: str) -> str:
    """A tensor's name in this network, from its name in a published checkpoint."""
    name = re.sub(r"^(module\.)+", "", name)
    name = re.sub(r"^(resnet\d+|model|encoder)\.", "", name)
    name = re.sub(r"^newly_added\.0\.", "classifier.", name)
    # IRN and RIB: stage1 holds the stem and layer1, stage2 to stage4 one layer each; `backbone` lists the same stages from 0.
    name = re.sub(r"^backbone\.(\d)\.", lambda m: f"stage{int(m[1]) + 1}.", name)
    name = re.sub(r"^stage1\.([014])\.", lambda m: {"0": "conv1.", "1": "bn1.", "4": "layer1."}[m[1]], name)
    name = re.sub(r"^stage([234])\.0\.", r"layer\1.", name)
    return re.sub(r"^backbone\.", "", name)


@dataclass(frozen=True)
class Fitting:
    """How a kind of network takes a file's tensors."""

    own_name: Callable[[str, Mapping[str, Tensor]], str | None]
    """A tensor's name in the network (the second), from its name in a file; None where it has no place."""
    head: re.Pattern[str]
    """Layers that a file may lack, and whose size goes by the number of classes."""
    foreign: Callable[[str, Mapping[str, Tensor]], bool]
    """Whether a tensor without a place says that the file belongs to another network."""
    of_classes: str
    """What a file is whose head has another number of classes: with {0} for its own, {1} for the network's."""
    remedy: str
    """For a file of another network."""


def fill(model: nn.Module, state: Mapping[str, Tensor], source: str, file: Path | None, field: str, how: Fitting) -> LoadReport:
    """Tensors by name; everything has to fit but the head, which may be missing. UserError names file, flag and remedy."""
    own = model.state_dict()
    found: dict[str, Tensor] = {}
    unexpected = []
    for name, value in state.items():
        target = how.own_name(name, own)
        if target is None:
            unexpected.append(name)
        else:
            found.setdefault(target, value)
    missing = tuple(n for n in own if n not in found and not n.endswith("num_batches_tracked"))
    where = file.name if file else source

    def refuse(message: str, remedy: str = "") -> UserError:
        message = message if remedy else f"holds the weights of another network: {message}"
        return UserError(f"{where} {message}", file=file or source, field=field, remedy=remedy or how.remedy)

    if not found:
        raise refuse(f"no name fits (it has {some(list(state))})")
    for name, value in found.items():
        if value.shape == own[name].shape:
            continue
        if how.head.match(name) and value.shape[1:] == own[name].shape[1:]:
            raise refuse(how.of_classes.format(len(value), len(own[name])), "give a checkpoint trained on the same classes")
        raise refuse(f"{name} is {shape_text(value)}, not {shape_text(own[name])}")
    lacking = [n for n in missing if not how.head.match(n)]
    foreign = [n for n in unexpected if how.foreign(n, own)]
    if lacking or foreign:
        raise refuse(f"{'lacks' if lacking else 'also has'} {some(lacking or foreign)}")
    require_finite(found, where, file or source, field)
    model.load_state_dict(found, strict=False)
    return LoadReport(source, tuple(sorted(found)), missing, tuple(unexpected))


def _fill(model: nn.Module, state: Mapping[str, Tensor], source: str, file: Path | None, field: str) -> LoadReport:
    """A classifier's: one file may list its tensors under several names."""
    if any(PLAIN.match(n) for n in state):  # the same tensors again under the names of stages, which IRN's second network numbers otherwise
        state = {n: value for n, value in state.items() if not ALIAS.match(n)}
    how = Fitting(
        own_name=lambda name, own: target if (target := network_name(name)) in own else None,
        head=re.compile(r"classifier\."),
        foreign=lambda name, own: re.match(r"(layer\d|conv\d|bn\d)\b", network_name(name)) is not None,
        of_classes="is a classifier of {0} classes, the data have {1}",
        remedy=f"choose the backbone it belongs to with {_beside(field)}, or give another file",
    )
    return fill(model, state, source, file, field, how)


def imagenet_weights(model: nn.Module, field: str = FLAG) -> tuple[str, dict[str, Tensor]]:
    """torchvision's first ImageNet weights (those of IRN and RIB), downloaded once into torch's cache."""
    depth = getattr(model, "depth", None)
    if depth is None:
        raise UserError(
            f"there are no ImageNet weights for {type(model).__name__}",
            field=field,
            remedy=f"give {field} none, or a ResNet as {_beside(field)}",
        )
    try:
        from torchvision.models import get_model_weights
    except ImportError as error:
        raise UserError(
            "torchvision is not installed, which knows where ImageNet weights are",
            field=field,
            remedy=f"make env installs it; or give a file or `none` as {field}",
        ) from error
    weights = get_model_weights(f"resnet{depth}")["IMAGENET1K_V1"]
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # no network, a proxy's page in place of the file, a full disk
        raise UserError(
            f"the ImageNet weights of ResNet-{depth} can't be downloaded ({str(error).splitlines()[0][:120]})",
            file=weights.url,
            field=field,
            remedy=f"download the file where there is a network and give its path as {field}, or train without with {field} none",
        ) from error
    return f"imagenet (torchvision, {weights.url.rsplit('/', 1)[-1].removesuffix('.pth')})", dict(state)


def _is_safetensors(path: Path) -> bool:
    """By content: eight bytes with the length of a header, which is a JSON object."""
    with path.open("rb") as file:
        head = file.read(9)
    return path.suffix == ".safetensors" or (
        len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size
    )


def _safetensors(path: Path, field: str) -> dict[str, Any]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(
            "safetensors is not installed", file=path, field=field, remedy="make env installs it; or give a .pth file of the same weights"
        ) from error
    return load_file(path)


def _beside(field: str) -> str:
    """The flag that chooses the network whose weights `field` sets."""
    return f"{field.removesuffix('weights')}backbone"


def shape_text(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "one number"


def some(names: Any, most: int = 4) -> str:
    """The first names of a list, and how many there are beside them."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def require_finite(tensors: Mapping[str, Tensor], where: str, file: object, field: str, shown: Callable[[list[str]], str] = some) -> None:
    """A tensor with NaN or infinity is a UserError about `where`; `shown` writes the names of those tensors."""
    bad = [n for n, v in tensors.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if bad:
        message = f"{where} holds numbers that are not finite, in {shown(bad)}"
        raise UserError(message, file=file, field=field, remedy="give a checkpoint from before its training diverged")
