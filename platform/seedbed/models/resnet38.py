"""ResNet-38d (Wu et al. 2016, model A1, widened as PSA has it), the backbone of PSA, SEAM and HFPL, with their parameter names.

Pre-activation blocks of output stride 8: batch norm and rectification come before a convolution, and the sum of a block leaves as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from seedbed.models.mxnet_params import is_mxnet, read_params, resnet38_names
from seedbed.models.resnet import BatchNorm
from seedbed.models.weights import FLAG, LoadReport, read_checkpoint

PLAIN = (  # name, channels in, inside, out, stride, dilation of the first convolution, of the second
    ("b2", 64, 128, 128, 2, 1, 1),
    *((f"b2_{i}", 128, 128, 128, 1, 1, 1) for i in (1, 2)),
    ("b3", 128, 256, 256, 2, 1, 1),
    *((f"b3_{i}", 256, 256, 256, 1, 1, 1) for i in (1, 2)),
    ("b4", 256, 512, 512, 2, 1, 1),
    *((f"b4_{i}", 512, 512, 512, 1, 1, 1) for i in (1, 2, 3, 4, 5)),
    ("b5", 512, 512, 1024, 1, 1, 2),
    *((f"b5_{i}", 1024, 512, 1024, 1, 2, 2) for i in (1, 2)),
)
WIDE = (("b6", 1024, 2048, 0.3), ("b7", 2048, 4096, 0.5))  # name, channels in, out, dropout; dilation 4
STEM = ("conv1a.", "b2.", "b2_1.", "b2_2.")
"""What the official codes never train."""


class Features(NamedTuple):
    """Rectified maps at stride 4 and 8: the inputs of b4 (256 channels), b5 (512) and b6 (1024), and the output (4096)."""

    conv3: Tensor
    conv4: Tensor
    conv5: Tensor
    conv6: Tensor


class PlainBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut is a 1x1 convolution of the rectified input where the shape changes, else the input."""

    def __init__(self, inputs: int, inside: int, outputs: int, stride: int, first: int, second: int) -> None:
        super().__init__()
        self.bn_branch2a = BatchNorm(inputs)
        self.conv_branch2a = nn.Conv2d(inputs, inside, 3, stride, first, first, bias=False)
        self.bn_branch2b1 = BatchNorm(inside)
        self.conv_branch2b1 = nn.Conv2d(inside, outputs, 3, 1, second, second, bias=False)
        self.conv_branch1: nn.Conv2d | None = None
        if stride != 1 or inputs != outputs:
            self.conv_branch1 = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output, and its rectified input."""
        rectified = self.bn_branch2a(x).relu_()
        shortcut = x if self.conv_branch1 is None else self.conv_branch1(rectified)
        y = self.bn_branch2b1(self.conv_branch2a(rectified)).relu_()
        return self.conv_branch2b1(y).add_(shortcut), rectified


class WideBlock(nn.Module):
    """1x1, 3x3 with dilation 4, 1x1; whole channels are dropped before the last two."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.bn_branch2a = BatchNorm(inputs)
        self.conv_branch1 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.conv_branch2a = nn.Conv2d(inputs, outputs // 4, 1, bias=False)
        self.bn_branch2b1 = BatchNorm(outputs // 4)
        self.dropout_2b1 = nn.Dropout2d(dropout)
        self.conv_branch2b1 = nn.Conv2d(outputs // 4, outputs // 2, 3, 1, 4, 4, bias=False)
        self.bn_branch2b2 = BatchNorm(outputs // 2)
        self.dropout_2b2 = nn.Dropout2d(dropout)
        self.conv_branch2b2 = nn.Conv2d(outputs // 2, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output, and its rectified input."""
        rectified = self.bn_branch2a(x).relu_()
        y = self.dropout_2b1(self.bn_branch2b1(self.conv_branch2a(rectified)).relu_())
        y = self.dropout_2b2(self.bn_branch2b2(self.conv_branch2b1(y)).relu_())
        return self.conv_branch2b2(y).add_(self.conv_branch1(rectified)), rectified


class ResNet38Body(nn.Module):
    """(n, 3, h, w) -> `Features`; without a classifier."""

    stride = 8
    channels = (256, 512, 1024, 4096)
    """Of conv3, conv4, conv5 and conv6."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1a = nn.Conv2d(3, PLAIN[0][1], 3, 1, 1, bias=False)
        for name, *shape in PLAIN:
            self.add_module(name, PlainBlock(*shape))
        for name, inputs, outputs, dropout in WIDE:
            self.add_module(name, WideBlock(inputs, outputs, dropout))
        self.bn7 = BatchNorm(WIDE[-1][2])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stem(self, images_nchw: Tensor) -> Tensor:
        """conv1a and b2: what the official codes leave as it was loaded. Output (n, 128, h / 2, w / 2)."""
        x = self.conv1a(images_nchw)
        for name in ("b2", "b2_1", "b2_2"):
            x, _ = getattr(self, name)(x)
        return x

    def rest(self, x: Tensor) -> Features:
        """From the stem's output."""
        inputs: dict[str, Tensor] = {}
        names = [str(name) for name, *_ in (*PLAIN, *WIDE)]
        for name in names[names.index("b3") :]:
            x, inputs[name] = getattr(self, name)(x)
        return Features(inputs["b4"], inputs["b5"], inputs["b6"], self.bn7(x).relu_())

    def features(self, images_nchw: Tensor) -> Features:
        return self.rest(self.stem(images_nchw))

    def forward(self, images_nchw: Tensor) -> Features:
        return self.features(images_nchw)

    def freeze_statistics(self, fixed: bool = True) -> ResNet38Body:
        """Fixed: batch norm uses its running statistics and leaves them as they are, in training mode too."""
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.fixed = fixed
        return self

    def freeze_stem(self, frozen: bool = True) -> ResNet38Body:
        """Frozen, as in PSA and SEAM: the stem, and the scale and shift of every batch norm."""
        norms = {id(p) for m in self.modules() if isinstance(m, BatchNorm) for p in m.parameters()}
        for name, parameter in self.named_parameters():
            if name.startswith(STEM) or id(parameter) in norms:
                parameter.requires_grad_(not frozen)
        return self

    def load_published(self, source: str | Path, field: str = FLAG) -> LoadReport:
        """See `resnet38_weights.load_resnet38`."""
        from seedbed.models.resnet38_weights import load_resnet38

        return load_resnet38(self, source, field=field)


class ResNet38(ResNet38Body):
    """Keeps to `methods.base.Network`: `prefix` is the stem, `suffix` the rest and PSA's classifier, a 1x1 convolution without bias.

    (n, 3, h, w) -> (n, c, ceil(h / 8), ceil(w / 8)) class logits.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.dropout7 = nn.Dropout2d(0.5)
        self.fc8 = nn.Conv2d(WIDE[-1][2], num_classes, 1, bias=False)
        nn.init.xavier_uniform_(self.fc8.weight)
        self.trained: Literal["stage3", "all"] = "all"

    def train_from(self, trained: Literal["stage3", "all"]) -> ResNet38:
        """`stage3`: what PSA trains, all convolutions behind the stem; the stem's pass then leaves no graph."""
        self.trained = trained
        self.freeze_stem(trained == "stage3")
        return self

    def prefix(self, images_nchw: Tensor) -> Tensor:
        return self.stem(images_nchw)

    def suffix(self, features_nchw: Tensor) -> Tensor:
        return self.fc8(self.dropout7(self.rest(features_nchw).conv6))

    def forward(self, images_nchw: Tensor) -> Tensor:  # type: ignore[override]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trained == "all"):
            features = self.prefix(images_nchw)
        return self.suffix(features)

    def suffix_parameters(self) -> list[nn.Parameter]:
        """Everything behind the stem, batch-norm scale and shift included; the classifier's are apart."""
        return [p for name, p in self.named_parameters() if not name.startswith((*STEM, "fc8."))]

    def classifier_parameters(self) -> list[nn.Parameter]:
        return list(self.fc8.parameters())


def read_resnet38(path: Path, field: str = FLAG) -> dict[str, Tensor]:
    """The tensors of a published file by their names here: MXNet's `.params`, or a checkpoint of PSA, SEAM, HFPL or DeepLab-v1."""
    if path.is_file() and is_mxnet(path):
        return {name: torch.from_numpy(array.astype("float32")) for name, array in resnet38_names(read_params(path, field)).items()}
    return {plain_name(name): value for name, value in read_checkpoint(path, field).items()}


def plain_name(name: str) -> str:
    """A tensor's name without what wrapping networks put before it."""
    return name.removeprefix("module.").removeprefix("model.").removeprefix("backbone.")
