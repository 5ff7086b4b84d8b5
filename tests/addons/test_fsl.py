"""The feature similarity loss beside matrices of all pairs, and as a training step gets it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from plain_fsl import plain_fsl
from torch import Tensor, nn

from seedbed.addons import addon_class, pairs
from seedbed.addons.fsl import Fsl, FslConfig, colors_at, feature_similarity_loss
from seedbed.data.transforms import MEAN, STD
from seedbed.types import Batch, StepOutput, UserError


def made_pair(seed: int, shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.rand(shape, generator=generator, dtype=dtype)
    y[:, 1:] *= (torch.rand(shape[0], shape[1] - 1, 1, 1, generator=generator) < 0.6).to(dtype)
    return y, torch.rand(shape[0], 3, *shape[2:], generator=generator, dtype=dtype) ** 3


def both(y: Tensor, x: Tensor, mu: Any, sigma: Any, guard: float) -> list[tuple[Tensor, Tensor]]:
    found = []
    for loss in (feature_similarity_loss, plain_fsl):
        leaf = y.clone().requires_grad_()
        value = loss(leaf, x, mu, sigma, guard)
        (3 * value).backward()
        assert leaf.grad is not None
        found.append((value.detach(), leaf.grad))
    return found


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 4), st.integers(1, 24), st.integers(1, 36),
    st.floats(-2, 5), st.sampled_from([None, 0.5, 3.0, 60.0]),
)  # fmt: skip
@hypothesis_settings(max_examples=20)
def test_equals_the_matrices(seed: int, n: int, c: int, h: int, w: int, mu: float, sigma: float | None) -> None:
    """Every size, every reach; beyond five sigma nothing is added."""
    y, x = made_pair(seed, (n, c, h, w))
    (value, gradient), (expected, slope) = both(y, x, mu, sigma, 1e-5)
    assert float(value) == pytest.approx(float(expected), rel=3e-4, abs=2e-5)
    assert torch.allclose(gradient, slope, rtol=3e-4, atol=3e-5 * float(slope.abs().max() + 1e-9))


@pytest.mark.parametrize("at_once", [1, 300, 10**9])
def test_parts_of_any_size_give_the_same(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = made_pair(1, (3, 4, 9, 37))
    whole = feature_similarity_loss(y, x, 2.5, 1.0)
    monkeypatch.setitem(pairs.PAIRS_AT_ONCE, "cpu", at_once)
    assert float(feature_similarity_loss(y, x, 2.5, 1.0)) == pytest.approx(float(whole), rel=1e-12)
    monkeypatch.setattr(pairs, "TILE", 5)
    assert float(feature_similarity_loss(y, x, 2.5, 1.0)) == pytest.approx(float(whole), rel=1e-4)  # tiles overlap the reach by less


def test_gradient_by_differences() -> None:
    y, x = made_pair(2, (2, 2, 3, 4))
    assert torch.autograd.gradcheck(lambda v: feature_similarity_loss(v, x, 1.0, 2.0), (y.requires_grad_(),))


def test_learned_parameters() -> None:
    """As autograd finds them through the matrices; that of mu is never positive, as the paper says."""
    y, x = made_pair(3, (2, 3, 17, 20))
    found = []
    for loss in (feature_similarity_loss, plain_fsl):
        mu, sigma = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (2.5, 3.0))
        loss(y, x, mu, sigma, 1e-5).backward()
        assert mu.grad is not None
        assert sigma.grad is not None
        found.append((float(mu.grad), float(sigma.grad)))
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert found[0][0] < 0


@given(st.integers(0, 2**32 - 1), st.floats(-3, 6), st.floats(0.5, 20))
@hypothesis_settings(max_examples=25)
def test_mu_only_grows(seed: int, mu: float, sigma: float) -> None:
    y, x = made_pair(seed, (1, 3, 8, 9))
    parameter = torch.tensor(mu, dtype=torch.float64, requires_grad=True)
    feature_similarity_loss(y, x, parameter, sigma).backward()
    assert float(parameter.grad) < 0  # type: ignore[arg-type]


def test_low_precision_and_large_maps() -> None:
    y, x = made_pair(4, (1, 3, 128, 128), torch.float32)
    leaf = y.clone().requires_grad_()
    full = feature_similarity_loss(leaf, x)
    full.backward()
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()
    half = y.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = feature_similarity_loss(half, x)
    value.backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16
    assert float(value.detach()) == pytest.approx(float(full.detach()), rel=0.02)


IDS = ("a", "b", "c")


def made(size: tuple[int, int] = (7, 9)) -> tuple[StepOutput, Batch]:
    generator = torch.Generator().manual_seed(5)
    logits, background = 3 * torch.randn(3, 4, *size, generator=generator), torch.randn(3, 1, *size, generator=generator)
    labels = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]])
    return StepOutput({"bce": torch.tensor(1.0)}, logits, background, "bce"), Batch(
        torch.randn(3, 3, 32, 40, generator=generator), labels, IDS
    )


@pytest.mark.parametrize("preset", ["official", "paper"])
@pytest.mark.parametrize("gate", ["r", "b", "s", "a"])
def test_step(gate: Any, preset: str) -> None:
    """A term beside the others; classes without a label get no gradient, and a picture without any class adds nothing."""
    out, batch = made()
    assert out.logits_nchw is not None
    leaf = out.logits_nchw.requires_grad_()
    settings = FslConfig.named(preset, gate=gate, sigma=2.0, weight=0.5)
    found = Fsl(settings)(out, batch, 0, 0)
    assert list(found.losses) == ["bce", "fsl"]
    assert found.losses["bce"] is out.losses["bce"]
    found.losses["fsl"].backward()
    assert leaf.grad is not None
    touched = leaf.grad.flatten(2).any(2)
    if gate != "a":  # a softmax binds all classes together, and with its background even a picture without a class
        assert torch.equal(touched, batch.labels_nc > 0)
    doubled = Fsl(settings.replace(weight=1.0))(out, batch, 0, 0).losses["fsl"]
    assert float(doubled.detach()) == pytest.approx(2 * float(found.losses["fsl"].detach()), rel=1e-6)


def test_what_is_compared() -> None:
    out, batch = made()
    assert out.logits_nchw is not None
    assert out.background_n1hw is not None
    with_background = Fsl(FslConfig(gate="b")).judgements(out, batch.labels_nc)
    expected = out.logits_nchw.sigmoid() * batch.labels_nc[:, :, None, None]
    assert torch.equal(with_background[:, 1:], expected)
    assert torch.equal(with_background[:, 0], 1 - expected.amax(1))
    alone = Fsl(FslConfig(gate="b", background=False)).judgements(out, batch.labels_nc)
    assert torch.equal(alone, expected)
    softmax = torch.cat([out.background_n1hw, out.logits_nchw], 1).softmax(1)
    multinomial = Fsl(FslConfig(gate="a")).judgements(out, batch.labels_nc)
    assert torch.allclose(multinomial[:, 0], softmax[:, 0])
    assert torch.allclose(multinomial[:, 1:], softmax[:, 1:] * batch.labels_nc[:, :, None, None])
    everything = Fsl(FslConfig.named("multinomial")).judgements(out, batch.labels_nc)
    assert torch.allclose(everything, softmax)
    assert Fsl(FslConfig(upsample=4)).judgements(out, batch.labels_nc).shape[2:] == (28, 36)


def test_colors() -> None:
    pixels = torch.rand(2, 3, 9, 9)
    normalised = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    assert torch.allclose(colors_at(normalised, (9, 9)), pixels, atol=1e-6)
    assert torch.allclose(colors_at(normalised, (3, 3)), pixels[..., ::4, ::4], atol=1e-6)  # corners on corners
    assert torch.allclose(colors_at(torch.zeros(1, 3, 4, 4), (2, 2)), torch.tensor(MEAN)[:, None, None].expand(1, 3, 2, 2))
    assert colors_at(1e3 * torch.randn(1, 3, 8, 8), (4, 4)).aminmax() == (0, 1)


def test_split_over_workers() -> None:
    """The loss of a batch is the mean of its pictures'."""
    out, batch = made()
    assert out.logits_nchw is not None
    whole = float(Fsl()(out, batch, 0, 0).losses["fsl"])
    alone = []
    for i, name in enumerate(IDS):
        row = replace(out, logits_nchw=out.logits_nchw[i : i + 1])
        alone.append(float(Fsl()(row, Batch(batch.images_nchw[i : i + 1], batch.labels_nc[i : i + 1], (name,)), 0, 0).losses["fsl"]))
    assert whole == pytest.approx(sum(alone) / 3, rel=1e-5)


def test_parameters() -> None:
    assert not list(Fsl().parameters())
    out, batch = made()
    addon = Fsl(FslConfig(learned=True, sigma=2.0))
    assert {name for name, _ in addon.named_parameters()} == {"mu", "sigma"}
    fixed = Fsl(FslConfig(sigma=2.0))(out, batch, 0, 0).losses["fsl"]
    loss = addon(out, batch, 0, 0).losses["fsl"]
    assert torch.equal(loss, fixed)
    loss.backward()
    assert isinstance(addon.mu, nn.Parameter)
    assert isinstance(addon.sigma, nn.Parameter)
    assert float(addon.mu.grad) < 0  # type: ignore[arg-type]
    assert float(addon.sigma.grad) != 0  # type: ignore[arg-type]


def test_no_weight_changes_nothing() -> None:
    out, batch = made()
    assert Fsl(FslConfig(weight=0))(out, batch, 0, 0) is out


def test_what_does_not_fit_is_said() -> None:
    out, batch = made()
    with pytest.raises(UserError, match="background") as error:
        Fsl(FslConfig(gate="a"))(replace(out, background_n1hw=None), batch, 0, 0)
    assert error.value.field == "--fsl.gate"
    with pytest.raises(UserError, match="spatial"):
        Fsl()(replace(out, logits_nchw=None), batch, 0, 0)
    assert addon_class("fsl") is Fsl


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"sigma": 0.0}, "--fsl.sigma"),
        ({"weight": -1.0}, "--fsl.weight"),
        ({"gate": "x"}, "--fsl.gate"),
        ({"upsample": 0}, "--fsl.upsample"),
        ({"learned": True, "sigma": None}, "--fsl.learned"),
    ],
)
def test_bad_settings(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as error:
        FslConfig(**wrong).check("fsl.")
    assert error.value.field == field
    FslConfig().check("fsl.")
    FslConfig(sigma=None).check("fsl.")
    FslConfig.named("paper").check("fsl.")
