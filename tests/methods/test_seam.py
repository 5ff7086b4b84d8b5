"""SEAM: its losses against the official numbers and by hand, its maps, and a training that a run would make."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from seedbed.artefacts import MAPS
from seedbed.artefacts.fragments import record_hash
from seedbed.artefacts.records import maps_from, maps_record, unpack
from seedbed.classifier import ClassifierConfig
from seedbed.config import Settings
from seedbed.data.jitter import ColorJitter
from seedbed.data.transforms import TrainTransform, views
from seedbed.methods import build_for, method_class
from seedbed.methods.cam import Cam
from seedbed.methods.maps import CamConfig, high_res, max_normalised, range_normalized, strided_cam
from seedbed.methods.seam import (
    Seam,
    SeamConfig,
    classification_loss,
    ecr_loss,
    er_loss,
    labelled,
    rvmin_loss,
    seam_losses,
    strongest_class,
    with_background,
)
from seedbed.models import build_network
from seedbed.models.seam import SeamNet, enlarged
from seedbed.optim import PolySGD
from seedbed.types import Batch, Maps, UserError

LEAVES = ("cam1", "cam_rv1", "cam2", "cam_rv2")


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the official numbers -----------------------------------------------------------------------------


@pytest.fixture
def case(golden: Any) -> dict[str, Any]:
    arrays = golden("seam")
    return {name: torch.from_numpy(value) if value.ndim else float(value) for name, value in arrays.items()}


def terms_of(case: dict[str, Any], leaves: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return seam_losses((leaves["cam1"], leaves["cam_rv1"]), (leaves["cam2"], leaves["cam_rv2"]), case["labels"])


@pytest.mark.golden
def test_every_term(case: dict[str, Any]) -> None:
    labels, size = case["labels"], case["cam2"].shape[2:]
    assert tuple(size) == tuple(int(side * SeamConfig().second_scale) for side in case["cam1"].shape[2:])
    for number in (1, 2):
        cam, revised = case[f"cam{number}"], case[f"cam_rv{number}"]
        assert float(classification_loss(cam, labels)) == pytest.approx(case[f"seam_loss_cls{number}"], rel=1e-5)
        assert float(rvmin_loss(revised, labels)) == pytest.approx(case[f"seam_loss_rvmin{number}"], rel=1e-5)
        for name, value in (("cam", cam), ("cam_rv", revised)):
            stored = case[f"norm_{name}{number}" + ("_small" if number == 1 else "")]
            torch.testing.assert_close(enlarged(labelled(value, labels), size), stored, rtol=1e-5, atol=1e-6)
    cam1, cam2 = case["norm_cam1_small"], case["norm_cam2"]
    assert float(er_loss(cam1, cam2)) == pytest.approx(case["seam_loss_er"], rel=1e-5)
    assert float(ecr_loss(with_background(cam2), case["norm_cam_rv1_small"])) == pytest.approx(case["seam_loss_ecr1"], rel=1e-5)
    assert float(ecr_loss(with_background(cam1), case["norm_cam_rv2"])) == pytest.approx(case["seam_loss_ecr2"], rel=1e-5)


@pytest.mark.golden
def test_their_sum_and_its_gradients(case: dict[str, Any]) -> None:
    leaves = {name: case[name].clone().requires_grad_() for name in LEAVES}
    terms = terms_of(case, leaves)
    found = {name: float(term.detach()) for name, term in terms.items()}
    assert found["cls"] + found["cls2"] + found["rvmin"] == pytest.approx(case["seam_loss_cls"], rel=1e-5)  # the official cls has rvmin
    assert found["cls"] == pytest.approx(case["seam_loss_cls1"] / 2, rel=1e-5)
    assert found["er"] == pytest.approx(case["seam_loss_er"], rel=1e-5) and found["ecr"] == pytest.approx(case["seam_loss_ecr"], rel=1e-5)
    total = torch.stack(list(terms.values())).sum()
    assert float(total.detach()) == pytest.approx(case["seam_loss"], rel=1e-5)
    total.backward()
    for name in LEAVES:
        expected = case[f"seam_grad_{name}"]
        torch.testing.assert_close(leaves[name].grad, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.golden
def test_add_ons_blend_into_the_first_branch(case: dict[str, Any]) -> None:
    """HFPL: 0.8 of the first branch's classification and 0.2 of another one; the rest is SEAM's."""
    assert case["hfpl_loss_cls1_gap"] == pytest.approx(float(classification_loss(case["cam1"], case["labels"])), rel=1e-5)
    terms, blend = terms_of(case, case), case["hfpl_lambda"]
    share = 0.5
    cls = (1 - blend) * float(terms["cls"]) + share * blend * case["hfpl_loss_cls_is1"]
    assert cls == pytest.approx(case["hfpl_loss_cls1"] / 2, rel=1e-5)
    rest = sum(float(term) for name, term in terms.items() if name != "cls")
    assert cls + rest + case["hfpl_loss_fs1"] == pytest.approx(case["hfpl_loss"], rel=1e-5)
    for name in ("rvmin1", "rvmin2", "cls2", "er", "ecr1", "ecr2", "ecr"):
        assert case[f"hfpl_loss_{name}"] == case[f"seam_loss_{name}"]


# --- by hand, in float64 --------------------------------------------------------------------------------


def test_max_normalised_by_hand() -> None:
    scores = torch.tensor([-2.0, 0.5, 1.0, 3.0], dtype=torch.float64).view(1, 1, 2, 2)
    expected = [0.0, (0.5 - 1e-5) / (3 + 1e-5), (1 - 1e-5) / (3 + 1e-5), (3 - 1e-5) / (3 + 1e-5)]
    assert max_normalised(scores).flatten().tolist() == pytest.approx(expected, abs=1e-15)
    assert max_normalised(scores + 3).flatten()[0] == 0  # the smallest value is 0, wherever it was
    assert not max_normalised(-scores.abs()).any()


def test_losses_by_hand() -> None:
    labels = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    cam = torch.tensor([[[[9.0, 9.0]], [[1.0, 3.0]], [[-2.0, 0.0]]]], dtype=torch.float64)
    expected = -(np.log(1 / (1 + np.exp(-2.0))) + np.log(1 - 1 / (1 + np.exp(1.0)))) / 2
    assert float(classification_loss(cam, labels)) == pytest.approx(expected, abs=1e-12)
    assert float(rvmin_loss(cam, labels, 0.5)) == pytest.approx(1.0)
    assert float(rvmin_loss(cam, labels, 1.0)) == pytest.approx(2.0)
    assert float(rvmin_loss(-cam, labels, 1.0)) == 0  # the absent class's 0 is the largest
    one = torch.tensor([[[[0.0, 0.0]], [[0.2, 0.9]], [[0.6, 0.3]]]], dtype=torch.float64)
    other = torch.tensor([[[[1.0, 1.0]], [[0.1, 0.5]], [[0.6, 0.0]]]], dtype=torch.float64)
    assert float(er_loss(one, other)) == pytest.approx((0.1 + 0.4 + 0.0 + 0.3) / 4)
    full = with_background(one)
    assert full[0, 0].flatten().tolist() == pytest.approx([0.4, 0.1])
    assert strongest_class(full)[0, 1:].flatten().tolist() == pytest.approx([0.0, 0.9, 0.6, 0.0])
    differences = sorted([0.6, 0.9, 0.1, 0.4, 0.0, 0.0], reverse=True)
    assert float(ecr_loss(full, other, 0.5)) == pytest.approx(sum(differences[:3]) / 3)
    assert float(ecr_loss(full, other, 0.01)) == pytest.approx(differences[0])  # at least one


def test_the_whole_loss_by_hand() -> None:
    """Two branches of one size: what the official loss adds up, written out."""
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    a, b, c, d = (randn(2, 4, 5, 6, seed=s).double() for s in range(4))
    found = seam_losses((a, b), (c, d), labels)
    total = 0.0
    norm = [labelled(x, labels) for x in (a, b, c, d)]
    for cam, revised in ((a, b), (c, d)):
        mean = cam[:, 1:].mean((2, 3))
        total += float(F.binary_cross_entropy_with_logits(mean, labels)) / 2
        top = (revised[:, 1:] * labels[:, :, None, None]).amax(1).flatten(1).sort(1).values[:, : 30 // 4]
        total += float(top.clamp(min=0).mean()) / 2
    total += float((norm[0] - norm[2])[:, 1:].abs().mean())
    for reference, revised in ((norm[2], norm[1]), (norm[0], norm[3])):
        reference = torch.cat([1 - reference[:, 1:].amax(1, keepdim=True), reference[:, 1:]], 1)
        top = reference[:, 1:].amax(1, keepdim=True)
        reference = torch.cat([reference[:, :1], torch.where(reference[:, 1:] == top, reference[:, 1:], 0.0)], 1)
        total += float((reference - revised).abs().flatten(1).sort(1, descending=True).values[:, : int(4 * 30 * 0.2)].mean())
    assert float(sum(found.values())) == pytest.approx(total, abs=1e-12)
    weighted = seam_losses((a, b), (c, d), labels, SeamConfig(rvmin_weight=0, er_weight=2, ecr_weight=0.5))
    assert float(weighted["rvmin"]) == 0
    assert float(weighted["er"]) == pytest.approx(2 * float(found["er"])) and weighted["cls"] == found["cls"]
    assert float(weighted["ecr"]) == pytest.approx(float(found["ecr"]) / 2)


# --- properties -----------------------------------------------------------------------------------------


def test_order_of_pictures_does_not_matter() -> None:
    labels = torch.eye(3)
    maps = [randn(3, 4, 6, 6, seed=s) for s in range(2)] + [randn(3, 4, 3, 3, seed=s) for s in (2, 3)]
    order = [2, 0, 1]
    one = seam_losses((maps[0], maps[1]), (maps[2], maps[3]), labels)
    other = seam_losses((maps[0][order], maps[1][order]), (maps[2][order], maps[3][order]), labels[order])
    for name in one:
        torch.testing.assert_close(one[name], other[name])


@pytest.mark.parametrize("labels", [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]], ids=["none", "one", "all"])
def test_any_number_of_labels(labels: list[float]) -> None:
    leaves = [randn(2, 4, 8, 8, seed=s).requires_grad_() for s in range(2)] + [randn(2, 4, 4, 4, seed=s).requires_grad_() for s in (2, 3)]
    given = torch.tensor([labels, labels])
    terms = seam_losses((leaves[0], leaves[1]), (leaves[2], leaves[3]), given)
    torch.stack(list(terms.values())).sum().backward()
    assert all(bool(torch.isfinite(leaf.grad).all()) for leaf in leaves if leaf.grad is not None)
    absent = [c + 1 for c, there in enumerate(labels) if not there]
    revised = leaves[1].grad
    assert revised is not None and not revised[:, absent].any(), "an absent class is pulled at by more than the classification"
    if not any(labels):
        assert float(terms["rvmin"].detach()) == 0 == float(terms["er"].detach())


# --- the method -----------------------------------------------------------------------------------------

SIDE = 48
COLORS = ((220, 30, 30), (30, 200, 40), (40, 60, 230))


def made(number: int, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a patch in the color of each class."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(90, 160, (side, side + 4, 3), dtype=np.uint8)
    labels = np.array([number % 2, number % 3 == 0, number % 5 in (1, 2)], np.uint8)
    for c in np.flatnonzero(labels):
        y, x = rng.integers(0, side - 16, 2)
        pixels[y : y + 16, x : x + 16] = COLORS[c]
    return pixels, labels


def batch_of(numbers: range) -> Batch:
    transform = TrainTransform(resize_low=0, resize_high=0, crop=SIDE)
    pairs = [made(n) for n in numbers]
    images = torch.stack([transform(pixels, np.random.default_rng(i)) for i, (pixels, _) in enumerate(pairs)])
    return Batch(images, torch.tensor(np.stack([labels for _, labels in pairs])).float())


@pytest.fixture(scope="module")
def trained() -> tuple[SeamNet, list[dict[str, float]]]:
    torch.manual_seed(0)
    model = Seam.build("small", 3).train()
    head = model.classifier_parameters()
    own = {id(p) for p in head}
    groups = [{"params": [p for p in model.parameters() if id(p) not in own]}, {"params": head, "lr": 0.05}]
    optimizer = PolySGD(groups, 0.02, 5e-4, 100, momentum=0.9)
    seam, lines = Seam(), []
    for step in range(40):
        optimizer.zero_grad()
        out = seam.loss(model, batch_of(range(8 * (step % 4), 8 * (step % 4) + 8)), step)
        torch.stack(list(out.losses.values())).sum().backward()
        optimizer.step()
        lines.append({name: float(term.detach()) for name, term in out.losses.items()})
    return model, lines


def test_what_an_add_on_is_given() -> None:
    torch.manual_seed(0)
    model, batch = Seam.build("small", 3).eval(), batch_of(range(4))
    out = Seam().loss(model, batch, 0)
    assert set(out.losses) == {"cls", "cls2", "rvmin", "er", "ecr"} and (out.classification, out.share) == ("cls", 0.5)
    logits = model.forward_seam(batch.images_nchw).logits
    assert out.logits_nchw is not None and out.background_n1hw is not None
    assert torch.equal(torch.cat([out.background_n1hw, out.logits_nchw], 1), logits) and logits.shape[1:] == (4, SIDE // 4, SIDE // 4)
    mean = enlarged(out.logits_nchw, (SIDE, SIDE)).mean((2, 3))
    torch.testing.assert_close(out.losses["cls"], out.share * F.multilabel_soft_margin_loss(mean, batch.labels_nc))


def test_training_makes_the_losses_fall(trained: tuple[SeamNet, list[dict[str, float]]]) -> None:
    model, lines = trained
    first, last = ({name: np.mean([line[name] for line in part]) for name in part[0]} for part in (lines[:8], lines[-8:]))
    assert sum(last.values()) < 0.8 * sum(first.values()), (first, last)
    assert last["cls"] < 0.75 * first["cls"] and last["ecr"] < first["ecr"], (first, last)
    with torch.no_grad():
        _, cam, revised = model.eval().forward_seam(batch_of(range(4)).images_nchw)
    one, other = (max_normalised(x)[:, 1:] for x in (cam, revised))
    assert float((one - other).abs().mean()) > 0.02, "the pixel correlation module changes nothing"
    model.train()


def views_of(number: int, **more: Any) -> Any:
    pixels, labels = made(number, 37)
    return views(f"p{number}", pixels, **more), labels


@pytest.mark.parametrize("output", ["cam_rv", "cam"])
def test_maps_are_those_of_the_official_order_of_work(trained: tuple[SeamNet, list[dict[str, float]]], output: Any) -> None:
    """Every view's map to the network's input, then to the picture, mirrored back, added up, normalized: from the artefact, the same."""
    model = trained[0].eval()
    for number in (1, 3, 6, 21):
        seen, labels = views_of(number)
        maps = maps_from(maps_record(Seam(SeamConfig(output=output)).localise(model, seen, labels), 0.0))
        total = 0.0
        for view in seen.tensors:
            with torch.no_grad():
                found = model.forward_seam(view)
            full = F.interpolate(getattr(found, output), (seen.height, seen.width), mode="bilinear", align_corners=False)[:, 1:]
            total = total + full[0] + full[1].flip(-1)
        expected = range_normalized(np.asarray(total)[np.flatnonzero(labels)])
        np.testing.assert_allclose(high_res(maps), expected, atol=2e-5)
        assert high_res(maps).shape == (int(labels.sum()), 37, 41) and high_res(maps).dtype == np.float32
        stride4 = strided_cam(maps)
        assert stride4.shape == (int(labels.sum()), 10, 11) and stride4.min() >= 0 and stride4.max() <= 1


def test_localise_leaves_no_trace(trained: tuple[SeamNet, list[dict[str, float]]]) -> None:
    model = trained[0].train()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    seen, labels = views_of(3)
    one, other = Seam().localise(model, seen, labels), Seam().localise(model, seen, labels)
    assert all(np.array_equal(a, b) for a, b in zip(one.sums, other.sums, strict=True))
    assert all(m.training for m in model.modules()) and all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(p.grad is None or p.requires_grad for p in model.parameters())
    alone = Seam().localise(model, views_of(3, flip=False, scales=(1.0,))[0], labels)
    assert [s.shape[1:] for s in alone.sums] == [(10, 11)] and alone.inputs == ((37, 41),)
    smaller = Seam().localise(model, views_of(3, long_side=20)[0], labels)
    assert smaller.inputs[0] == (18, 20) and high_res(smaller).shape[1:] == (37, 41)


def test_a_picture_without_a_class(trained: tuple[SeamNet, list[dict[str, float]]]) -> None:
    seen, labels = views_of(3)
    maps = Seam().localise(trained[0], seen, np.zeros_like(labels))
    assert high_res(maps).shape == (0, 37, 41) and strided_cam(maps).shape == (0, 10, 11)
    assert maps_from(maps_record(maps, 0.0)).inputs == maps.inputs


def test_a_plain_cam_of_the_same_network(trained: tuple[SeamNet, list[dict[str, float]]]) -> None:
    seen, labels = views_of(3)
    maps = Cam().localise(trained[0], seen, labels)
    assert not maps.inputs and high_res(maps).shape == (int(labels.sum()), 37, 41)


def test_another_network_is_refused() -> None:
    seen, labels = views_of(3)
    with pytest.raises(UserError, match="SEAM needs its own network") as error:
        Seam().localise(build_network("small", 3), seen, labels)
    assert error.value.remedy and error.value.field == "--method"


def test_settings_and_registry() -> None:
    assert method_class("seam") is Seam and isinstance(build_for("seam", "small", 3), SeamNet)
    assert type(build_for("cam", "small", 3)) is type(build_for("rib", "small", 3)) is type(build_network("small", 3))
    SeamConfig().check("seam.")
    for wrong in ({"second_scale": 0.0}, {"ecr_share": 1.5}, {"rvmin_weight": -1.0}, {"output": "both"}):
        with pytest.raises(UserError):
            SeamConfig(**wrong).check("seam.")  # type: ignore[arg-type]


# --- what a run is made of ------------------------------------------------------------------------------


def test_preset_is_the_official_training() -> None:
    """RECIPES, section 5."""
    c = ClassifierConfig.named("seam", weights="x.params").resolved()
    c.check("classifier.")
    assert (c.backbone, c.epochs, c.batch, c.lr, c.lr_classifier_factor, c.weight_decay) == ("resnet38", 8, 8, 0.01, 10, 5e-4)
    assert (c.schedule, c.power, c.momentum, c.trained, c.batch_norm, c.optimizer) == ("poly", 0.9, None, "stage3", "fixed", "sgd")
    t = c.transform
    assert (t.resize_low, t.resize_high, t.crop, t.flip, t.jitter) == (448, 768, 448, True, ColorJitter(0.3, 0.3, 0.3, 0.1))
    assert 10582 // c.batch * c.epochs == 10576
    assert ClassifierConfig.named("irn") == ClassifierConfig()
    assert c.with_preset("irn") == ClassifierConfig(weights="x.params").resolved()
    with pytest.raises(UserError, match="none of its values is set"):
        ClassifierConfig(preset="seam").check("classifier.")


def test_jitter_is_off_and_changes_no_key() -> None:
    plain, on = TrainTransform(crop=32), TrainTransform(crop=32, jitter=ColorJitter())
    fields = {f.name for f in dataclasses.fields(TrainTransform)}
    assert set(plain.to_dict(only_key=True)) == fields - {"jitter"} and "jitter" in plain.to_dict()
    assert set(on.to_dict(only_key=True)) == fields and plain.key() != on.key()
    assert "preset" not in ClassifierConfig().to_dict(only_key=True)
    pixels, _ = made(3, 60)
    jittered = on(pixels, np.random.default_rng(5))
    assert not torch.equal(jittered, plain(pixels, np.random.default_rng(5)))
    assert torch.equal(jittered, on(pixels, np.random.default_rng(5)))
    small = TrainTransform(resize_low=0, resize_high=0, flip=False, crop=64, jitter=ColorJitter())
    rng = np.random.default_rng(8)
    changed = ColorJitter()(pixels, rng)  # jitter first, then rows and columns; what lies around stays the mean color
    expected = TrainTransform(resize_low=0, resize_high=0, flip=False, crop=64)(changed, rng)
    assert torch.equal(small(pixels, np.random.default_rng(8)), expected)


def test_records_of_other_methods_keep_their_bytes() -> None:
    sums = [np.arange(6, dtype=np.float32).reshape(1, 2, 3)]
    plain = Maps("p", 8, 12, np.array([1]), (1.0,), sums)
    record = maps_record(plain, 0.0)
    assert unpack(record["log"]) == {} and set(record) == {f.name for f in MAPS} - {"hash"}
    back = maps_from(record)
    assert back.inputs == () and np.array_equal(high_res(back), high_res(plain))
    logged = dataclasses.replace(plain, log={"loss": [1.0, 2.0]}, inputs=((8, 12),))
    other = maps_record(logged, 0.0)
    assert record_hash(other, MAPS) != record_hash(record, MAPS)
    back = maps_from(other)
    assert back.inputs == ((8, 12),) and back.log == {"loss": [1.0, 2.0]}
    assert not np.array_equal(high_res(back), high_res(plain))


def test_settings_are_settings() -> None:
    assert isinstance(SeamConfig(), Settings) and SeamConfig().key() != SeamConfig(output="cam").key()
    assert Seam(SeamConfig(), CamConfig(scales=(1.0,))).cam.scales == (1.0,)
