"""Settings of the classifier's training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from seedbed.config import bounded, nested, setting
from seedbed.data.transforms import TrainTransform
from seedbed.loop.settings import TrainingSettings
from seedbed.optim import Constant, Cosine, Poly, Schedule, WarmUp
from seedbed.types import UserError

IRN: dict[str, Any] = {
    "backbone": "resnet50",
    "epochs": 5,
    "batch": 16,
    "lr": 0.1,
    "weight_decay": 1e-4,
    "transform.resize_low": 320,
    "transform.resize_high": 640,
    "transform.crop": 512,
    "transform.jitter.brightness": 0.0,
    "transform.jitter.contrast": 0.0,
    "transform.jitter.saturation": 0.0,
    "transform.jitter.hue": 0.0,
}
SEAM = {
    **IRN,
    "backbone": "resnet38",
    "epochs": 8,
    "batch": 8,
    "lr": 0.01,
    "weight_decay": 5e-4,
    "transform.resize_low": 448,
    "transform.resize_high": 768,
    "transform.crop": 448,
    "transform.jitter.brightness": 0.3,
    "transform.jitter.contrast": 0.3,
    "transform.jitter.saturation": 0.3,
    "transform.jitter.hue": 0.1,
}


@dataclass(frozen=True)
class ClassifierConfig(TrainingSettings):
    """Training of the classifier. Defaults are the official code of IRN and RIB (both papers train the same one), for VOC 2012."""

    PRESETS: ClassVar = {"irn": IRN, "seam": SEAM}

    preset: Literal["irn", "seam"] = setting("irn", key=False)
    """A whole set of values: the official code of IRN and RIB, or that of SEAM and HFPL (its backbone needs a file of weights)."""
    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet38", "small"] = "resnet50"
    """Network; resnet38: ResNet-38d of PSA, SEAM and HFPL; small: the one for made pictures (docs/shapes.md). IRN, RIB: resnet50."""
    weights: str = "imagenet"
    """Initial weights: imagenet (torchvision's), none, or the path of a safetensors file or checkpoint. IRN, RIB: imagenet."""
    trained: Literal["auto", "stage3", "all"] = "auto"
    """What is trained: stage3 (cut off after layer2; IRN, RIB) or all weights. auto: stage3, but all where weights is none."""
    batch_norm: Literal["auto", "fixed", "trained"] = "auto"
    """Batch-norm statistics: fixed to those that were loaded (IRN, RIB), or trained, and fixed afterwards. auto: fixed, but trained where
    weights is none."""
    epochs: int = bounded(5, 1, 100_000)
    """Passes over the training pictures. IRN, RIB: 5."""
    batch: int = bounded(16, 1, 1_000_000)
    """Pictures of a step, over all workers. The last incomplete batch of an epoch is dropped. IRN, RIB: 16."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd (IRN, RIB), or adam (betas 0.9, 0.999; weight decay added to the gradient)."""
    lr: float = bounded(0.1, 0, 100, open_low=True)
    """Learning rate at the start. IRN, RIB: 0.1."""
    lr_classifier_factor: float = bounded(10.0, 0, 1e4)
    """Learning rate of the last layer (SEAM: all new layers), as a multiple of lr. IRN, RIB, SEAM, HFPL: 10."""
    weight_decay: float = bounded(1e-4, 0, 1)
    """Weight decay, of the last layer too. IRN, RIB: 1e-4."""
    momentum: float | None = bounded(None, 0, 1, open_high=True)
    """Momentum of sgd. None: the weight decay, which the official code hands over in its place (1e-4); 0.9 where weights is none."""
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    """Learning rate over all steps: poly, (1 - step / steps)^power (IRN, RIB), half a cosine to zero, or constant."""
    power: float = bounded(0.9, 0, 10)
    """Exponent of poly. IRN, RIB: 0.9."""
    warm_up: float = bounded(0.0, 0, 1, open_high=True)
    """Share of all steps over which the learning rate rises from zero; the schedule follows after it. IRN, RIB: 0."""
    transform: TrainTransform = nested(TrainTransform)
    """Augmentation of the training pictures; validation takes the crop's size from it."""
    batch_scales: tuple[float, ...] = bounded((), 0, 16, open_low=True)
    """Factors of which each step draws one for its whole batch (bilinear, after the crop); empty: none. IRN, RIB: none."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """fp32; tf32: a GPU's matrix products in TF32; bf16: forward pass under bfloat16 autocast. IRN, RIB: fp32."""
    channels_last: bool = True
    """Memory format of pictures and weights; faster convolutions, other last bits."""
    validate: Literal["epoch", "end", "never"] = setting("epoch", key=False)
    """When loss and mean average precision of the validation split are measured. They choose nothing. IRN, RIB: the loss, every epoch."""
    validation_split: str = setting("val", key=False)
    """Split that validation looks at: pictures and labels, never masks. IRN, RIB: val."""
    validation_drop_last: bool = setting(True, key=False)
    """Leave the last incomplete batch out of the validation loss, as the official code does; average precision counts every picture."""
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

    def resolved(self) -> ClassifierConfig:
        """With every `auto` and None replaced by what it means here.

        Without pre-trained weights three defaults are others, and only these: everything is trained, batch norm's statistics are trained
        (and fixed afterwards, for RIB), and the momentum of sgd is 0.9. What was set explicitly stands.
        """
        scratch = self.weights == "none"
        whole = scratch or self.backbone == "small"
        return self.replace(
            trained=self.trained if self.trained != "auto" else "all" if whole else "stage3",
            batch_norm=self.batch_norm if self.batch_norm != "auto" else "trained" if scratch else "fixed",
            momentum=0.9 if self.momentum is None and scratch and self.optimizer == "sgd" else self.momentum,
        )

    def check_together(self, prefix: str) -> None:
        if self.optimizer == "adam" and self.momentum is not None:
            flag = f"--{prefix}momentum"
            raise UserError("adam has no momentum to set", field=flag, remedy=f"leave {flag} out, or say --{prefix}optimizer sgd")
        if self.backbone == "small" and self.trained == "stage3":
            flag = f"--{prefix}trained"
            raise UserError("the small network has no stage 3", field=flag, remedy=f"say {flag} all")

    def rates(self, steps: int) -> Schedule:
        """Learning rate over the steps, as a factor of the first one."""
        warm = round(self.warm_up * steps)
        left = max(steps - warm, 1)
        choices: dict[str, Schedule] = {"poly": Poly(left, self.power), "cosine": Cosine(left), "constant": Constant()}
        then = choices[self.schedule]
        return WarmUp(warm, then) if warm else then
