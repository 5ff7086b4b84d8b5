"""Cross-entropy over labelled pixels in three forms. Ignored pixels (255) count in none; where no pixel counts the loss is 0, not NaN.

`whole`, where it is given, is what `pixel_counts` finds in the whole batch, (3,) int64: the loss of some of its pictures is then their part
of the batch's, and the parts add up to it. Without it the pictures that are given are the batch.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from seedbed.types import IGNORE

Form = Literal["plain", "balanced_half", "balanced_dsrg"]
FLOOR = 1e-4
"""DSRG's smallest probability, added before renormalising, and the smallest count it divides by."""


def pixel_counts(labels_nhw: Tensor) -> Tensor:
    """(n, 3) int64, of every picture: 1, its background pixels, its foreground pixels. What a batch's loss divides by is their sum."""
    background, foreground = (group.flatten(1).sum(1) for group in _groups(labels_nhw))
    return torch.stack([torch.ones_like(background), background, foreground], 1)


def segmentation_loss(logits_nchw: Tensor, labels_nhw: Tensor, form: Form, whole: Tensor | None = None) -> Tensor:
    """Scalar float32. logits (n, c, h, w), c with background; labels (n, h, w), integers in 0..c-1 or 255, at the size of the logits."""
    losses = {"plain": plain_cross_entropy, "balanced_half": balanced_half, "balanced_dsrg": balanced_dsrg}
    return losses[form](logits_nchw.float(), labels_nhw.long(), whole)


def plain_cross_entropy(logits_nchw: Tensor, labels_nhw: Tensor, whole: Tensor | None = None) -> Tensor:
    """Golden deeplab_v2, bal_plain: mean over the pixels of the batch that are not ignored."""
    return _mean(_pixel_losses(logits_nchw, labels_nhw), labels_nhw != IGNORE, None if whole is None else whole[1] + whole[2])


def balanced_half(logits_nchw: Tensor, labels_nhw: Tensor, whole: Tensor | None = None) -> Tensor:
    """Golden deeplab_v2, bal_half: (mean over background pixels + mean over foreground pixels) / 2, both over the whole batch.

    A group without a pixel adds 0 (the public code divides by its count and gives NaN).
    """
    losses = _pixel_losses(logits_nchw, labels_nhw)
    background, foreground = _groups(labels_nhw)
    _, of_background, of_foreground = (None, None, None) if whole is None else whole
    return (_mean(losses, background, of_background) + _mean(losses, foreground, of_foreground)) / 2


def balanced_dsrg(logits_nchw: Tensor, labels_nhw: Tensor, whole: Tensor | None = None) -> Tensor:
    """Golden deeplab_v2, bal_dsrg (DSRG's layer): per picture a mean over background and one over foreground pixels of -log q, each
    averaged over the pictures, added. q = (softmax + 1e-4), renormalised.
    """
    floored = logits_nchw.softmax(1) + FLOOR
    log_q = (floored / floored.sum(1, keepdim=True)).log()
    losses = F.nll_loss(log_q, labels_nhw, ignore_index=IGNORE, reduction="none")
    total = logits_nchw.new_zeros(())
    for group in _groups(labels_nhw):
        counts = group.sum((1, 2)).to(losses.dtype).clamp(min=FLOOR)
        means = _only(losses, group).sum((1, 2)) / counts
        total = total + (means.mean() if whole is None else means.sum() / whole[0])
    return total


def _groups(labels_nhw: Tensor) -> tuple[Tensor, Tensor]:
    """Background and foreground, (n, h, w) bool."""
    return labels_nhw == 0, (labels_nhw != 0) & (labels_nhw != IGNORE)


def _pixel_losses(logits_nchw: Tensor, labels_nhw: Tensor) -> Tensor:
    """(n, h, w), 0 where ignored. Without a reduction, whose order on a GPU is left to chance."""
    return F.cross_entropy(logits_nchw, labels_nhw, ignore_index=IGNORE, reduction="none")


def _mean(losses_nhw: Tensor, group_nhw: Tensor, count: Tensor | None) -> Tensor:
    return _only(losses_nhw, group_nhw).sum() / (group_nhw.sum() if count is None else count).clamp(min=1)


def _only(losses_nhw: Tensor, group_nhw: Tensor) -> Tensor:
    return torch.where(group_nhw, losses_nhw, losses_nhw.new_zeros(()))
