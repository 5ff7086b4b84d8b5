"""Settings of the segmenter: its training and its inference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from seedbed.config import bounded, setting
from seedbed.loop.settings import TrainingSettings
from seedbed.optim import Constant, Cosine, Poly, Schedule, WarmUp
from seedbed.types import UserError

Backbone = Literal["auto", "resnet18", "resnet34", "resnet50", "resnet101", "resnet38", "small"]
BACKBONES = {
    "deeplab_v2": ("resnet101", "resnet50"),
    "deeplab_v1": ("resnet38",),
    "small": ("small", "resnet18", "resnet34"),
}
"""Model -> the backbones it can have, its own first."""

_DEEPLAB_V2 = {
    "model": "deeplab_v2",
    "backbone": "auto",
    "batch": 10,
    "optimizer": "sgd",
    "lr_head_factor": 10.0,
    "weight_decay": 5e-4,
    "schedule": "poly",
    "lr_hold": 10,
    "test_scales": (1.0,),
    "test_flip": False,
    "crf": "deeplab",
}
_RIB = {**_DEEPLAB_V2, "retrain": "auto", "accumulate": 1, "loss": "balanced_half", "scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)}


@dataclass(frozen=True)
class SegmenterConfig(TrainingSettings):
    """Training and inference of the segmenter. Defaults: RIB's appendix for VOC 2012, on deeplab-pytorch."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "voc": {**_RIB, "steps": 30_000, "lr": 2e-4, "crop": 321},
        "coco": {**_RIB, "retrain": "no", "steps": 100_000, "lr": 2.5e-4, "crop": 481},
        "deeplab": {
            **_DEEPLAB_V2,
            "retrain": "no",
            "accumulate": 2,
            "loss": "plain",
            "scales": (0.5, 0.75, 1.0, 1.25, 1.5),
            "steps": 20_000,
            "lr": 2.5e-4,
            "crop": 321,
        },
        "hfpl": {
            "model": "deeplab_v1",
            "retrain": "no",
            "backbone": "auto",
            "batch": 10,
            "optimizer": "sgd",
            "lr_head_factor": 10.0,
            "weight_decay": 5e-4,
            "schedule": "poly1",
            "lr_hold": 1,
            "test_scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
            "test_flip": True,
            "crf": "yudewang",
            "accumulate": 1,
            "loss": "plain",
            "scales": (0.5, 1.5),
            "steps": 20_000,
            "lr": 1e-3,
            "crop": 448,
        },
        "small": {
            "model": "small",
            "retrain": "auto",
            "backbone": "auto",
            "batch": 16,
            "optimizer": "adam",
            "lr_head_factor": 1.0,
            "weight_decay": 1e-4,
            "schedule": "cosine",
            "lr_hold": 1,
            "test_scales": (1.0,),
            "test_flip": True,
            "crf": "none",
            "accumulate": 1,
            "loss": "plain",
            "scales": (0.75, 1.0, 1.25),
            "steps": 400,
            "lr": 3e-3,
            "crop": 96,
        },
    }

    preset: Literal["voc", "coco", "deeplab", "hfpl", "small"] = setting("voc", key=False)
    """voc, coco: RIB's appendix; deeplab: deeplab-pytorch's own VOC setting; hfpl: DeepLab-v1 on ResNet-38 as HFPL and YudeWang's codebase
    train it; small: the network for made pictures and CPUs."""
    model: Literal["deeplab_v2", "deeplab_v1", "small"] = "deeplab_v2"
    """Network. RIB: deeplab_v2 (ResNet-101, multi-scale input); HFPL's SEAM rows: deeplab_v1 (large field of view, ResNet-38)."""
    backbone: Backbone = "auto"
    """auto: resnet101 of deeplab_v2 (or resnet50), resnet38 of deeplab_v1, small of small (or resnet18, resnet34)."""
    weights: str = "imagenet"
    """Initial weights: imagenet (torchvision's, stride 3x3), coco (deeplab-pytorch's file, trained on COCO's masks), none, or the path of a
    safetensors file or checkpoint, published ones by their names. RIB: ImageNet. deeplab-pytorch: COCO."""
    weights_from: Literal["auto", "imagenet", "masks"] = "auto"
    """What a file of weights was trained on, for the protocol record: imagenet, or masks of some dataset (no weak supervision any more).
    auto: masks for coco and for files with a segmentation head or coco in their name; unknown for other files."""
    stride: Literal["auto", "1x1", "3x3"] = "auto"
    """Where deeplab_v2's bottlenecks have their stride: in the first 1x1 (Caffe's layout, published checkpoints) or in the 3x3
    (torchvision's ResNets). auto: 3x3 for imagenet, else 1x1."""
    batch_norm: Literal["auto", "fixed", "batch", "trained"] = "auto"
    """fixed: running statistics, nothing of it trained (deeplab-pytorch); batch: statistics of the batch, scale and shift as loaded
    (YudeWang's code as it runs); trained: both trained. auto: that of the model's code, but trained where weights is none."""
    steps: int = bounded(30_000, 1, 10_000_000)
    """Updates. RIB: 30,000 on VOC, 100,000 on COCO; deeplab-pytorch, HFPL: 20,000."""
    batch: int = bounded(10, 1, 100_000)
    """Pictures of an update, over all workers. RIB, HFPL: 10."""
    accumulate: int = bounded(1, 1, 1000)
    """Parts of an update's pictures that go through the network one after the other; each part's loss is a mean of its own, whatever
    number of workers its pictures are shared by. RIB: 1; deeplab-pytorch: 2."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd (official codes), or adam (betas 0.9, 0.999; weight decay added to the gradient)."""
    lr: float = bounded(2e-4, 0, 100, open_low=True)
    """Learning rate of the backbone at the start. RIB: 2e-4 on VOC, 2.5e-4 on COCO; HFPL: 1e-3."""
    lr_head_factor: float = bounded(10.0, 0, 1e4)
    """Learning rate of the new layers, as a multiple of lr; twice that for their biases. Official codes: 10."""
    weight_decay: float = bounded(5e-4, 0, 1)
    """Weight decay; none on biases. Official codes: 5e-4."""
    momentum: float | None = bounded(None, 0, 1, open_high=True)
    """Momentum of sgd. None: 0.9, as in the official codes."""
    schedule: Literal["poly", "poly1", "cosine", "constant"] = "poly"
    """poly: (1 - step / steps)^power (deeplab-pytorch); poly1: (1 - step / (steps + 1))^power (HFPL); half a cosine to zero; constant."""
    power: float = bounded(0.9, 0, 10)
    """Exponent of poly. Official codes: 0.9."""
    lr_hold: int = bounded(10, 1)
    """Updates over which poly's learning rate is held. deeplab-pytorch: 10; HFPL: 1."""
    warm_up: float = bounded(0.0, 0, 1, open_high=True)
    """Share of all steps over which the learning rate rises from zero. Official codes: 0."""
    augmentation: Literal["auto", "deeplab", "yudewang"] = "auto"
    """deeplab: one of the scales, crop (padded below and to the right), mirror; yudewang: hue, saturation and value shifted, mirror, any
    scale between the first and the last, cubic, crop anywhere. auto: yudewang for deeplab_v1, else deeplab."""
    scales: tuple[float, ...] = bounded((0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0), 0.01, 16)
    """Factors of the training pictures' size: one is drawn (deeplab), or any between the first and the last (yudewang). RIB's authors:
    0.5 to 2.0 by 0.25; deeplab-pytorch: 0.5 to 1.5; HFPL: 0.5, 1.5."""
    crop: int = bounded(321, 8, 4096)
    """Side of the square training crop, pixels. RIB: 321 on VOC, 481 on COCO; HFPL: 448."""
    flip: bool = True
    """Mirror every other training picture. Official codes: yes."""
    loss: Literal["plain", "balanced_half", "balanced_dsrg"] = "balanced_half"
    """Cross-entropy: plain, mean over the pixels; balanced_half, mean over background plus mean over foreground pixels, halved;
    balanced_dsrg, means per picture, added. RIB names a balanced one without a formula: balanced_half is our reading."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """fp32; tf32: a GPU's matrix products in TF32; bf16: forward pass under bfloat16 autocast. Official codes: fp32."""
    channels_last: bool = True
    """Memory format of pictures and weights; faster convolutions, other last bits."""
    compile: bool = False
    """Training by torch.compile: faster on a GPU after a minute, other last bits. Not for the small network."""
    retrain: Literal["auto", "yes", "no"] = "auto"
    """Train a second segmenter, on labels whose ignored pixels the first one has filled (as it predicts with the settings of inference
    below). auto: yes where labels leave pixels open, no with saliency (RIB). RIB on COCO, deeplab-pytorch, HFPL: no."""
    test_scales: tuple[float, ...] = bounded((1.0,), 0.01, 16)
    """Factors of a picture's size at inference; the class scores of all are averaged. deeplab-pytorch: 1 (the network itself looks at
    three scales); HFPL: 0.5 to 1.75 by 0.25."""
    test_flip: bool = False
    """Mirror of each scale too. deeplab-pytorch: no; HFPL: yes."""
    crf: Literal["none", "deeplab", "yudewang"] = "deeplab"
    """Dense CRF on the predictions: none, deeplab-pytorch's constants (10 iterations), or YudeWang's and HFPL's (1 iteration)."""
    checkpoint_every: int = bounded(500, 1, key=False)
    """Updates between two checkpoints at most."""
    checkpoint_seconds: float = bounded(60.0, 0, key=False)
    """Seconds between two checkpoints at most; a step that takes longer is finished first."""
    log_every: int = bounded(10, 1, key=False)
    """Updates a line of the training log."""
    prefetch: int | None = bounded(None, 0, 256, key=False)
    """Threads that decode and augment ahead of the step. None: one on a CPU, for a GPU half of the machine's cores, at most eight."""
    decoded_mb: int = bounded(256, 0, key=False)
    """Megabytes of decoded pictures and labels that a worker keeps, so that small sets are decoded once."""

    def resolved(self) -> SegmenterConfig:
        """With every `auto` and None replaced by what it means here. Without pre-trained weights batch norm is trained."""
        official = {"deeplab_v2": "fixed", "deeplab_v1": "batch", "small": "trained"}[self.model]
        return self.replace(
            backbone=BACKBONES[self.model][0] if self.backbone == "auto" else self.backbone,
            stride=self.stride if self.stride != "auto" else "3x3" if self.weights == "imagenet" else "1x1",
            batch_norm=self.batch_norm if self.batch_norm != "auto" else "trained" if self.weights == "none" else official,
            augmentation=self.augmentation if self.augmentation != "auto" else ("yudewang" if self.model == "deeplab_v1" else "deeplab"),
            momentum=0.9 if self.momentum is None and self.optimizer == "sgd" else self.momentum,
        )

    def training_dict(self) -> dict[str, Any]:
        """The part of the key that training depends on: inference can change without training again."""
        return {n: v for n, v in self.resolved().to_dict(only_key=True).items() if n not in (*INFERENCE, *NOT_TRAINING)}

    def inference_dict(self) -> dict[str, Any]:
        """The rest of the key."""
        return {name: value for name, value in self.to_dict(only_key=True).items() if name in INFERENCE}

    def check_together(self, prefix: str) -> None:
        fit = BACKBONES[self.model]
        if self.backbone not in ("auto", *fit):
            flag = f"--{prefix}backbone"
            raise UserError(f"{self.model} has no backbone {self.backbone}", field=flag, remedy=f"choose one of {', '.join(fit)}")
        self._check_used(prefix)
        if self.model == "deeplab_v2" and (self.weights, self.stride) in (("imagenet", "1x1"), ("coco", "3x3")):
            flag, where = f"--{prefix}stride", "3x3" if self.weights == "imagenet" else "1x1"
            message = f"--{prefix}weights {self.weights} were trained with the stride in the {where} convolutions, not {self.stride}"
            raise UserError(message, field=flag, remedy=f"leave {flag} out, or give a file as --{prefix}weights")
        if self.optimizer == "adam" and self.momentum is not None:
            flag = f"--{prefix}momentum"
            raise UserError("adam has no momentum to set", field=flag, remedy=f"leave {flag} out, or say --{prefix}optimizer sgd")
        if self.compile and self.model == "small":
            flag = f"--{prefix}compile"
            raise UserError("the small network is not compiled", field=flag, remedy=f"leave {flag} out")
        if self.batch % self.accumulate:
            flag = f"--{prefix}accumulate"
            message = f"{flag} {self.accumulate} does not divide the batch of {self.batch} pictures"
            raise UserError(message, field=flag, remedy=f"give a divisor of --{prefix}batch")
        for name in ("scales", "test_scales"):
            if not getattr(self, name):
                flag = f"--{prefix}{name}".replace("_", "-")
                raise UserError(f"{flag} is empty", field=flag, remedy="give one factor at least, 1 for the picture as it is")

    def _check_used(self, prefix: str) -> None:
        """No setting that what is chosen beside it would ignore; those of presets are not asked for by anyone."""
        if self.model != "deeplab_v2" and self.stride != "auto":
            flag = f"--{prefix}stride"
            raise UserError(f"{self.model} has no stride to move", field=flag, remedy=f"leave {flag} out")
        plain = type(self)()
        if not self.schedule.startswith("poly"):
            for name, unused in (("lr_hold", self.lr_hold not in (plain.lr_hold, 1)), ("power", self.power != plain.power)):
                if unused:
                    flag = f"--{prefix}{name}".replace("_", "-")
                    message = f"the schedule {self.schedule} has no {name.replace('_', '-')}"
                    raise UserError(message, field=flag, remedy=f"leave {flag} out, or say --{prefix}schedule poly")
        known = {"imagenet": "imagenet", "coco": "masks", "none": ""}.get(self.weights)
        if known is not None and self.weights_from not in ("auto", known):
            flag = f"--{prefix}weights-from"
            message = f"{flag} says what a file was trained on, and --{prefix}weights {self.weights} is none"
            raise UserError(message, field=flag, remedy=f"leave {flag} out, or give a file as --{prefix}weights")

    def rates(self) -> Schedule:
        """Learning rate over the updates, as a factor of the first one."""
        warm = round(self.warm_up * self.steps)
        left = max(self.steps - warm, 1)
        choices: dict[str, Schedule] = {
            "poly": HeldPoly(left, self.lr_hold, self.power),
            "poly1": HeldPoly(left + 1, self.lr_hold, self.power) if self.lr_hold > 1 else Poly(left + 1, self.power),
            "cosine": Cosine(left),
            "constant": Constant(),
        }
        then = choices[self.schedule]
        return WarmUp(warm, then) if warm else then


NOT_TRAINING = ("retrain", "weights_from")
"""Settings that say whether there is a second training, and what a file is called in the record."""

INFERENCE = ("test_scales", "test_flip", "crf")
"""Settings that only predictions depend on."""


@dataclass(frozen=True)
class HeldPoly:
    """(1 - update / steps)^power, looked at every `hold` updates only; 0 from `steps` on (deeplab-pytorch; golden deeplab_v2, schedule)."""

    steps: int
    hold: int = 10
    power: float = 0.9

    def __call__(self, update: int) -> float:
        return max(0.0, 1 - self.hold * (update // self.hold) / self.steps) ** self.power
