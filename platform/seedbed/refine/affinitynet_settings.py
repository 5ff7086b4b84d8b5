"""Settings of AffinityNet: its training, and the walk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from seedbed.config import bounded, digest, nested
from seedbed.data.jitter import ColorJitter
from seedbed.loop.settings import TrainingSettings
from seedbed.types import UserError

WALK = ("alpha", "beta", "squarings", "walk_radius")
"""Settings that the trained network does not depend on."""


@dataclass(frozen=True)
class AffinityConfig(TrainingSettings):
    """AffinityNet and its walk. Defaults are the official code of SEAM and HFPL, for VOC 2012 and COCO 2014."""

    backbone: Literal["resnet38", "resnet18", "resnet34", "resnet50", "resnet101", "small"] = "resnet38"
    """Network below the four layers. PSA, SEAM, HFPL: resnet38; resnet50 needs no file of weights; small: for made pictures."""
    weights: str = "imagenet"
    """The backbone's weights: imagenet (torchvision's; there are none of resnet38: give the path of its published .params file),
    classifier (this study's, of the same backbone), none, or the path of a file. SEAM, HFPL: ImageNet's."""
    trained: Literal["auto", "stage3", "all"] = "auto"
    """What is trained: stage3 (not the stem, nor scale and shift of batch norm; PSA, SEAM, HFPL) or all. auto: stage3, but all where
    weights is none."""
    batch_norm: Literal["auto", "fixed", "trained"] = "auto"
    """Batch-norm statistics: fixed to those that were loaded (PSA, SEAM, HFPL), or trained. auto: fixed, but trained where weights is
    none."""
    epochs: int = bounded(8, 1, 100_000)
    """Passes over the training pictures. PSA, SEAM, HFPL: 8."""
    batch: int = bounded(8, 1, 1_000_000)
    """Pictures of a step, over all workers. The last incomplete batch of an epoch is dropped. PSA, SEAM, HFPL: 8."""
    lr: float = bounded(0.01, 0, 100, open_low=True)
    """Learning rate of the backbone at the start; it decays as (1 - step / steps)^0.9. SEAM, HFPL: 0.01; PSA: 0.1."""
    lr_new_factor: float = bounded(10.0, 0, 1e4)
    """Learning rate of the four new layers, as a multiple of lr. PSA, SEAM, HFPL: 10."""
    weight_decay: float = bounded(5e-4, 0, 1)
    """Weight decay. PSA, SEAM, HFPL: 5e-4."""
    momentum: float | None = bounded(None, 0, 1, open_high=True)
    """Momentum of SGD. None: the weight decay, which the official code hands over in its place (5e-4); 0.9 where weights is none."""
    radius: int = bounded(5, 2, 32)
    """Pixels at the network's stride: pairs that are trained on are less than this far apart. PSA, SEAM, HFPL: 5."""
    jitter: ColorJitter = nested(ColorJitter)
    flip: bool = True
    """Mirror every other training picture. PSA, SEAM, HFPL: yes."""
    crop: int = bounded(448, 40, 8192)
    """Side of the square training crop, pixels, a multiple of 8; pictures are not resized. PSA, SEAM, HFPL: 448."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """fp32; tf32: a GPU's matrix products in TF32; bf16: forward pass under bfloat16 autocast. PSA, SEAM, HFPL: fp32."""
    channels_last: bool = True
    """Memory format of pictures and weights; faster convolutions, other last bits."""
    alpha: float = bounded(6.0, 0, 1000, open_low=True)
    """Walk: exponent of the background's score, (1 - largest map)^alpha. SEAM, HFPL: 6; PSA: 16."""
    beta: float = bounded(8.0, 0, 100, open_low=True)
    """Walk: exponent of the affinities before they become probabilities. PSA, SEAM, HFPL: 8."""
    squarings: int = bounded(6, 0, 12)
    """Walk: t of 2^t steps (the official codes square the matrix t times). SEAM, HFPL: 6; PSA: 8."""
    walk_radius: int = bounded(5, 1, 32)
    """Walk: a pixel's partners are less than this far away, at the network's stride; less on short sides. PSA, SEAM, HFPL: 5."""
    checkpoint_every: int = bounded(500, 1, key=False)
    """Steps between two checkpoints at most."""
    checkpoint_seconds: float = bounded(60.0, 0, key=False)
    """Seconds between two checkpoints at most; a step that takes longer is finished first."""
    log_every: int = bounded(10, 1, key=False)
    """Steps a line of the training log."""
    prefetch: int | None = bounded(None, 0, 256, key=False)
    """Threads that decode and augment ahead of the step. None: one on a CPU, for a GPU half of the machine's cores, at most eight."""
    decoded_mb: int = bounded(256, 0, key=False)
    """Megabytes of decoded pictures that a worker keeps, so that small sets are decoded once."""

    @property
    def steps(self) -> int:
        """Of the walk."""
        return int(2**self.squarings)

    def resolved(self) -> AffinityConfig:
        """With every `auto` and None replaced by what it means here."""
        scratch = self.weights == "none"
        return self.replace(
            trained=self.trained if self.trained != "auto" else "all" if scratch else "stage3",
            batch_norm=self.batch_norm if self.batch_norm != "auto" else "trained" if scratch else "fixed",
            momentum=0.9 if self.momentum is None and scratch else self.momentum,
        )

    def walk_key(self) -> str:
        """Digest of what decides the walk, beside the trained network."""
        return digest({name: value for name, value in self.to_dict(only_key=True).items() if name in WALK})

    def training_key(self) -> str:
        """Digest of what decides the trained network: all but the walk."""
        return digest({name: value for name, value in self.to_dict(only_key=True).items() if name not in WALK})

    def check_together(self, prefix: str) -> None:
        flag = f"--{prefix}crop"
        if self.crop % 8:
            raise UserError(f"{flag} is {self.crop}", field=flag, remedy="give a multiple of 8, the network's stride")

    def check_used(self, prefix: str) -> None:
        """What matters only where AffinityNet is the refinement."""
        if self.backbone == "resnet38" and self.weights == "imagenet":
            flag = f"--{prefix}weights"
            remedy = f"get ilsvrc-cls_rna-a1_cls1000_ep-0001.params and give its path as {flag}, or say --{prefix}backbone resnet50"
            raise UserError("the ImageNet weights of ResNet-38d can't be downloaded by themselves", field=flag, remedy=remedy)
