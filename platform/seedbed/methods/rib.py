"""RIB: Reducing Information Bottleneck for Weakly Supervised Semantic Segmentation (Lee et al., NeurIPS 2021).

The classifier is fine-tuned on every picture for K steps with a loss that does not saturate; the maps of all steps are added up.
Where the paper and its official code differ, a setting chooses: the defaults are the code's (preset `official`), `paper` and `coco`
switch whole sets. docs/rib.md puts them side by side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.config import Settings, bounded, setting
from seedbed.methods.base import Companions
from seedbed.methods.maps import TINY, CamConfig, Precision, fixed_statistics, make_maps, merge_mirror, normalised, strided_sum, view_groups
from seedbed.models.passes import PASS_PIXELS, Parameters, borrowed_weights, fitting, many_passes, multiplies_bfloat16
from seedbed.optim import Constant, PolySGD
from seedbed.types import Batch, Maps, StepOutput, UserError, Views

OFFICIAL: dict[str, Any] = {
    "margin": 600.0,
    "margin_use": "stop",
    "lr": 8e-6,
    "tau": 0.4,
    "steps": 10,
    "batch": 20,
    "target_rows": "scales",
    "companions": "disjoint",
    "gndrp_divisor": "all",
    "gndrp_comparison": "below",
    "gndrp_map": "signed",
    "gndrp_classes": "all",
    "schedule": "poly",
    "lr_classifier_factor": 10.0,
    "weight_decay": 1e-4,
    "momentum": None,
    "trained": "stage3",
    "aggregate": "sum",
    "area_guard": True,
    "area_share": 0.7,
}
PAPER = {
    **OFFICIAL,
    "margin_use": "clamp",
    "target_rows": "single",
    "companions": "random",
    "gndrp_divisor": "kept",
    "gndrp_comparison": "at-most",
    "gndrp_map": "rectified",
    "schedule": "constant",
    "lr_classifier_factor": 1.0,
    "weight_decay": 0.0,
    "momentum": 0.0,
    "trained": "all",
    "aggregate": "normalised",
    "area_guard": False,
}
COCO = {**OFFICIAL, "margin": 1000.0, "lr": 5e-6, "tau": 0.5, "batch": 15, "gndrp_classes": "first20", "area_share": 0.8}


@dataclass(frozen=True)
class RibConfig(Settings):
    """RIB's settings; in brackets: paper / official code for VOC / official code for COCO, where they differ."""

    PRESETS: ClassVar = {"official": OFFICIAL, "paper": PAPER, "coco": COCO}

    preset: Literal["official", "paper", "coco"] = setting("official", key=False)
    """A whole set of values: the official code for VOC, the paper's text, or the official code for COCO."""
    margin: float = bounded(600.0, 0, open_low=True)
    """m, in units of the logit sum (600 / 600 / 1000)."""
    margin_use: Literal["stop", "clamp"] = "stop"
    """clamp: min(m, y) in the loss [paper]; stop: the loop ends when |sum of the target's labelled logits| > m [code]."""
    lr: float = bounded(8e-6, 0, 1, open_low=True)
    """lambda, the learning rate (8e-6 / 8e-6 / 5e-6)."""
    tau: float = bounded(0.4, 0, 1)
    """Threshold of GNDRP on the map over its maximum (0.4 / 0.4 / 0.5)."""
    steps: int = bounded(10, 1, 1000)
    """K, steps of fine-tuning, also the length of the learning-rate schedule (10)."""
    batch: int = bounded(20, 1)
    """B (20 / 20 / 15): the pictures beside the target's rows [code], or with target-rows `single` the target and B - 1 others [paper]."""
    pooling: Literal["gndrp", "gap"] = "gndrp"
    """What makes a logit of a map: mean over the non-discriminative positions, or over all of them."""
    loss: Literal["rib", "bce_sigmoid", "bce_tanh", "bce_softsign"] = "rib"
    """L_RIB, or binary cross-entropy behind a saturating activation (Table 5(a))."""
    target_rows: Literal["scales", "single"] = "scales"
    """Rows of the target in the batch: `loss_scales`, each with its mirror [code], or the picture once [paper]."""
    loss_scales: tuple[float, ...] = setting((1.0, 1.5, 2.0))
    """Scales of the target that enter the loss with target-rows `scales`; the others only make maps (official: all but 0.5)."""
    companions: Literal["disjoint", "random", "none"] = "disjoint"
    """Other pictures of the batch: only those without a class of the target [code], any [paper], or none (a control)."""
    companions_exhausted: Literal["reshuffle", "stop"] = "reshuffle"
    """When they run out: begin a new pass over them, or end the loop [code]. The same wherever K * B of them exist."""
    gndrp_divisor: Literal["all", "kept"] = "all"
    """GNDRP divides the sum over the kept positions by the number of all [code] or of the kept ones [paper]."""
    gndrp_comparison: Literal["below", "at-most"] = "below"
    """Kept is a position strictly below tau [code], or at most tau [paper]."""
    gndrp_map: Literal["signed", "rectified"] = "signed"
    """The map that is compared: signed, over its maximum [code], or the class activation map, never negative [paper]."""
    gndrp_classes: Literal["all", "first20"] = "all"
    """first20: only class indices 0 to 19 are masked, the others get the plain mean (all / all / first20)."""
    schedule: Literal["poly", "constant"] = "poly"
    """Learning rate over the steps: (1 - k / K)^0.9 [code] or constant [paper]."""
    lr_classifier_factor: float = bounded(10.0, 0, 1e4)
    """Learning rate of the classifier, as a multiple of lr (1 / 10 / 10)."""
    weight_decay: float = bounded(1e-4, 0, 1)
    """Weight decay (0 / 1e-4 / 1e-4)."""
    momentum: float | None = bounded(None, 0, 1, open_high=True)
    """Momentum (0 / the weight decay, which the official code hands over in its place). None: as the official code."""
    trained: Literal["stage3", "all"] = "stage3"
    """What moves: layer3, layer4 and the classifier [code] or all weights [paper]; batch-norm statistics never do."""
    aggregate: Literal["sum", "normalised"] = "sum"
    """sum: rectified maps of theta_0 to theta_(K-1), normalised once [code]; normalised: each over its maximum, theta_K too [paper]."""
    area_guard: bool = setting(True)
    """End when a map covers too much of the picture, from the second step on [code; not in the paper]."""
    area_level: float = bounded(0.3, 0, 1)
    """Area guard: a position counts as covered above this share of its class maximum (0.3)."""
    area_share: float = bounded(0.7, 0, 1)
    """Area guard: ends above this share of covered positions at scale 1 (- / 0.7 / 0.8)."""
    wrong_label: bool = setting(False)
    """Control: fine-tune for classes that the picture does not have. Maps stay those of its own classes."""
    snapshots: bool = setting(False)
    """Keep the map of every step, from which the result of every smaller k follows."""
    last_step: Literal["skip", "full"] = "skip"
    """full: companions and update of the last step too, though nobody looks at its weights (the official order; only the log grows)."""
    precision: Precision = "fp32"
    """mixed: bfloat16 wherever a number does not enter a map itself, if the hardware multiplies it; bf16: everywhere."""
    channels_last: bool = setting(True)
    """Memory format of the features."""
    winograd: bool = setting(True)
    """3x3 convolutions with a quarter of the products, on a CPU; maps differ by some 1e-6."""
    companions_per_pass: int = bounded(0, 0)
    """Companions a forward and backward pass (their gradients add up); 0: about a million pixels on a CPU, all on a GPU."""

    @property
    def companion_rows(self) -> int:
        """Other pictures a step."""
        return 0 if self.companions == "none" else self.batch - (self.target_rows == "single")

    def check_together(self, prefix: str) -> None:
        if self.target_rows == "scales" and not self.loss_scales:
            flag = f"--{prefix}loss-scales".replace("_", "-")
            raise UserError(f"{flag} is empty", field=flag, remedy="name at least one of the scales that the maps are made from")


def rib_loss(logits_nc: Tensor, labels_nc: Tensor, margin: float | None = None) -> Tensor:
    """Eq. (L_RIB, section 3.2), Lee et al. 2021. Sum over rows and classes of -t min(m, y); margin None: no min, as in the code."""
    return -(labels_nc * (logits_nc if margin is None else logits_nc.clamp(max=margin))).sum()


def bce_loss(logits_nc: Tensor, labels_nc: Tensor, activation: str = "sigmoid") -> Tensor:
    """Eq. (L_BCE, section 3.2), Lee et al. 2021. Sum over rows and classes; for Table 5(a) also with tanh or softsign, moved to (0, 1)."""
    if activation == "softsign":  # (1 + y / (1 + |y|)) / 2, and one minus it, without cancellation
        log_floor = -torch.log1p(logits_nc.abs()) - math.log(2)
        yes = log_floor + torch.log1p(2 * logits_nc.relu())
        no = log_floor + torch.log1p(2 * (-logits_nc).relu())
    else:  # (1 + tanh y) / 2 = sigmoid(2 y)
        y = logits_nc * (2 if activation == "tanh" else 1)
        yes, no = F.logsigmoid(y), F.logsigmoid(-y)
    return -(labels_nc * yes + (1 - labels_nc) * no).sum()


def gndrp(
    maps_nchw: Tensor,
    labels_nc: Tensor,
    tau: float,
    *,
    divisor: Literal["all", "kept"] = "all",
    comparison: Literal["below", "at-most"] = "below",
    map_: Literal["signed", "rectified"] = "signed",
    first: int | None = None,
) -> Tensor:
    """Eq. (3), Lee et al. 2021. Global non-discriminative region pooling, (n, c, h, w) -> (n, c); plain mean where a class has no label.

    The mask is a constant for the gradient. `first`: only that many leading classes are masked. A map whose maximum is negative keeps
    nothing with `signed` (logit 0, no gradient) and everything with `rectified`.
    """
    with torch.no_grad():
        if map_ == "signed":
            level = maps_nchw / maps_nchw.amax((2, 3), keepdim=True)
        else:
            level = maps_nchw.relu() / (maps_nchw.relu().amax((2, 3), keepdim=True) + TINY)
        keep = level < tau if comparison == "below" else level <= tau
        masked = labels_nc > 0
        if first is not None:
            masked[:, first:] = False
        keep |= ~masked[:, :, None, None]
        count = keep.sum((2, 3)).clamp(min=1) if divisor == "kept" else keep[0, 0].numel()
    return (maps_nchw * keep).sum((2, 3)) / count


def covered_share(map_nhw: Tensor, level: float) -> float:
    """Share of the positions where any of the (n, h, w) maps, over its maximum, exceeds `level`: what the area guard looks at."""
    return float((normalised(map_nhw) > level).any(0).float().mean())


class Rib:
    name: ClassVar[str] = "rib"
    version: ClassVar[int] = 2

    def __init__(self, settings: RibConfig | None = None, cam: CamConfig | None = None) -> None:
        self.settings = settings or RibConfig()
        self.cam = cam or CamConfig()
        strange = set(self.settings.loss_scales) - set(self.cam.scales)
        if self.settings.target_rows == "scales" and strange:
            raise UserError(
                f"--rib.loss-scales names {sorted(strange)}, of which no map is made",
                field="--rib.loss-scales",
                remedy=f"choose among --cam.scales: {' '.join(map(str, self.cam.scales))}",
            )

    def loss(self, model: nn.Module, batch: Batch, step: int) -> StepOutput:
        """The fine-tuning loss on a training batch, averaged over its rows: the appendix's training from scratch, which diverges."""
        scores = model(batch.images_nchw)
        pooled = scores.float().mean((2, 3))
        return StepOutput({self.settings.loss: self.row_loss(pooled, batch.labels_nc) / len(pooled)}, scores)

    def localise(self, model: nn.Module, views: Views, labels: np.ndarray, companions: Companions | None) -> Maps:
        """The model's weights are borrowed: whatever happens, they, their gradients and modes are afterwards what they were."""
        with fixed_statistics(model), borrowed_weights(model, self.settings.trained) as parameters:
            adaptation = Adaptation(self, model, parameters, views, labels)
            adaptation.run(companions)
        return adaptation.maps()

    def pool(self, scores_nchw: Tensor, labels_nc: Tensor) -> Tensor:
        s = self.settings
        if s.pooling == "gap":
            return scores_nchw.mean((2, 3))
        first = 20 if s.gndrp_classes == "first20" else None
        return gndrp(scores_nchw, labels_nc, s.tau, divisor=s.gndrp_divisor, comparison=s.gndrp_comparison, map_=s.gndrp_map, first=first)

    def row_loss(self, logits_nc: Tensor, labels_nc: Tensor) -> Tensor:
        if self.settings.loss == "rib":
            return rib_loss(logits_nc, labels_nc, self.settings.margin if self.settings.margin_use == "clamp" else None)
        return bce_loss(logits_nc, labels_nc, self.settings.loss.removeprefix("bce_"))


class Adaptation:
    """The fine-tuning on one picture: the state of the loop, and a function for each part of a step."""

    def __init__(self, rib: Rib, model: Any, parameters: Parameters, views: Views, labels: np.ndarray) -> None:
        s = rib.settings
        self.rib, self.settings, self.views = rib, s, views
        self.place = next(model.parameters()).device
        self.classes = np.flatnonzero(labels)
        self.labels = torch.tensor(absent_labels(labels) if s.wrong_label else labels).to(self.place, torch.float32)
        groups = [
            {"params": p, "lr": s.lr * f, "weight_decay": s.weight_decay}
            for p, f in zip(parameters, (1.0, s.lr_classifier_factor), strict=True)
        ]
        schedule = Constant() if s.schedule == "constant" else None
        self.optimizer = PolySGD(groups, s.lr, s.weight_decay, s.steps, momentum=s.momentum, schedule=schedule)
        self.passes = many_passes(model, channels_last=s.channels_last, fast=s.winograd)
        self.map_dtype = torch.bfloat16 if s.precision == "bf16" else torch.float32
        low = s.precision == "bf16" or (s.precision == "mixed" and multiplies_bfloat16(self.place))
        self.gradient_dtype = torch.bfloat16 if low else torch.float32
        # Nothing below stage 3 moves: its features are computed once for all steps.
        tensors = [view.to(self.place) for view in views.tensors]
        with torch.no_grad():
            self.inputs = tensors if s.trained == "all" else [self.passes.prefix(t, self.map_dtype) for t in tensors]
        self.first = views.scales.index(1.0)
        if s.target_rows == "single":
            self.loss_rows = {self.first: 1}
        else:
            self.loss_rows = {i: len(t) for i, t in enumerate(tensors) if views.scales[i] in s.loss_scales}
        together = view_groups(views.scales, tensors)
        self.groups = together if s.target_rows == "scales" else [[i] for group in together for i in group]  # one row asks for a graph
        self.sums: list[Tensor] = []
        self.snapshots: list[list[Tensor]] = []
        self.log: dict[str, list[float]] = {"loss": [], "target_loss": [], "area_ratio": []}
        self.steps, self.ended = 0, "steps"

    def run(self, companions: Companions | None) -> None:
        s = self.settings
        looked_at = s.last_step == "full" or s.aggregate == "normalised"  # the weights after the last step
        for k in range(s.steps if len(self.classes) else 0):
            needed = looked_at or k + 1 < s.steps
            batch = self.next_companions(companions, needed)
            if self.ended == "companions":
                break
            self.steps += 1
            scores = self.look(graph=needed)
            if scores is None:
                self.ended = "area"
                return
            total, gradients = self.target_loss(scores)
            passed = s.margin_use == "stop" and abs(total) > s.margin
            if looked_at or (needed and not passed):
                self.update(scores, gradients, batch)
            if passed:
                self.ended = "margin"
                break
        if s.aggregate == "normalised" or self.steps == 0:  # theta_K; or the plain map, where there was no step
            self.look(graph=False, guard=False)

    def look(self, graph: bool, guard: bool = True) -> list[Tensor] | None:
        """Adds the maps of the present weights to the sums. Class scores per scale, where asked with a graph; None: the guard fired."""
        s = self.settings
        scores, maps = [torch.empty(0)] * len(self.inputs), [torch.empty(0)] * len(self.inputs)
        for group in self.groups:
            with torch.set_grad_enabled(graph and not self.loss_rows.keys().isdisjoint(group) and self.map_dtype == self.gradient_dtype):
                found = self.scores([self.inputs[i] for i in group], self.map_dtype)
            for i, each in zip(group, found, strict=True):
                scores[i], maps[i] = each, merge_mirror(each.detach()[:, self.classes])
            i = self.first
            if i not in group:
                continue
            self.log["area_ratio"].append(covered_share(maps[i], s.area_level))
            if guard and s.area_guard and self.steps > 1 and self.log["area_ratio"][-1] > s.area_share:
                # Here the official code has added the map of this scale and not those of the others.
                alone = [maps[i] if j == i and s.aggregate == "sum" else torch.zeros_like(total) for j, total in enumerate(self.sums)]
                self.add(alone)
                return None
        if s.aggregate == "normalised":
            merged = strided_sum(maps, (self.views.height, self.views.width))
            maps = [m / (merged.amax((1, 2), keepdim=True) + TINY) for m in maps]
        self.add(maps)
        return scores

    def add(self, maps: list[Tensor]) -> None:
        self.sums = [total + m for total, m in zip(self.sums, maps, strict=True)] if self.sums else maps
        if self.settings.snapshots:
            self.snapshots.append(maps)

    def target_loss(self, scores: list[Tensor]) -> tuple[float, dict[int, Tensor]]:
        """Sum of the target's labelled logits, and per scale the gradient of its part of the loss with respect to the class scores."""
        leaves = {i: scores[i][:rows].detach().requires_grad_() for i, rows in self.loss_rows.items()}
        logits = torch.cat([self.rib.pool(leaf, self.labels.expand(len(leaf), -1)) for leaf in leaves.values()])
        labels = self.labels.expand_as(logits)
        loss = self.rib.row_loss(logits, labels)
        self.target_part = float(loss.detach())
        self.log["target_loss"].append(float((logits.detach() * labels).sum()))
        return self.log["target_loss"][-1], dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    def update(self, scores: list[Tensor], gradients: dict[int, Tensor], batch: tuple[Tensor, Tensor] | None) -> None:
        """One step on the loss of all rows, a sum: backward scale by scale and a few companions at a time, since gradients add up."""
        self.optimizer.zero_grad()
        total = self.target_part
        for group in self.groups:
            asked = [i for i in group if i in gradients]
            if not asked:
                continue
            held = [scores[i] for i in asked]
            if not held[0].requires_grad:
                held = self.scores([self.inputs[i][: self.loss_rows[i]] for i in asked], self.gradient_dtype)
            torch.autograd.backward([each[: self.loss_rows[i]] for i, each in zip(asked, held, strict=True)], [gradients[i] for i in asked])
            held = []  # the graph goes before the next one comes
            for i in group:
                scores[i] = torch.empty(0)
        if batch is not None:
            size = self.settings.companions_per_pass or fitting(batch[0].shape, self.place, PASS_PIXELS)
            for images, labels in zip(batch[0].split(size), batch[1].split(size), strict=True):
                images, labels = images.to(self.place), labels.to(self.place, torch.float32)
                if self.settings.trained != "all":
                    with torch.no_grad():
                        images = self.passes.prefix(images, self.gradient_dtype)
                loss = self.rib.row_loss(self.rib.pool(self.scores([images], self.gradient_dtype)[0], labels), labels)
                loss.backward()
                total += float(loss.detach())
        self.log["loss"].append(total)
        if not math.isfinite(total):
            raise UserError(
                f"the loss of {self.views.id} is {total} at step {self.steps}", field="--rib.lr", remedy="give a smaller --rib.lr"
            )
        self.passes.pull_back()
        self.optimizer.step()
        self.passes.refold()

    def next_companions(self, companions: Companions | None, needed: bool) -> tuple[Tensor, Tensor] | None:
        """A step's other pictures; notes that they ran out, which with `stop` matters for a step that does not need them too."""
        s = self.settings
        if companions is None or s.companion_rows == 0 or not (needed or s.companions_exhausted == "stop"):
            return None
        batch = next(companions, None)
        if batch is None:
            self.ended = "companions"
        return batch

    def scores(self, inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
        if self.settings.trained == "all":
            inputs = [self.passes.prefix(each, dtype) for each in inputs]
        return self.passes.suffixes(inputs, dtype)

    def maps(self) -> Maps:
        snapshots = [make_maps(self.views, self.classes, step).sums for step in self.snapshots] if self.settings.snapshots else None
        return make_maps(self.views, self.classes, self.sums, steps=self.steps, ended=self.ended, log=self.log, snapshots=snapshots)


def absent_labels(labels: np.ndarray) -> np.ndarray:
    """For the control with wrong labels: as many classes as the picture has, none of them its own, the next ones in cyclic order."""
    own, absent = np.flatnonzero(labels), np.flatnonzero(np.asarray(labels) == 0)
    if not len(absent):
        raise UserError(
            "a picture has every class, so there is no wrong label for it", field="--rib.wrong-label", remedy="leave the control out"
        )
    wrong = np.zeros_like(labels)
    if len(own):
        wrong[np.roll(absent, -np.searchsorted(absent, own[0]))[: len(own)]] = 1
    return wrong


def margin_step(maps: Maps, margin: float) -> int | None:
    """The step at which a run with this m would have ended, from the log of a run with a larger one (margin-use `stop`); None: later."""
    return next((k + 1 for k, total in enumerate(maps.log["target_loss"][: maps.steps]) if abs(total) > margin), None)
