"""RIB's loop as the official code orders its work, written down plainly: what the fast one is tested and measured against.

Every step passes all scales and all companions through the whole network, cuts the features after stage 2, pools class by class, makes
one backward pass over everything and one update, K times. It shares no code with `seedbed.methods.rib`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class PlainResult:
    sums: list[Tensor]
    """Per scale (c, h, w), all classes."""
    first: list[Tensor] = field(default_factory=list)
    """The same after the first step: the plain map."""
    losses: list[float] = field(default_factory=list)
    target_losses: list[float] = field(default_factory=list)
    area_ratios: list[float] = field(default_factory=list)
    steps: int = 0
    ended: str = "steps"


def pool_row(maps_chw: Tensor, labels_c: Tensor, tau: float | None) -> Tensor:
    logits = []
    for one, label in zip(maps_chw, labels_c, strict=True):
        if tau is not None and label > 0:
            kept = (one / one.max() < tau).detach()
            logits.append((one * kept).sum() / one.numel())
        else:
            logits.append(one.mean())
    return torch.stack(logits)


def plain_rib(
    model: torch.nn.Module,
    views: list[Tensor],
    scales: tuple[float, ...],
    labels_c: Tensor,
    companions: Iterator[tuple[Tensor, Tensor]],
    *,
    steps: int = 10,
    lr: float = 8e-6,
    classifier_factor: float = 10.0,
    weight_decay: float = 1e-4,
    tau: float | None = 0.4,
    margin: float = 600.0,
    level: float = 0.3,
    share: float = 0.7,
) -> PlainResult:
    """`tau` None: average pooling. `views`: per scale (2, 3, h, w), picture and mirror; the model is in inference mode."""
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    head = [p for n, p in model.named_parameters() if n.startswith("classifier.")]
    body = [p for n, p in model.named_parameters() if not n.startswith("classifier.")]
    groups = [{"params": body, "lr": lr}, {"params": head, "lr": lr * classifier_factor}]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=weight_decay, weight_decay=weight_decay)
    first_rates = [group["lr"] for group in optimizer.param_groups]
    present = [int(c) for c in labels_c.nonzero()]
    result = PlainResult([])

    def forward(images: Tensor) -> Tensor:
        return model.suffix(model.prefix(images).detach())  # type: ignore[operator]

    for k in range(steps):
        companion_images, companion_labels = next(companions)
        result.steps = k + 1
        rows, labels = [], []
        for i, (scale, view) in enumerate(zip(scales, views, strict=True)):
            scores = forward(view)
            merged = (scores[0].relu() + scores[1].relu().flip(-1)).detach()
            if k == 0:
                result.sums.append(torch.zeros_like(merged))
            result.sums[i] = result.sums[i] + merged
            if i == 0:
                covered = torch.zeros(merged.shape[1:], dtype=torch.bool)
                for c in present:
                    covered |= merged[c] / (merged[c].max() + 1e-5) > level
                result.area_ratios.append(float(covered.float().mean()))
                if k > 0 and result.area_ratios[-1] > share:
                    result.ended = "area"
                    break
            if scale != 0.5:
                rows += [pool_row(row, labels_c, tau) for row in scores]
                labels += [labels_c, labels_c]
        if result.ended == "area":
            break
        if k == 0:
            result.first = list(result.sums)
        target = torch.stack(rows)
        rows += [pool_row(row, label, tau) for row, label in zip(forward(companion_images), companion_labels, strict=True)]
        loss = -(torch.stack(rows) * torch.stack([*labels, *companion_labels])).sum()
        optimizer.zero_grad()
        loss.backward()
        for group, rate in zip(optimizer.param_groups, first_rates, strict=True):
            group["lr"] = rate * (1 - k / steps) ** 0.9
        optimizer.step()
        result.losses.append(float(loss.detach()))
        result.target_losses.append(float(target.detach()[:, present].sum()))
        if abs(result.target_losses[-1]) > margin:
            result.ended = "margin"
            break
    optimizer.zero_grad()
    model.load_state_dict(saved)
    return result
