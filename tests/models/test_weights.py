"""Where initial weights come from, and that no file can do harm."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from seedbed.models import build_network
from seedbed.models.resnet import ResNet
from seedbed.models.weights import load_weights, read_checkpoint
from seedbed.types import UserError


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"touch {self.mark}",))


@pytest.fixture(scope="module")
def donor() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return ResNet(18, 5).state_dict()


def same_weights(model: ResNet, state: dict[str, Tensor], but: tuple[str, ...] = ()) -> bool:
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items() if name not in but)


@pytest.mark.parametrize("suffix", ["pth", "pt", "safetensors", "ckpt"])
def test_a_hostile_file_runs_no_code(tmp_path: Path, suffix: str) -> None:
    mark, path = tmp_path / "executed", tmp_path / f"weights.{suffix}"
    for content in (Hostile(mark), {"state_dict": {"conv1.weight": torch.zeros(1)}, "extra": Hostile(mark)}):
        for save in (lambda c: path.write_bytes(pickle.dumps(c)), lambda c: torch.save(c, path)):
            save(content)
            with pytest.raises(UserError) as error:
                load_weights(ResNet(18, 5), path)
            assert path.name in error.value.message and error.value.file == path and error.value.remedy
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04" + bytes(200), b"\x08\0\0\0\0\0\0\0{       "])
def test_rubbish_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.pth"):
        load_weights(ResNet(18, 5), path)


def test_a_truncated_checkpoint_is_named(tmp_path: Path, donor: dict[str, Tensor]) -> None:
    path = tmp_path / "weights.pth"
    torch.save(donor, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"weights\.pth"):
        load_weights(ResNet(18, 5), path)


@pytest.mark.parametrize("path", ["/nowhere/weights.pth", "/"])
def test_a_path_without_a_file_is_named(path: str) -> None:
    with pytest.raises(UserError) as error:
        load_weights(ResNet(18, 5), path)
    assert path in error.value.text()


def test_files_of_every_kind(tmp_path: Path, donor: dict[str, Tensor]) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    torch.save(donor, tmp_path / "zip.pth")
    torch.save(donor, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in donor.items()}}, tmp_path / "wrapped.ckpt")
    safetensors.save_file(donor, tmp_path / "plain.safetensors")
    for path in sorted(tmp_path.iterdir()):
        model = ResNet(18, 5)
        report = load_weights(model, path)
        assert same_weights(model, donor), path
        assert not report.missing and not report.unexpected
        assert path.name in report.source and "SHA-256" in report.source
    (tmp_path / "zip.pth").rename(tmp_path / "no_suffix")
    assert read_checkpoint(tmp_path / "no_suffix").keys() == donor.keys()


def published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of IRN's and RIB's classifier: every tensor two or three times."""
    out = {}
    for name, value in state.items():
        head, _, rest = name.partition(".")
        if head == "classifier":
            out |= {"classifier.weight": value, "newly_added.0.weight": value}
            continue
        stage, place = {"conv1": (1, 0), "bn1": (1, 1), "layer1": (1, 4), "layer2": (2, 0), "layer3": (3, 0), "layer4": (4, 0)}[head]
        out |= {f"resnet50.{name}": value, f"stage{stage}.{place}.{rest}": value, f"backbone.{stage - 1}.{place}.{rest}": value}
    return out


@pytest.mark.parametrize("keep", ["resnet50.", "stage", "backbone.", ""])
def test_published_names(tmp_path: Path, donor: dict[str, Tensor], keep: str) -> None:
    state = {k: v for k, v in published(donor).items() if k.startswith((keep, "newly_added."))}
    torch.save(state, tmp_path / "res50_cam.pth.pth")
    model = ResNet(18, 5)
    report = load_weights(model, tmp_path / "res50_cam.pth.pth")
    assert same_weights(model, donor)
    assert not report.missing and not report.unexpected


def test_the_second_network_of_irn(tmp_path: Path, donor: dict[str, Tensor]) -> None:
    """Its stages are numbered otherwise: stage2 is layer1. The plain names that stand beside them are taken."""
    state = {f"resnet50.{k}": v for k, v in donor.items() if not k.startswith("classifier")}
    state |= {k.replace("layer3.", "stage4.0."): v for k, v in donor.items() if k.startswith("layer3.")}
    state |= {"stage4.0.5.conv1.weight": torch.zeros(3), "fc_edge1.0.weight": torch.zeros(3)}
    torch.save(state, tmp_path / "res50_irn.pth")
    model = ResNet(18, 5)
    report = load_weights(model, tmp_path / "res50_irn.pth")
    assert same_weights(model, donor, but=("classifier.weight",))
    assert (report.missing, report.unexpected) == (("classifier.weight",), ("fc_edge1.0.weight",))
    assert "fresh: classifier.weight" in report.text() and "not used: fc_edge1.0.weight" in report.text()


@pytest.mark.parametrize(
    ("file", "more", "expected"),
    [
        ("deeplabv3_resnet50.pth", {"classifier.0.convs.0.0.weight": torch.zeros(3), "aux_classifier.4.weight": torch.zeros(3)}, "masks"),
        ("own.pth", {"segmentation_head.0.weight": torch.zeros(3)}, "masks"),
        ("own.pth", {"module.scale.aspp.c0.weight": torch.zeros(3)}, "masks"),
        ("resnet18_coco.pth", {}, "masks"),
        ("deeplab_resnet18.pth", {}, "masks"),
        ("cam_coco.pth", {"classifier.weight": torch.zeros(5, 512, 1, 1)}, "unknown"),
        ("resnet18_imagenet.pth", {"fc.weight": torch.zeros(1000, 512)}, "imagenet"),
        ("own.pth", {"fc.weight": torch.zeros(1000, 512), "fc_edge1.0.weight": torch.zeros(3)}, "unknown"),
    ],
)
def test_what_a_file_was_trained_on(tmp_path: Path, donor: dict[str, Tensor], file: str, more: dict[str, Tensor], expected: str) -> None:
    """torchvision's segmenters have their backbone below `backbone.`; COCO's class labels are no masks."""
    state = {f"backbone.{n}": v for n, v in donor.items() if not n.startswith("classifier")} | more
    torch.save(state, tmp_path / file)
    assert load_weights(ResNet(18, 5), tmp_path / file).trained_on == expected
    assert load_weights(ResNet(18, 5), "none").trained_on == "none"


def test_another_network_is_refused(tmp_path: Path, donor: dict[str, Tensor]) -> None:
    path = tmp_path / "w.pth"
    deeper = ResNet(34, 5).state_dict()
    for state, model, message in (
        (donor, ResNet(34, 5), "lacks layer1.2"),
        (deeper, ResNet(18, 5), "also has layer1.2"),
        (donor, ResNet(50, 5), "is 64x64x3x3, not 64x64x1x1"),
        (donor, ResNet(18, 20), "classifier of 5 classes, the data have 20"),
        ({"encoder.0.weight": torch.zeros(2)}, ResNet(18, 5), "no name fits"),
        (donor | {"bn1.bias": torch.full((64,), torch.nan)}, ResNet(18, 5), "not finite, in bn1.bias"),
    ):
        torch.save(state, path)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(UserError, match=message) as error:
            load_weights(model, path)
        assert "w.pth" in error.value.message and error.value.remedy
        assert same_weights(model, before), "a refused file left something behind"


def test_none_and_imagenet(monkeypatch: pytest.MonkeyPatch, donor: dict[str, Tensor]) -> None:
    torch.manual_seed(1)
    model = ResNet(18, 5)
    assert load_weights(model, "none").source == "none"
    assert same_weights(model, donor)
    models = pytest.importorskip("torchvision.models")

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(UserError, match="no route to host") as error:
        load_weights(model, "imagenet")
    assert "--classifier.weights none" in error.value.remedy and str(error.value.file).startswith("https://")
    state = {k: v for k, v in donor.items() if not k.startswith("classifier")} | {"fc.weight": torch.zeros(1000, 512)}
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", lambda *_, **__: state)
    fresh = ResNet(18, 5)
    report = load_weights(fresh, "imagenet")
    assert same_weights(fresh, donor, but=("classifier.weight",))
    assert report.source.startswith("imagenet") and report.unexpected == ("fc.weight",)
    with pytest.raises(UserError, match="no ImageNet weights"):
        load_weights(build_network("small", 3), "imagenet")


def test_errors_name_the_flag_of_whoever_asks(tmp_path: Path) -> None:
    """A refinement's or a segmenter's weights are not the classifier's."""
    damaged, flag = tmp_path / "damaged.pth", "--refine.irn.weights"
    damaged.write_bytes(b"no weights")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    for model, source in ((ResNet(18, 5), damaged), (ResNet(18, 5), tmp_path / "other.pth"), (build_network("small", 3), "imagenet")):
        with pytest.raises(UserError) as error:
            load_weights(model, source, flag)
        assert error.value.field == flag and "--classifier" not in error.value.text()
