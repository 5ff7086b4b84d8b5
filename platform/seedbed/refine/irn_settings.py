"""Settings of IRN: its network's training, and the walk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from seedbed.config import Settings, bounded, digest, nested, setting
from seedbed.loop.settings import TrainingSettings
from seedbed.types import UserError


@dataclass(frozen=True)
class IrnWalk(Settings):
    """The semantic random walk. Defaults are those of IRN and RIB on VOC 2012."""

    radius: int = bounded(5, 1, 32)
    """Pixels at stride 4: a pixel's partners are less than this far away. IRN, RIB: 5."""
    beta: float = bounded(10.0, 0, 100, open_low=True)
    """Exponent of the affinities before they become probabilities. IRN, RIB: 10."""
    squarings: int = bounded(8, 0, 12)
    """t of 2^t steps (the official codes square the matrix t times). IRN, RIB: 8."""
    pad: int = bounded(512, 0, 8192)
    """Smaller pictures are filled up with zeros to this side, pixels, before the network sees them; 0: never. IRN and RIB on VOC: 512;
    RIB on COCO: 0."""
    flip: bool = True
    """Look at the mirrored picture too. IRN, RIB: yes."""

    @property
    def steps(self) -> int:
        return int(2**self.squarings)


@dataclass(frozen=True)
class IrnConfig(TrainingSettings):
    """IRN's network of class boundaries and the walk. Defaults are the official code of IRN and RIB, for VOC 2012."""

    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "small"] = "resnet50"
    """Network below the two branches; it is never trained. IRN, RIB: resnet50."""
    weights: str = "imagenet"
    """The backbone's weights: imagenet (torchvision's), classifier (this study's, of the same backbone), none, or the path of a file.
    IRN, RIB: imagenet."""
    epochs: int = bounded(3, 1, 100_000)
    """Passes over the training pictures. IRN, RIB: 3."""
    batch: int = bounded(32, 1, 1_000_000)
    """Pictures of a step, over all workers. The last incomplete batch of an epoch is dropped. IRN, RIB: 32."""
    lr: float = bounded(0.1, 0, 100, open_low=True)
    """Learning rate of the boundary branch at the start; it decays as (1 - step / steps)^0.9. IRN, RIB: 0.1."""
    lr_displacement_factor: float = bounded(10.0, 0, 1e4)
    """Learning rate of the displacement branch, as a multiple of lr. IRN, RIB: 10."""
    weight_decay: float = bounded(1e-4, 0, 1)
    """Weight decay. IRN, RIB: 1e-4."""
    momentum: float | None = bounded(None, 0, 1, open_high=True)
    """Momentum of SGD. None: the weight decay, which the official code hands over in its place (1e-4)."""
    radius: int = bounded(10, 2, 32)
    """Pixels at stride 4: pairs that are trained on are less than this far apart. IRN, RIB: 10."""
    scale_low: float = bounded(0.5, 0.05, 8)
    """Smallest factor by which a training picture is resized. IRN, RIB: 0.5."""
    scale_high: float = bounded(1.5, 0.05, 8)
    """Largest factor. IRN, RIB: 1.5."""
    flip: bool = True
    """Mirror every other training picture. IRN, RIB: yes."""
    crop: int = bounded(512, 32, 8192)
    """Side of the square training crop, pixels, a multiple of 4. IRN, RIB: 512."""
    mean_shift: bool = True
    """After training measure the mean displacement, in one pass over the pictures. Part of the published weights; the semantic walk does
    not look at it. IRN, RIB: yes."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """fp32; tf32: a GPU's matrix products in TF32; bf16: forward pass under bfloat16 autocast. IRN, RIB: fp32."""
    channels_last: bool = True
    """Memory format of pictures and weights; faster convolutions, other last bits."""
    checkpoint_every: int = bounded(500, 1, key=False)
    """Steps between two checkpoints at most."""
    checkpoint_seconds: float = bounded(60.0, 0, key=False)
    """Seconds between two checkpoints at most; a step that takes longer is finished first."""
    log_every: int = bounded(10, 1, key=False)
    """Steps a line of the training log."""
    prefetch: int | None = bounded(None, 0, 256, key=False)
    """Threads that decode and augment ahead of the step. None: one on a CPU, for a GPU half of the machine's cores, at most eight."""
    decoded_mb: int = setting(256, key=False)
    """Megabytes of decoded pictures that a worker keeps, so that small sets are decoded once."""
    walk: IrnWalk = nested(IrnWalk)

    def walk_key(self) -> str:
        """Digest of what decides the walk, beside the trained network."""
        return self.walk.key()

    def training_key(self) -> str:
        """Digest of what decides the trained network: all but the walk."""
        return digest({name: value for name, value in self.to_dict(only_key=True).items() if name != "walk"})

    def check_together(self, prefix: str) -> None:
        flag = f"--{prefix}crop"
        if self.crop % 4:
            raise UserError(f"{flag} is {self.crop}", field=flag, remedy="give a multiple of 4, the network's stride")
        if self.crop // 4 <= 2 * (self.radius - 1):
            message = f"{flag} is {self.crop}: at stride 4 no pixel of it has all its partners within --{prefix}radius {self.radius}"
            raise UserError(message, field=flag, remedy=f"give a crop above {8 * (self.radius - 1)}, or a smaller radius")
        if self.scale_low > self.scale_high:
            flag = f"--{prefix}scale-low"
            raise UserError(f"{flag} is {self.scale_low}, above scale-high, {self.scale_high}", field=flag, remedy="give low <= high")
