"""The importance sampling loss as a training step gets it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from seedbed.addons import addon_class, isl
from seedbed.addons.isl import Isl, IslConfig
from seedbed.types import Batch, StepOutput, UserError

IDS = ("2007_000032", "2007_000039", "2007_000063", "2007_000068", "2007_000121")


def made(seed: int = 0, *, background: bool = False, size: tuple[int, int] = (6, 7), classes: int = 4) -> tuple[StepOutput, Batch]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(len(IDS), classes, *size, generator=generator)
    labels = (torch.rand(len(IDS), classes, generator=generator) < 0.5).float()
    bce = F.multilabel_soft_margin_loss(logits.mean((2, 3)), labels)
    other = torch.randn(len(IDS), 1, *size, generator=generator) if background else None
    return StepOutput({"bce": bce, "other": bce * 0 + 3}, logits, other, "bce"), Batch(torch.zeros(len(IDS), 3, 8, 8), labels, IDS)


def rows(out: StepOutput, batch: Batch, chosen: list[int]) -> tuple[StepOutput, Batch]:
    assert out.logits_nchw is not None
    background = None if out.background_n1hw is None else out.background_n1hw[chosen]
    part = replace(out, logits_nchw=out.logits_nchw[chosen], background_n1hw=background)
    return part, Batch(batch.images_nchw[chosen], batch.labels_nc[chosen], tuple(batch.ids[i] for i in chosen))


@pytest.mark.parametrize("posterior", ["binomial", "multinomial"])
@given(order=st.permutations(range(len(IDS))), cut=st.integers(1, len(IDS) - 1), step=st.integers(0, 10**6))
@hypothesis_settings(max_examples=20)
def test_draws_belong_to_the_picture(posterior: Any, order: list[int], cut: int, step: int) -> None:
    """Whatever the order, and however the batch is split over workers: the same log-odds, bit for bit."""
    out, batch = made(background=True)
    addon = Isl(IslConfig(posterior=posterior, samples=3))
    whole = addon.log_odds(out, batch, 7, step)
    parts = [addon.log_odds(*rows(out, batch, chosen), 7, step) for chosen in (list(order[:cut]), list(order[cut:]))]
    assert torch.equal(torch.cat(parts), whole[list(order)])


def test_draws_change_with_seed_step_and_picture() -> None:
    first = isl.uniform_numbers(IDS, (4, 10), 0, 0)
    assert np.array_equal(first, isl.uniform_numbers(IDS, (4, 10), 0, 0))
    assert not np.isclose(first, isl.uniform_numbers(IDS, (4, 10), 0, 1)).any()
    assert not np.isclose(first, isl.uniform_numbers(IDS, (4, 10), 1, 0)).any()
    assert len({tuple(numbers.ravel()) for numbers in first}) == len(IDS)


def test_rows_stand_in_for_ids() -> None:
    out, batch = made()
    unnamed = replace(batch, ids=())
    assert torch.equal(Isl().log_odds(out, unnamed, 0, 0), Isl().log_odds(out, replace(batch, ids=("0", "1", "2", "3", "4")), 0, 0))


def test_positions_are_drawn_as_often_as_they_should_be() -> None:
    p = isl.sampling_distribution(torch.tensor([[[[1.0, 0.0, 5.0], [0.5, 2.0, 0.25]]]]))
    uniform = torch.from_numpy(isl.uniform_numbers(["x"], (1, 40_000), 0, 0))
    found = torch.bincount(isl.drawn_positions(p, uniform).flatten(), minlength=6) / 40_000
    assert (found - p.flatten()).abs().max() < 0.01
    assert found[1] == 0


@given(st.floats(0.01, 1), st.floats(0.05, 1), st.sampled_from([1.0, 0.5]))
@hypothesis_settings(max_examples=20)
def test_blend_within_its_share(weight: float, scale: float, share: float) -> None:
    out, batch = made()
    assert out.logits_nchw is not None
    out = replace(out, losses={**out.losses, "bce": share * out.losses["bce"] + 2}, share=share)
    addon = Isl(IslConfig(weight=weight, scale=scale))
    gap = F.multilabel_soft_margin_loss(out.logits_nchw.mean((2, 3)), batch.labels_nc)
    sampled = isl.multi_sample_loss(addon.log_odds(out, batch, 0, 0), batch.labels_nc).mean()
    changed = addon(out, batch, 0, 0)
    lam = weight * scale
    assert float(changed.losses["bce"]) == pytest.approx(2 + share * float((1 - lam) * gap + lam * sampled), rel=1e-5)
    assert changed.losses["other"] is out.losses["other"]
    assert changed.logits_nchw is out.logits_nchw


def test_scores_that_were_pooled_otherwise() -> None:
    """A method whose classification is not of the mean says of what it is: all of its loss gives way."""
    out, batch = made()
    assert out.logits_nchw is not None
    pooled = out.logits_nchw.amax((2, 3))
    out = replace(out, losses={"bce": F.multilabel_soft_margin_loss(pooled, batch.labels_nc)}, pooled_nc=pooled)
    addon = Isl(IslConfig(weight=1.0))
    sampled = isl.multi_sample_loss(addon.log_odds(out, batch, 0, 0), batch.labels_nc).mean()
    assert float(addon(out, batch, 0, 0).losses["bce"]) == pytest.approx(float(sampled), rel=1e-5)


def test_gradient_reaches_only_what_was_drawn() -> None:
    out, batch = made()
    assert out.logits_nchw is not None
    logits = out.logits_nchw.requires_grad_()
    addon = Isl()
    isl.multi_sample_loss(addon.log_odds(out, batch, 0, 5), batch.labels_nc).mean().backward()
    distribution = isl.sampling_distribution(logits.detach().sigmoid() + 1e-5)
    positions = isl.drawn_positions(distribution, torch.from_numpy(isl.uniform_numbers(IDS, (4, 10), 0, 5)))
    drawn = torch.zeros(logits.shape).flatten(2).scatter_(2, positions, 1).view(logits.shape)
    assert logits.grad is not None
    assert torch.equal(logits.grad != 0, drawn > 0)


def test_no_weight_changes_nothing() -> None:
    out, batch = made()
    for nothing in (IslConfig(weight=0), IslConfig(scale=0)):
        assert Isl(nothing)(out, batch, 0, 0) is out
    assert not torch.equal(Isl()(out, batch, 0, 0).losses["bce"], out.losses["bce"])


def test_what_does_not_fit_is_said() -> None:
    out, batch = made()
    with pytest.raises(UserError, match="background") as error:
        Isl(IslConfig(posterior="multinomial"))(out, batch, 0, 0)
    assert error.value.field == "--isl.posterior"
    with pytest.raises(UserError, match="classifies"):
        Isl()(replace(out, classification=""), batch, 0, 0)
    assert addon_class("isl") is Isl
    with pytest.raises(UserError, match="nonsense"):
        addon_class("nonsense")


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"weight": 1.5}, "--isl.weight"),
        ({"weight": -0.1}, "--isl.weight"),
        ({"samples": 0}, "--isl.samples"),
        ({"scale": 2.0}, "--isl.scale"),
        ({"posterior": "normal"}, "--isl.posterior"),
    ],
)
def test_bad_settings(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as error:
        IslConfig(**wrong).check("isl.")
    assert error.value.field == field
    IslConfig().check("isl.")
    assert IslConfig.named("paper").epsilon == 0


def test_low_precision_scores() -> None:
    """Half precision of a training on a GPU: drawn and summed in full."""
    out, batch = made()
    assert isinstance(out.logits_nchw, Tensor)
    found = Isl()(replace(out, logits_nchw=out.logits_nchw.bfloat16()), batch, 0, 0)
    assert found.losses["bce"].dtype == torch.float32
