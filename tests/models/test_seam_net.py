"""SEAM's network: numbers of the official code, the pixel correlation module, weights of every form, and files that are none."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_resnet38 import donor, formula, mxnet_name, written  # noqa: F401

from seedbed.models import build_network
from seedbed.models import seam as seam_module
from seedbed.models.resnet38 import ResNet38Body, plain_name
from seedbed.models.seam import SeamNet, correlate, rectified_maps
from seedbed.models.weights import load_weights
from seedbed.types import UserError

FEATURES = {"rtol": 1e-4, "atol": 1e-3}
SMALL = (("small", 4), ("resnet18", 16))


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the official numbers -----------------------------------------------------------------------------


@pytest.mark.golden
def test_the_whole_network(golden: Any) -> None:
    case = golden("resnet38d")
    seed = int(case["weight_seed"])
    model = SeamNet("resnet38", case["logits"].shape[1] - 1)
    names = {plain_name(n): n for n in model.state_dict() if not n.endswith("num_batches_tracked")}
    assert set(names) == set(case["all_names"].tolist())
    own = model.state_dict()
    state = {n: formula(plain, tuple(own[n].shape), seed) for plain, n in names.items()}
    for name, first, total in zip(case["weight_check_names"], case["weight_check_first4"], case["weight_check_abs_sum"], strict=True):
        np.testing.assert_array_equal(state[names[str(name)]].flatten()[:4], first)
        np.testing.assert_allclose(state[names[str(name)]].double().abs().sum(), total, rtol=1e-9)
    model.load_state_dict(state, strict=False)
    model.eval()
    images = torch.from_numpy(case["input"])
    with torch.no_grad():
        logits, cam, cam_rv = model.forward_seam(images)
        np.testing.assert_allclose(model(images), case["logits"][:, 1:], **FEATURES)
        np.testing.assert_array_equal(model(images), model.suffix(model.prefix(images)))
    np.testing.assert_allclose(logits, case["logits"], **FEATURES)
    assert cam.shape == cam_rv.shape == (1, logits.shape[1], *images.shape[2:])
    for name, value in (("cam", cam), ("cam_rv", cam_rv)):
        np.testing.assert_allclose(value[0, :, ::9, ::7][:, : case[f"{name}_slice"].shape[1]], case[f"{name}_slice"], **FEATURES)
        np.testing.assert_allclose(value.double().sum(), case[f"{name}_sum"], rtol=1e-4)


@pytest.mark.golden
def test_correlation(golden: Any) -> None:
    case = golden("seam")
    features = torch.from_numpy(case["pcm_f"]).requires_grad_()
    weight = torch.from_numpy(case["pcm_f9_weight"]).requires_grad_()
    out = correlate(torch.from_numpy(case["pcm_cam"]), F.conv2d(features, weight))
    np.testing.assert_allclose(out.detach(), case["pcm_out"], atol=1e-5)
    out.backward(torch.from_numpy(case["pcm_upstream"]))
    top = np.abs(case["pcm_grad_f"]).max()
    np.testing.assert_allclose(features.grad, case["pcm_grad_f"], rtol=1e-3, atol=1e-3 * top)
    assert weight.grad is not None
    np.testing.assert_allclose(weight.grad.double().abs().sum(), case["pcm_grad_f9_weight_sum"], rtol=1e-4)
    part = weight.grad[::24, ::15, 0, 0]
    np.testing.assert_allclose(part, case["pcm_grad_f9_weight_slice"], rtol=1e-3, atol=1e-3 * float(weight.grad.abs().max()))


# --- the module -----------------------------------------------------------------------------------------


def test_correlation_by_hand() -> None:
    """Pixel by pixel in float64, as the equation is written."""
    maps, f = randn(1, 2, 2, 3).double(), randn(1, 4, 2, 3, seed=1).double()
    out = correlate(maps, f).reshape(2, -1)
    flat, vectors = maps.reshape(2, -1), f.reshape(4, -1)
    for i in range(6):
        weights = [max(0.0, float(vectors[:, i] @ vectors[:, j]) / float(vectors[:, i].norm() * vectors[:, j].norm())) for j in range(6)]
        expected = sum(w * flat[:, j] for j, w in enumerate(weights)) / sum(weights)
        torch.testing.assert_close(out[:, i], expected, rtol=1e-4, atol=1e-4)


def test_correlation_is_a_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    f = randn(2, 6, 5, 4).double()
    ones = correlate(torch.ones(2, 3, 5, 4, dtype=torch.float64), f)
    assert float((ones - 1).abs().max()) < 1e-4, "the weights of a position do not add up to 1"
    maps = randn(2, 3, 5, 4, seed=1).double()
    out = correlate(maps, f)
    assert bool((out <= maps.amax((2, 3), keepdim=True)).all()) and bool((out >= maps.amin((2, 3), keepdim=True)).all())
    assert torch.equal(correlate(maps.flip(0), f.flip(0)), out.flip(0)), "one picture of a batch touches another"
    torch.testing.assert_close(correlate(maps.flip(-1), f.flip(-1)), out.flip(-1))
    torch.testing.assert_close(correlate(maps, 7 * f), out, rtol=1e-4, atol=1e-5)  # lengths do not matter
    same = correlate(maps, torch.ones_like(f))
    torch.testing.assert_close(same, maps.mean((2, 3), keepdim=True).expand_as(maps), rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(seam_module, "BLOCK", 100)  # some columns at a time
    with torch.no_grad():
        torch.testing.assert_close(correlate(maps, f), out, rtol=1e-12, atol=1e-12)


def test_rectified_maps() -> None:
    scores = randn(2, 4, 3, 5)
    scores[0, 2] = -1.0
    maps = rectified_maps(scores.requires_grad_())
    assert not maps.requires_grad and bool((maps >= 0).all()) and bool((maps <= 1).all())
    assert not maps[0, 2].any()
    assert bool(((maps[:, 1:] > 0).sum(1) <= 1).all()), "more than the strongest class is left"
    torch.testing.assert_close(maps[:, 0], 1 - maps[:, 1:].amax(1))
    assert bool((rectified_maps(torch.full((1, 3, 2, 2), -1.0))[:, 0] == 1).all()), "a picture of nothing is background"


# --- the network ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backbone", "stride"), SMALL, ids=lambda value: str(value))
def test_keeps_to_the_contract(backbone: str, stride: int) -> None:
    torch.manual_seed(0)
    model: Any = SeamNet(backbone, 5).eval()
    images = randn(2, 3, 67, 50)
    with torch.no_grad():
        logits, cam, cam_rv = model.forward_seam(images)
        h, w = -(-67 // stride), -(-50 // stride)
        assert model.stride == stride and logits.shape == (2, 6, h, w) and cam.shape == cam_rv.shape == (2, 6, 67, 50)
        torch.testing.assert_close(model(images), logits[:, 1:])
        torch.testing.assert_close(model.suffix(model.prefix(images)), logits[:, 1:])
    head, suffix = model.classifier_parameters(), model.suffix_parameters()
    assert [tuple(p.shape[:2]) for p in head] == [tuple(getattr(model, n).weight.shape[:2]) for n in ("f8_3", "f8_4", "f9", "fc8")]
    assert model.f9.weight.shape[:2] == (192, 195) and not {id(p) for p in head} & {id(p) for p in suffix}
    other = SeamNet(backbone, 5)
    other.load_state_dict(pickle.loads(pickle.dumps(model.state_dict())))
    with torch.no_grad():
        assert torch.equal(other.eval().forward_seam(images).cam_rv, cam_rv)


def test_where_gradients_go() -> None:
    """What the affinity compares and spreads sends nothing into the backbone; cut off after layer2 nothing goes below it."""
    model = SeamNet("resnet18", 3)
    images = randn(2, 3, 64, 64)
    model.forward_seam(images).cam_rv.square().sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert reached == {"f8_3.weight", "f8_4.weight", "f9.weight"}
    model.zero_grad()
    model.train_from("stage3").forward_seam(images).cam.sum().backward()
    reached = {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None and name.startswith("backbone.")}
    assert reached == {"layer3", "layer4"} and model.fc8.weight.grad is not None


def test_what_is_trained_of_resnet38() -> None:
    with torch.device("meta"):
        model: Any = SeamNet("resnet38", 20)
    model.train_from("stage3")
    names = {plain_name(n) for n, p in model.named_parameters() if p.requires_grad}
    assert {"f8_3.weight", "f8_4.weight", "f9.weight", "fc8.weight", "b3.conv_branch1.weight"} <= names
    assert not any(n.startswith(("conv1a", "b2", "bn")) or ".bn" in n for n in names)
    assert not [n for n, p in model.named_parameters() if n.endswith("bias") and p.requires_grad], "PSA's groups of biases are not empty"
    assert model.dropout7.p == 0.5 and model.stride == 8
    assert (model.f8_3.in_channels, model.f8_4.in_channels, model.fc8.in_channels, model.fc8.out_channels) == (512, 1024, 4096, 21)
    assert len(model.suffix_parameters()) == len([n for n, _ in model.backbone.named_parameters() if not n.startswith(("conv1a", "b2"))])


@pytest.fixture
def thin(donor: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:  # noqa: F811
    monkeypatch.setattr(ResNet38Body, "channels", tuple(c // 32 for c in ResNet38Body.channels))
    return donor


# --- weights --------------------------------------------------------------------------------------------


def test_published_checkpoints(tmp_path: Path, thin: dict[str, torch.Tensor]) -> None:
    """SEAM's and HFPL's name everything without a prefix; PSA's lacks the affinity; another number of classes keeps a fresh classifier."""
    width = thin["bn7.weight"].shape[0]
    more = {
        "f8_3.weight": torch.ones(64, 16, 1, 1),
        "f8_4.weight": torch.ones(128, 32, 1, 1),
        "f9.weight": torch.ones(192, 195, 1, 1),
        "fc8.weight": torch.ones(21, width, 1, 1),
    }
    path = tmp_path / "resnet38_SEAM.pth"
    for prefix in ("", "module."):
        torch.save({prefix + n: v for n, v in {**thin, **more}.items()}, path)
        model = SeamNet("resnet38", 20)
        report = load_weights(model, path)
        own = {plain_name(n): v for n, v in model.state_dict().items()}
        assert all(torch.equal(own[n], v) for n, v in {**thin, **more}.items()), prefix
        assert report.missing == report.unexpected == () and "SHA-256" in report.source
    report = load_weights(SeamNet("resnet38", 80), path)
    assert report.missing == ("fc8.weight",) and report.unexpected == ("fc8.weight",) and "fresh: fc8.weight" in report.text()
    torch.save(thin, path)
    assert set(load_weights(SeamNet("resnet38", 20), path).missing) == set(more)


def test_imagenet_weights_of_resnet38(tmp_path: Path, thin: dict[str, torch.Tensor]) -> None:
    arrays = {mxnet_name(n): v.numpy() for n, v in thin.items()}
    path = tmp_path / "ilsvrc.params"
    path.write_bytes(written({**arrays, "arg:linear1000_weight": np.zeros((1000, 128), np.float32)}))
    model = SeamNet("resnet38", 4)
    report = load_weights(model, path)
    assert set(report.missing) == {"f8_3.weight", "f8_4.weight", "f9.weight", "fc8.weight"}
    own = {plain_name(n): v for n, v in model.state_dict().items()}
    assert all(torch.equal(own[n], v) for n, v in thin.items())
    with pytest.raises(UserError, match=r"ImageNet weights of ResNet-38d"):
        load_weights(model, "imagenet")


def test_weights_of_the_other_backbones(tmp_path: Path) -> None:
    """A plain classifier's fill the backbone, this network's own fill all; the report says which."""
    path = tmp_path / "w.pth"
    plain: Any = build_network("resnet18", 3)
    torch.save(plain.state_dict(), path)
    model: Any = SeamNet("resnet18", 3)
    report = load_weights(model, path)
    assert torch.equal(model.backbone.layer4[1].conv2.weight, plain.layer4[1].conv2.weight)
    assert set(report.missing) == {"f8_3.weight", "f8_4.weight", "f9.weight", "fc8.weight"} and "fresh" in report.text()
    assert report.unexpected == ("classifier.weight",) and all(n in model.state_dict() for n in report.matched)
    torch.save(model.state_dict(), path)
    again: Any = SeamNet("resnet18", 3)
    report = load_weights(again, path)
    assert report.missing == report.unexpected == () and torch.equal(again.f9.weight, model.f9.weight)
    assert load_weights(SeamNet("resnet18", 5), path).missing == ("fc8.weight",)
    assert load_weights(again, "none").source == "none"


class Hostile:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("pwned"),))


def test_files_of_others_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pth"
    model = SeamNet("small", 3)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    torch.save(SeamNet("resnet18", 3).state_dict(), path)
    for other in (model, SeamNet("resnet38", 3)):
        with pytest.raises(UserError, match="another network"):
            load_weights(other, path)
    torch.save({**model.state_dict(), "f9.weight": torch.full((192, 195, 1, 1), float("nan"))}, path)
    with pytest.raises(UserError, match=r"not finite, in f9\.weight"):
        load_weights(model, path)
    path.write_bytes(pickle.dumps({"f9.weight": Hostile()}))
    for other in (model, SeamNet("resnet18", 3)):
        with pytest.raises(UserError, match="without running code"):
            load_weights(other, path)
    assert not (tmp_path / "pwned").exists()
    with pytest.raises(UserError, match="does not exist"):
        load_weights(model, tmp_path / "absent.pth")
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items()), "a refused file left something behind"


def test_reduced_precision_stays_outside_the_affinity() -> None:
    torch.manual_seed(0)
    model, images = SeamNet("small", 3), randn(2, 3, 40, 40)
    exact = model.eval().forward_seam(images)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.forward_seam(images)
    assert found.logits.dtype == found.cam_rv.dtype == torch.float32
    assert 0 < float((found.logits - exact.logits).abs().max()) < 0.1
    found.cam_rv.sum().backward()
    assert bool(torch.isfinite(model.f9.weight.grad).all())
