"""What every segmentation network offers: class scores with background, its parameter groups, and how its input is made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from torch import Tensor, nn

BatchNormUse = Literal["fixed", "batch", "trained"]


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate: `factor` times the first one, with weight decay or without."""

    name: str
    factor: float
    decay: bool
    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]


def named_group(name: str, factor: float, decay: bool, named: Iterable[tuple[str, nn.Parameter]]) -> Group:
    pairs = list(named)
    return Group(name, factor, decay, tuple(n for n, _ in pairs), tuple(p for _, p in pairs))


class Segmenter(nn.Module):
    """A network from pictures to class scores, background first. Single-device code."""

    input: ClassVar[Literal["bgr", "rgb"]]
    """What it sees: bgr, 0 to 255 less Caffe's mean; rgb, normalised with ImageNet's mean and deviation."""
    align_corners: ClassVar[bool]
    """How its scores are enlarged."""
    resizing: ClassVar[Literal["linear", "cubic"]] = "linear"
    """How pictures are resized for its other scales at inference."""
    loss_at_input: ClassVar[bool] = False
    """Whether training enlarges the scores to the crop, or reduces the labels to the scores."""
    batch_norm: BatchNormUse = "trained"

    def outputs(self, images_nchw: Tensor) -> list[Tensor]:
        """All score maps that training looks at; the last one is what counts."""
        raise NotImplementedError

    def groups(self) -> list[Group]:
        """Every parameter that training may change, batch norm's scale and shift aside."""
        raise NotImplementedError

    def compiled(self) -> nn.Module:
        """The part that torch.compile is for: one whose forward pass is called as a module."""
        raise NotImplementedError

    def forward(self, images_nchw: Tensor) -> Tensor:
        """(n, 3, h, w) -> (n, c, h', w') class scores, c with background."""
        return self.outputs(images_nchw)[-1]

    def use_batch_norm(self, use: BatchNormUse, momentum: float | None = None) -> Self:
        """fixed: running statistics, never updated; batch: statistics of the batch, scale and shift as they are; trained: both trained."""
        self.batch_norm = use
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and momentum is not None:
                module.momentum = momentum
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.batch_norm == "fixed":
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def batch_norm_parameters(self) -> Group:
        """Scale and shift of every batch norm, with the backbone's rate and no decay: what `trained` adds to the groups."""
        named = [
            (f"{name}.{part}", p)
            for name, module in self.named_modules()
            if isinstance(module, nn.BatchNorm2d)
            for part, p in module.named_parameters()
        ]
        return named_group("batch norm", 1, False, named)
