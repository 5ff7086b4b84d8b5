"""ResNet-38d: numbers of the official code, its weights from the published forms, and what is said of files that are none."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seedbed.models import build_network, resnet38
from seedbed.models.mxnet_params import read_params, resnet38_names
from seedbed.models.resnet38 import ResNet38, ResNet38Body
from seedbed.models.resnet38_weights import load_resnet38
from seedbed.models.weights import load_weights
from seedbed.types import UserError

FEATURES = {"rtol": 1e-4, "atol": 1e-3}


def formula(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """The weights of the golden numbers, as their README spells them out for this network."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    wide = name.startswith(("b6.", "b7."))
    last = "bn_branch2b2" if wide else "bn_branch2b1"
    if name == "fc8.weight":
        array = 0.05 * rng.standard_normal(shape)
    elif len(shape) == 4:
        array = np.sqrt(2.0 / np.prod(shape[1:])) * rng.standard_normal(shape)
    elif name.endswith("running_var"):
        array = rng.uniform(0.5, 1.5, shape)
    elif name.endswith("weight"):
        array = rng.uniform(*((0.1, 0.3) if f".{last}." in name else (0.5, 1.5)), shape)
    else:
        array = 0.1 * rng.standard_normal(shape)
    return torch.from_numpy(array.astype(np.float32))


@pytest.mark.golden
def test_features_and_scores(golden: Any) -> None:
    case = golden("resnet38d")
    seed, classes = int(case["weight_seed"]), case["logits"].shape[1]
    model = ResNet38(classes)
    state = {n: formula(n, tuple(v.shape), seed) for n, v in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert set(case["all_names"].tolist()) - set(state) == {"f8_3.weight", "f8_4.weight", "f9.weight"}  # SEAM's own
    assert not set(state) - set(case["all_names"].tolist())
    for name, first, total in zip(case["weight_check_names"], case["weight_check_first4"], case["weight_check_abs_sum"], strict=True):
        if str(name) in state:
            np.testing.assert_array_equal(state[str(name)].flatten()[:4], first)
            np.testing.assert_allclose(state[str(name)].double().abs().sum(), total, rtol=1e-9)
    model.load_state_dict(state, strict=False)
    model.eval()
    images = torch.from_numpy(case["input"])
    with torch.no_grad():
        found = model.features(images)._asdict()
        logits = model(images)
    for name, value in found.items():
        np.testing.assert_array_equal(value.shape, case[f"{name}_shape"])
        np.testing.assert_allclose(value.double().sum(), case[f"{name}_sum"], rtol=1e-4)
        np.testing.assert_allclose(value.double().square().sum(), case[f"{name}_sumsq"], rtol=1e-4)
        np.testing.assert_allclose(value.abs().max(), case[f"{name}_abs_max"], rtol=1e-4)
        np.testing.assert_allclose(value[0].double().sum((1, 2)), case[f"{name}_channel_sum"], rtol=1e-4, atol=1e-2)
        part = value[0, case[f"{name}_slice_channels"], 1:5, 2:6].permute(1, 2, 0)
        np.testing.assert_allclose(part, case[f"{name}_slice"], **FEATURES)
    np.testing.assert_allclose(logits, case["logits"], **FEATURES)


def test_keeps_to_the_contract_of_a_classifier() -> None:
    with torch.device("meta"):
        model: Any = build_network("resnet38", 20)
        images = torch.empty(2, 3, 65, 80)
    assert model(images).shape == model.suffix(model.prefix(images)).shape == (2, 20, 9, 10)
    assert model.stride == 8
    suffix, head = model.suffix_parameters(), model.classifier_parameters()
    assert not {id(p) for p in suffix} & {id(p) for p in head}
    stem = {id(p) for n, p in model.named_parameters() if n.startswith(("conv1a.", "b2"))}
    assert {id(p) for p in (*suffix, *head)} | stem == {id(p) for p in model.parameters()}
    model.train_from("stage3")
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n in dict(model.named_parameters()) if "bn" not in n and not n.startswith(("conv1a.", "b2"))}
    model.train_from("all")
    assert all(p.requires_grad for p in model.parameters())


def test_fixed_statistics_stay() -> None:
    model = ResNet38Body().freeze_statistics().train()
    before = model.b3.bn_branch2a.running_mean.clone()
    with torch.no_grad():
        model.rest(model.stem(torch.randn(1, 3, 16, 16)))
    assert torch.equal(model.b3.bn_branch2a.running_mean, before)


# --- MXNet's files ----------------------------------------------------------------------------------


def written(arrays: Mapping[str, np.ndarray], version: int = 0) -> bytes:
    """A .params file as MXNet writes it; version 0 is that of the published one."""
    flags = {"float32": 0, "float64": 1, "float16": 2, "uint8": 3, "int32": 4, "int8": 5, "int64": 6}
    out = struct.pack("<QQQ", 0x112, 0, len(arrays))
    for array in arrays.values():
        shape = array.shape
        if version == 0:
            out += struct.pack(f"<I{len(shape)}I", len(shape), *shape)
        else:
            out += struct.pack("<I", {1: 0xF993FAC8, 2: 0xF993FAC9, 3: 0xF993FACA}[version])
            out += struct.pack("<i", 0) if version > 1 else b""
            out += struct.pack(f"<i{len(shape)}q", len(shape), *shape)
        out += struct.pack("<iii", 1, 0, flags[array.dtype.name]) + array.tobytes()
    out += struct.pack("<Q", len(arrays))
    return out + b"".join(struct.pack("<Q", len(name)) + name.encode() for name in arrays)


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_every_version_is_read(tmp_path: Path, version: int) -> None:
    rng = np.random.default_rng(0)
    arrays = {"arg:conv1a_weight": rng.random((2, 3, 1, 1)).astype(np.float32), "aux:bn7_moving_var": rng.random(4), "arg:x": np.arange(6)}
    path = tmp_path / "w.params"
    path.write_bytes(written(arrays, version))
    found = read_params(path)
    assert list(found) == ["conv1a_weight", "bn7_moving_var", "x"]
    for value, array in zip(found.values(), arrays.values(), strict=True):
        assert value.dtype == array.dtype
        np.testing.assert_array_equal(value, array)


def test_damaged_files_are_told_apart(tmp_path: Path) -> None:
    whole = written({"arg:a": np.ones((2, 3), np.float32)}, 2)
    path = tmp_path / "w.params"
    cases = {
        "no MXNet parameter file": b"PK\x03\x04" + bytes(40),
        "ends within its head": whole[:9],
        "announces": whole[:16] + struct.pack("<Q", 1 << 60) + whole[24:],
        "sparse": whole[:28] + struct.pack("<i", 1) + whole[32:],
        "dimensions": whole[:32] + struct.pack("<i", 99) + whole[36:],
        "of the shape": whole[:36] + struct.pack("<q", -5) + whole[44:],
        "ends within array 0 of the shape 1099511627776x3": whole[:36] + struct.pack("<q", 1 << 40) + whole[44:],
        "type 77": whole[:60] + struct.pack("<i", 77) + whole[64:],
        "ends within name 0": whole[:-1],
        "1 arrays and 0 names": whole[:-21] + struct.pack("<Q", 0),
        "goes on": whole + b"more",
        "no text": whole[:-5] + b"\xff" * 5,
    }
    for message, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            read_params(path, "--x.weights")
        assert error.value.file == path and error.value.field == "--x.weights" and error.value.remedy
    for length in range(len(whole)):  # wherever it was cut
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            read_params(path)


def mxnet_name(name: str) -> str:
    unit, part, what = name.rsplit(".", 2) if name.count(".") == 2 else ("", *name.split("."))
    kinds = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
    if part == "conv1a":
        return "arg:conv1a_weight"
    if part == "bn7":
        return f"{'aux' if 'running' in what else 'arg'}:bn7_{kinds[what]}"
    stage, _, number = unit[1:].partition("_")
    place = f"{stage}b{number}" if number else f"{stage}a"
    kind, branch = part.split("_")
    if kind == "conv":
        return f"arg:res{place}_{branch}_weight"
    return f"{'aux' if 'running' in what else 'arg'}:bn{place}_{branch}_{kinds[what]}"


@pytest.fixture
def donor(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Weights of a backbone, one number a tensor. It is a thin one: the real one has 100 million numbers."""
    monkeypatch.setattr(resnet38, "PLAIN", tuple((n, a // 32, b // 32, c // 32, *rest) for n, a, b, c, *rest in resnet38.PLAIN))
    monkeypatch.setattr(resnet38, "WIDE", tuple((n, a // 32, b // 32, p) for n, a, b, p in resnet38.WIDE))
    with torch.device("meta"):
        shapes = {n: v.shape for n, v in ResNet38Body().state_dict().items() if not n.endswith("num_batches_tracked")}
    return {n: torch.full(shape, float(i)) for i, (n, shape) in enumerate(shapes.items(), 1)}


def holds(model: nn.Module, donor: dict[str, Tensor], prefix: str = "") -> bool:
    own = model.state_dict()
    return all(bool((own[prefix + n] == v.flatten()[0]).all()) for n, v in donor.items())


def test_the_published_imagenet_file(tmp_path: Path, donor: dict[str, Tensor]) -> None:
    arrays = {mxnet_name(n): v.numpy() for n, v in donor.items()}
    assert {"arg:res2a_branch1_weight", "arg:res4b5_branch2b1_weight", "aux:bn7a_branch2b2_moving_var", "arg:bn5b2_branch2a_beta"} <= set(
        arrays
    )
    arrays["arg:linear1000_weight"] = np.zeros((1000, 128), np.float32)
    assert set(resnet38_names({n.split(":")[1]: v for n, v in arrays.items()})) == set(donor)
    path = tmp_path / "ilsvrc.params"
    path.write_bytes(written(arrays))
    model = ResNet38(5)
    head = model.fc8.weight.detach().clone()
    report = load_resnet38(model, path)
    assert holds(model, donor) and torch.equal(model.fc8.weight, head)
    assert report.missing == ("fc8.weight",) and "ilsvrc.params" in report.source and report.trained_on == "imagenet"
    del arrays[mxnet_name("b4_5.conv_branch2a.weight")]
    path.write_bytes(written(arrays))
    with pytest.raises(UserError, match=r"lacks b4_5\.conv_branch2a\.weight"):
        load_resnet38(model, path)


def test_checkpoints_of_the_official_codes(tmp_path: Path, donor: dict[str, Tensor]) -> None:
    path = tmp_path / "seam.pth"
    more = {"fc8.weight": torch.zeros(21, 128, 1, 1), "f8_3.weight": torch.zeros(64, 16, 1, 1)}
    for prefix in ("", "module.", "backbone."):
        torch.save({prefix + n: v for n, v in {**donor, **more}.items()}, path)
        model = ResNet38(20)
        report = load_resnet38(model, path)
        assert holds(model, donor), prefix
        assert report.missing == ("fc8.weight",) and set(report.unexpected) == set(more) and report.trained_on == "unknown"
    model = ResNet38(21)
    assert load_weights(model, path).missing == () and not model.fc8.weight.any()
    torch.save({f"module.{n}": v for n, v in {**donor, "conv_fov.weight": torch.zeros(2), "cls_conv.bias": torch.zeros(21)}.items()}, path)
    assert load_resnet38(model, path).trained_on == "masks"  # DeepLab-v1


def test_other_files_are_refused(tmp_path: Path, donor: dict[str, Tensor]) -> None:
    path, model = tmp_path / "w.pth", ResNet38Body()
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="another network"):
        load_resnet38(model, path)
    torch.save({**donor, "b3.conv_branch1.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"b3\.conv_branch1\.weight is 3, not"):
        load_resnet38(model, path)
    torch.save({**donor, "bn7.bias": torch.full((128,), float("nan"))}, path)
    with pytest.raises(UserError, match=r"not finite, in bn7\.bias"):
        load_resnet38(model, path)
    for source in ("imagenet", tmp_path / "absent.params"):
        with pytest.raises(UserError):
            load_resnet38(model, source)
    assert load_resnet38(model, "none").source == "none"
