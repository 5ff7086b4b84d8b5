"""Initial weights of segmenters: published names, what they were trained on, and files that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from seedbed.data.transforms import normalise
from seedbed.models.deeplab import DeepLabV2
from seedbed.models.resnet import ResNet
from seedbed.segment.augment import network_input
from seedbed.segment.networks import build_segmenter, from_torchvision, initialise
from seedbed.segment.settings import SegmenterConfig
from seedbed.types import UserError

V2 = SegmenterConfig(backbone="resnet50")


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_segmenter(V2, 4).state_dict()


def without_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As files of initial weights are: no `base.`, no ASPP, no batch counters, a classifier on top."""
    bare = {n.removeprefix("base."): t for n, t in state.items() if ".aspp." not in n and not n.endswith("num_batches_tracked")}
    return {**bare, "fc.weight": torch.zeros(7, 2048), "fc.bias": torch.zeros(7)}


@pytest.mark.parametrize(
    ("file", "change", "trained_on"),
    [
        ("deeplabv2_resnet101_msc-vocaug-20000.pth", lambda s: s, "masks"),
        ("parallel.pth", lambda s: {f"module.{n}": t for n, t in s.items()}, "masks"),
        ("several_scales.pth", lambda s: {f"scale.{n}": t for n, t in s.items()}, "masks"),
        ("resnet101_imagenet_voc.pth", lambda s: {f"module.scale.{n}": t for n, t in s.items()}, "masks"),
        ("deeplabv1_resnet101-coco.pth", without_prefix, "masks"),
        ("deeplabv1_resnet101-imagenet.pth", without_prefix, "imagenet"),
        ("found.pth", without_prefix, "unknown"),
    ],
)
def test_published_names(tmp_path: Path, published: dict[str, torch.Tensor], file: str, change: Any, trained_on: str) -> None:
    path = tmp_path / file
    torch.save({"state_dict": change(published)} if "found" in file else change(published), path)
    config = V2.replace(weights=str(path))
    model = build_segmenter(config, 4)
    initial = initialise(model, config)
    assert initial.trained_on == trained_on and initial.report.source.startswith(file)
    fresh = {n for n, t in model.state_dict().items() if not torch.equal(t, published[n])}
    assert fresh == ({n for n in fresh if ".aspp." in n and n.endswith("weight")} if "fc.weight" in change(published) else set())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {n: t for n, t in s.items() if ".layer3." not in n}, "lacks base.layer3"),
        (lambda s: {f"{n}.x": t for n, t in s.items()}, "no name fits"),
        (lambda s: {**s, "base.layer1.conv1.conv.weight": torch.zeros(64, 1, 7, 7)}, "another network"),
        (lambda s: {**s, "base.layer4.block9.reduce.conv.weight": torch.zeros(2)}, "also has base.layer4.block9"),
        (lambda s: {n: torch.cat([t, t]) if ".aspp." in n else t for n, t in s.items()}, "segmenter of 8 classes"),
        (lambda s: {**s, "base.layer1.conv1.bn.bias": torch.full((64,), float("nan"))}, "not finite"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, published: dict[str, torch.Tensor], change: Any, words: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(change(published), path)
    with pytest.raises(UserError, match=words) as error:
        initialise(build_segmenter(V2, 4), V2.replace(weights=str(path)))
    assert error.value.field == "--segmenter.weights" and error.value.file == path


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"no weights")
    for path in (Path("/nowhere/deeplab.pth"), damaged):
        with pytest.raises(UserError) as error:
            initialise(build_segmenter(V2, 4), V2.replace(weights=str(path)))
        assert error.value.field == "--segmenter.weights" and path.name in error.value.text()
    v1 = SegmenterConfig(model="deeplab_v1")
    with pytest.raises(UserError, match="no ImageNet weights to download"), torch.device("meta"):
        initialise(build_segmenter(v1, 4), v1)


def torchvision_state(depth: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    network = ResNet(depth, 5)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return network.state_dict()


def test_torchvision_weights_give_torchvision_features(tmp_path: Path) -> None:
    """Up to layer2 (where no dilation differs yet) the network sees what torchvision's ResNet sees, from its own input."""
    state = torchvision_state(50)
    reference, model = ResNet(50, 5).eval(), DeepLabV2(4, 50, stride_in_3x3=True).eval()
    reference.load_state_dict(state)
    model.load_state_dict(from_torchvision(state), strict=False)
    pixels = np.random.default_rng(0).integers(0, 256, (65, 97, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = reference.prefix(normalise(pixels)[None])
        x = torch.from_numpy(network_input(pixels, "bgr"))[None]
        for name in ("layer1", "layer2", "layer3"):
            x = model.base.get_submodule(name)(x)
    assert x.shape == expected.shape
    assert float(F.cosine_similarity(x.flatten(), expected.flatten(), dim=0)) > 0.999
    path = tmp_path / "resnet50.pth"
    torch.save({n: t for n, t in state.items() if "classifier" not in n}, path)
    with pytest.raises(UserError) as error:
        initialise(build_segmenter(V2.replace(weights=str(path)), 4), V2.replace(weights=str(path)))
    assert "--segmenter.stride 3x3" in error.value.remedy
    there = V2.replace(weights=str(path), stride="3x3")
    filled = build_segmenter(there, 4)
    initialise(filled, there)
    assert torch.equal(filled.state_dict()["base.layer5.block3.increase.bn.bias"], state["layer4.2.bn3.bias"])


def test_a_classifiers_weights_start_the_small_one(tmp_path: Path) -> None:
    path = tmp_path / "classifier.pth"
    state = torchvision_state(18)
    torch.save(state, path)
    config = SegmenterConfig.named("small", backbone="resnet18", weights=str(path))
    model = build_segmenter(config, 4)
    assert initialise(model, config).trained_on == "unknown"
    assert torch.equal(model.state_dict()["backbone.layer3.1.conv2.weight"], state["layer3.1.conv2.weight"])


@pytest.mark.parametrize(("weights", "stride", "other"), [("imagenet", "1x1", "3x3"), ("coco", "3x3", "1x1")])
def test_a_stride_that_the_weights_were_not_trained_with(weights: str, stride: Any, other: Any) -> None:
    """torchvision's have it in the 3x3 convolutions, Caffe's in the first 1x1: the tensors fit either way."""
    with pytest.raises(UserError, match=f"trained with the stride in the {other} convolutions, not {stride}") as error:
        SegmenterConfig(weights=weights, stride=stride).check("segmenter.")
    assert error.value.field == "--segmenter.stride"
    for fits in ("auto", other):
        config = SegmenterConfig(weights=weights, stride=fits)
        config.check()
        assert config.resolved().stride == other
    SegmenterConfig(weights="deeplabv1_resnet101-imagenet.pth", stride=stride).check()
    assert SegmenterConfig(weights="deeplabv1_resnet101-imagenet.pth").resolved().stride == "1x1"
