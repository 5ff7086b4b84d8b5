"""Cross-entropy over labelled pixels in three forms. Ignored pixels (255) count in none; where no pixel counts the loss is 0, not NaN."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from seedbed.types import IGNORE

Form = Literal["plain", "balanced_half", "balanced_dsrg"]
FLOOR = 1e-4
"""DSRG's smallest probability, added before renormalising, and the smallest count it divides by."""


def segmentation_loss(logits_nchw: Tensor, labels_nhw: Tensor, form: Form) -> Tensor:
    """Scalar float32. logits (n, c, h, w), c with background; labels (n, h, w), integers in 0..c-1 or 255, at the size of the logits."""
    losses = {"plain": plain_cross_entropy, "balanced_half": balanced_half, "balanced_dsrg": balanced_dsrg}
    return losses[form](logits_nchw.float(), labels_nhw.long())


def plain_cross_entropy(logits_nchw: Tensor, labels_nhw: Tensor) -> Tensor:
    """Golden deeplab_v2, bal_plain: mean over the pixels of the batch that are not ignored."""
    return _mean(_pixel_losses(logits_nchw, labels_nhw), labels_nhw != IGNORE)


def balanced_half(logits_nchw: Tensor, labels_nhw: Tensor) -> Tensor:
    """Golden deeplab_v2, bal_half: (mean over background pixels + mean over foreground pixels) / 2, both over the whole batch.

    A group without a pixel adds 0 (the public code divides by its count and gives NaN).
    """
    losses = _pixel_losses(logits_nchw, labels_nhw)
    foreground = (labels_nhw != 0) & (labels_nhw != IGNORE)
    return (_mean(losses, labels_nhw == 0) + _mean(losses, foreground)) / 2


def balanced_dsrg(logits_nchw: Tensor, labels_nhw: Tensor) -> Tensor:
    """Golden deeplab_v2, bal_dsrg (DSRG's layer): per picture a mean over background and one over foreground pixels of -log q, each
    averaged over the pictures, added. q = (softmax + 1e-4), renormalised.
    """
    floored = logits_nchw.softmax(1) + FLOOR
    log_q = (floored / floored.sum(1, keepdim=True)).log()
    losses = F.nll_loss(log_q, labels_nhw, ignore_index=IGNORE, reduction="none")
    foreground = (labels_nhw != 0) & (labels_nhw != IGNORE)
    total = logits_nchw.new_zeros(())
    for group in (labels_nhw == 0, foreground):
        counts = group.sum((1, 2)).to(losses.dtype).clamp(min=FLOOR)
        total = total + (_only(losses, group).sum((1, 2)) / counts).mean()
    return total


def _pixel_losses(logits_nchw: Tensor, labels_nhw: Tensor) -> Tensor:
    """(n, h, w), 0 where ignored. Without a reduction, whose order on a GPU is left to chance."""
    return F.cross_entropy(logits_nchw, labels_nhw, ignore_index=IGNORE, reduction="none")


def _mean(losses_nhw: Tensor, group_nhw: Tensor) -> Tensor:
    return _only(losses_nhw, group_nhw).sum() / group_nhw.sum().clamp(min=1)


def _only(losses_nhw: Tensor, group_nhw: Tensor) -> Tensor:
    return torch.where(group_nhw, losses_nhw, losses_nhw.new_zeros(()))
