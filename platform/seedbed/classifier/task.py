"""The classifier's training as a task of the loop. Sees pictures and class labels, never a mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.addons import addon_class
from seedbed.classifier.settings import ClassifierConfig
from seedbed.config import digest
from seedbed.data.settings import evenly
from seedbed.data.store import Store, open_store
from seedbed.data.transforms import generator, normalise
from seedbed.loop import share
from seedbed.loop.ahead import ahead
from seedbed.methods import build_for, method_class
from seedbed.metrics.classification import average_precision
from seedbed.models.weights import load_weights
from seedbed.optim import Adam, Optimizer, PolySGD
from seedbed.types import Batch, StepOutput, UserError

ADDED = "added"
"""Where an add-on's own parameters are kept among the network's weights."""


@dataclass
class ClassifierTask:
    """A classifier's training: what a worker is sent. It opens the store itself; `loop.train` does the rest.

    Pictures of the training split without a class label are set aside (an error where none has one). A picture that can't be decoded is
    set aside too, and the next one that can takes its place, so that a step depends on nothing but its number.
    """

    store: str
    cache: str | None
    train_split: str
    validation_split: str
    config: ClassifierConfig
    seed: int
    method: str = "cam"
    """Whose loss is minimized, and whose network is built (`methods.build_for`)."""
    method_settings: tuple[Any, ...] = ()
    """What the method's class is constructed with."""
    addons: tuple[tuple[str, Any], ...] = ()
    """Names and settings of the add-ons that change the loss, in their order."""
    limit: int = 0
    """At most so many pictures of each split, evenly over its list; 0: all."""
    left_out: tuple[str, ...] = ()
    """Pictures of the training split that were found damaged and are not looked at."""
    set_aside: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config = self.config.resolved()
        self.batch_size, self.pace = self.config.batch, self.config.pace()
        self._store: Store | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")} | {"_store": None}

    # --- data ---------------------------------------------------------------------------------------

    def open(self) -> None:
        if self._store is not None:
            return
        store = open_store(self.store, cache=self.cache)
        self._method = method_class(self.method)(*self.method_settings)
        self._addons = {name: addon_class(name)(settings) for name, settings in self.addons}
        self._ids = self._labelled(store)
        self._epoch_steps = len(self._ids) // self.batch_size
        if self._epoch_steps == 0:
            message = f"split {self.train_split!r} has {len(self._ids)} labelled pictures, fewer than a batch of {self.batch_size}"
            remedy = f"say --classifier.batch {len(self._ids)} or less, or name a larger split with --data.train-split"
            raise UserError(message, file=self.store, field="--classifier.batch", remedy=remedy)
        self._validation = [] if self.config.validate == "never" else self._validated(store)
        self._decoded: dict[str, np.ndarray] = {}
        self._room = self.config.decoded_mb << 20
        self._store = store

    def _labelled(self, store: Store) -> list[str]:
        ids = [ident for ident in evenly(store.ids(self.train_split), self.limit) if ident not in self.left_out]
        has = store.has_label(ids)
        if not has.any():
            message = f"no picture of split {self.train_split!r} has a class label"
            remedy = "name a split with labels with --data.train-split"
            raise UserError(message, file=self.store, field="--data.train-split", remedy=remedy)
        self.set_aside.update({ident: "no class label" for ident, known in zip(ids, has, strict=True) if not known})
        return [ident for ident, known in zip(ids, has, strict=True) if known]

    def _validated(self, store: Store) -> list[str]:
        flag, remedy = "--classifier.validation-split", "name another split, or say --classifier.validate never"
        if self.validation_split not in store.info.splits:
            known = ", ".join(store.info.splits)
            message = f"there is no split {self.validation_split!r} to validate on; the store has {known}"
            raise UserError(message, file=self.store, field=flag, remedy=remedy)
        ids = evenly(store.ids(self.validation_split), self.limit)
        found = [ident for ident, known in zip(ids, store.has_label(ids), strict=True) if known]
        if not found:
            message = f"no picture of split {self.validation_split!r} has a class label"
            raise UserError(message, file=self.store, field=flag, remedy=remedy)
        return found

    @property
    def data(self) -> Store:
        assert self._store is not None, "open() comes first"
        return self._store

    @property
    def steps(self) -> int:
        return self._epoch_steps * self.config.epochs

    def identity(self) -> str:
        parts = (self.config.to_dict(only_key=True), self.seed, self.method, self.limit, self.train_split)
        return digest([*parts, repr(self.method_settings), repr(self.addons), self.data.inputs_checksum(self._ids)])

    def order(self, epoch: int) -> list[str]:
        """The training pictures as an epoch takes them."""
        shuffled = generator(self.seed, "classifier", "", epoch).permutation(len(self._ids))
        return [self._ids[i] for i in shuffled]

    def batch(self, step: int, rank: int, world: int) -> Batch:
        epoch, at = divmod(step, self._epoch_steps)
        order = self.order(epoch)
        rows = range(at * self.batch_size, (at + 1) * self.batch_size)[share(self.batch_size, rank, world)]
        found = [self._readable(order, row) for row in rows]
        images = torch.stack([self.config.transform(pixels, generator(self.seed, "classifier", i, epoch)) for i, pixels in found])
        ids = tuple(ident for ident, _ in found)
        scales = self.config.batch_scales
        if scales:
            scale = scales[int(generator(self.seed, "classifier", "scale", step).integers(len(scales)))]
            side = round(images.shape[-1] * scale)
            if side != images.shape[-1]:
                images = F.interpolate(images, (side, side), mode="bilinear", align_corners=False)
        return Batch(images, torch.from_numpy(self.data.labels(ids)).float(), ids)

    def _readable(self, order: Sequence[str], row: int) -> tuple[str, np.ndarray]:
        """The picture of a row, or the next one that can be decoded."""
        for ident in (*order[row:], *order[:row]):
            pixels = self._pixels(ident)
            if pixels is not None:
                return ident, pixels
        message = f"no picture of split {self.train_split!r} can be decoded"
        raise UserError(message, file=self.store, field="picture", remedy="make the store again from a whole devkit")

    def _pixels(self, ident: str, keep: bool = True) -> np.ndarray | None:
        pixels = self._decoded.get(ident)
        if pixels is None and ident not in self.set_aside:
            try:
                pixels = self.data[ident].pixels()
            except Exception as error:  # one bad picture never ends a run
                reason = error.message if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                self.set_aside[ident] = reason.splitlines()[0][:300]
                return None
            if keep and pixels.nbytes <= self._room:
                self._room -= pixels.nbytes
                self._decoded[ident] = pixels
        return pixels

    # --- model --------------------------------------------------------------------------------------

    def build(self) -> nn.Module:
        model: Any = build_for(self.method, self.config.backbone, len(self.data.info.classes))
        self._loaded = load_weights(model, self.config.weights)
        model.freeze_statistics(self.config.batch_norm == "fixed")
        if self.config.trained == "stage3":
            model.train_from("stage3")
        self._parameters = sum(p.numel() for p in model.parameters())
        learned = {name: addon for name, addon in self._addons.items() if isinstance(addon, nn.Module) and list(addon.parameters())}
        if learned:
            model.add_module(ADDED, nn.ModuleDict(learned))
        return model

    def optimizer(self, model: nn.Module, steps: int) -> Optimizer:
        """Two groups: the backbone, and the new layers with their own rate. The other two of PSA and SEAM are of biases: there are none."""
        config = self.config
        head = list(model.classifier_parameters())  # type: ignore[operator]
        known = {id(p) for p in head}
        added = [p for name, p in model.named_parameters() if name.startswith(f"{ADDED}.")]
        known |= {id(p) for p in added}
        backbone = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
        groups = [
            {"params": backbone, "lr": config.lr, "weight_decay": config.weight_decay},
            {"params": head, "lr": config.lr * config.lr_classifier_factor, "weight_decay": config.weight_decay},
        ]
        rates = config.rates(steps)
        if added:
            groups.append({"params": added, "lr": config.lr, "weight_decay": 0.0})
        if config.optimizer == "adam":
            return Adam(groups, config.lr, config.weight_decay, rates)
        return PolySGD(groups, config.lr, config.weight_decay, steps, momentum=config.momentum, schedule=rates)

    def loss(self, model: nn.Module, batch: Batch, step: int) -> StepOutput:
        """The method's terms with what the add-ons make of them."""
        out: StepOutput = self._method.loss(model, batch, step)
        for addon in self._addons.values():
            out = addon(out, batch, self.seed, step)
        return out

    def facts(self) -> Mapping[str, Any]:
        return {
            "initial_weights": self._loaded.source,
            "initial_weights_trained_on": self._loaded.trained_on,
            "loaded": self._loaded.text(),
            "parameters": self._parameters,
            "pictures": len(self._ids),
            "validation_pictures": len(self._validation),
            "settings": self.config.to_dict(),
        }

    # --- validation ---------------------------------------------------------------------------------

    def validates(self, done: int) -> bool:
        every = {"epoch": self._epoch_steps, "end": self.steps}.get(self.config.validate)
        return every is not None and done % every == 0

    def validate(self, model: nn.Module, device: str, rank: int, world: int) -> list[Judged]:
        """What became of every batch that is this worker's."""
        size = self.batch_size
        mine = range(rank, -(-len(self._validation) // size), world)
        parts = []
        with closing(ahead(self._validation_batch, mine, 1)) as batches:
            for number, batch in batches:
                if batch is None:
                    continue
                # without add-ons: validation compares trainings with and without them
                out = self._method.loss(model, Batch(batch.images_nchw.to(device), batch.labels_nc.to(device), batch.ids), 0)
                loss = float(torch.stack(list(out.losses.values())).sum())
                assert out.logits_nchw is not None
                scores = out.logits_nchw.float().mean((2, 3)).cpu().numpy()
                parts.append(Judged(number, loss, scores, batch.labels_nc.numpy()))
        return parts

    def _validation_batch(self, number: int) -> Batch | None:
        """Its pictures that can be decoded; None where there are none."""
        rows = self._validation[number * self.batch_size : (number + 1) * self.batch_size]
        found = [(ident, pixels) for ident in rows if (pixels := self._pixels(ident, keep=False)) is not None]
        if not found:
            return None
        ids = tuple(ident for ident, _ in found)
        images = torch.stack([top_left(pixels, self.config.transform.crop) for _, pixels in found])
        return Batch(images, torch.from_numpy(self.data.labels(ids)).float(), ids)

    def judge(self, parts: Sequence[list[Judged]]) -> Mapping[str, float]:
        """Mean loss, and mean average precision in percent."""
        batches = sorted((b for part in parts for b in part), key=lambda b: b.number)
        if not batches:
            return {}
        whole = [b for b in batches if len(b.scores_nc) == self.batch_size]
        counted = whole if self.config.validation_drop_last and whole else batches
        out = {"val/loss": sum(len(b.scores_nc) * b.loss for b in counted) / sum(len(b.scores_nc) for b in counted)}
        labels = np.concatenate([b.labels_nc for b in batches])
        if labels.any():
            out["val/mAP"] = 100 * average_precision(np.concatenate([b.scores_nc for b in batches]), labels)[1]
        return out


@dataclass(frozen=True)
class Judged:
    """A batch of the validation: its number, its loss, and the scores and labels (n, c) of its pictures."""

    number: int
    loss: float
    scores_nc: np.ndarray
    labels_nc: np.ndarray


def top_left(pixels: np.ndarray, crop: int) -> Tensor:
    """(h, w, 3) uint8 to (3, crop, crop) as the official validation sees it: the top left corner, not resized, zeros right and below."""
    out = torch.zeros(3, crop, crop)
    part = pixels[:crop, :crop]
    out[:, : part.shape[0], : part.shape[1]] = normalise(part)
    return out
