"""IRN against numbers of the official code, its network's shapes, and what its losses do where there is nothing to learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from seedbed.models.irn import IrnNet
from seedbed.refine.irn import irn_edge, walk_maps, walked
from seedbed.refine.irn_losses import irn_losses, loss_maps, pair_labels, path_affinity
from seedbed.refine.irn_settings import IrnConfig, IrnWalk
from seedbed.refine.random_walk import largest_on_paths
from seedbed.seeds import label_map
from seedbed.types import UserError

# --- golden numbers ----------------------------------------------------------------------------------


@pytest.mark.golden
@pytest.mark.parametrize("name", ["r5", "r10"])
def test_pair_labels(golden: Any, name: str) -> None:
    case = golden("irn")
    labels = pair_labels(torch.from_numpy(case["label_map"])[None], int(case[f"{name}_radius_floor"]) + 1, 21)
    for kind, found in labels._asdict().items():
        np.testing.assert_array_equal(found[0].float(), case[f"{name}_{kind}"])


@pytest.mark.golden
def test_losses(golden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = golden("irn")
    edge, displacement = (torch.from_numpy(case[f"loss_{name}_out"]).requires_grad_() for name in ("edge", "dp"))
    labels, radius = torch.from_numpy(case["loss_label_maps"]), int(case["loss_radius"])
    for name, found in loss_maps(edge, displacement, radius)._asdict().items():
        assert list(found.shape) == list(case[f"loss_{name}_map_shape"])
        np.testing.assert_allclose(found.double().sum().detach(), case[f"loss_{name}_map_sum"], rtol=1e-4)
        np.testing.assert_allclose(found[..., ::7, ::5].detach(), case[f"loss_{name}_map_slice"], rtol=1e-4, atol=1e-5)
    for part in (1 << 23, 1):  # the whole batch at once, and picture by picture
        monkeypatch.setattr("seedbed.refine.irn_losses.PART", part)
        losses = irn_losses(edge, displacement, labels, radius, 21)
        for name, value in losses._asdict().items():
            official = case[f"loss_{name}_loss" if name.startswith("dp") else f"loss_{name}_aff_loss"]
            np.testing.assert_allclose(value.detach(), official, rtol=1e-4)
        terms = losses.terms()
        np.testing.assert_allclose(2 * terms["pos"].detach(), case["loss_pos_aff_loss"], rtol=1e-4)
        total = sum(terms.values())
        np.testing.assert_allclose(total.detach(), case["loss_total_loss"], rtol=1e-4)
        for value, name in zip(torch.autograd.grad(total, (edge, displacement)), ("edge", "dp"), strict=True):
            official = case[f"loss_grad_{name}_out"]
            np.testing.assert_allclose(value, official, rtol=1e-3, atol=1e-3 * np.abs(official).max())


@pytest.mark.golden
@pytest.mark.parametrize("whose", ["irn", "rib"])
def test_labels_after_the_walk(golden: Any, whose: str) -> None:
    case = golden("irn")
    settings = IrnWalk(radius=int(case["radius"]), beta=float(case["beta"]), squarings=int(case["exp_times"]))
    maps = torch.from_numpy(case["x"]) ** (float(case["sem_rib_power"]) if whose == "rib" else 1)
    found = walked(maps, torch.from_numpy(case["edge"][0]), tuple(case["sem_img_size"]), settings).numpy()
    labels = label_map(found / found.max(), case["sem_keys"], float(case[f"sem_{whose}_bg_thres"]))
    assert (labels != case[f"sem_{whose}_label"]).mean() <= 1e-3


# --- network -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net() -> IrnNet:
    torch.manual_seed(0)
    return IrnNet("resnet18").eval()


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "small"])
def test_shapes_of_any_backbone_and_size(backbone: str) -> None:
    """Stride 4, rounded up; only the branches are trained."""
    model = IrnNet(backbone)
    for size in ((64, 64), (37, 50), (1, 5)):
        edge, displacement = model(torch.randn(2, 3, *size))
        small = -(-size[0] // 4), -(-size[1] // 4)
        assert edge.shape == (2, 1, *small) and displacement.shape == (2, 2, *small)
    (edge.sum() + displacement.sum()).backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("fc_")}
    branches = model.edge_parameters() + model.displacement_parameters()
    assert {id(p) for p in branches} == {id(p) for name, p in model.named_parameters() if name.startswith("fc_")}


def test_layers_of_the_recipe() -> None:
    """RECIPES, section 3: channels, groups, and the names of published checkpoints."""
    shapes = {name: tuple(value.shape) for name, value in IrnNet("resnet50").state_dict().items()}
    assert [shapes[f"fc_edge{i}.0.weight"][:2] for i in range(1, 6)] == [(32, 64), (32, 256), (32, 512), (32, 1024), (32, 2048)]
    assert shapes["fc_edge6.weight"] == (1, 160, 1, 1) and shapes["fc_edge6.bias"] == (1,)
    assert [shapes[f"fc_dp{i}.0.weight"][:2] for i in range(1, 7)] == [
        (64, 64),
        (128, 256),
        (256, 512),
        (256, 1024),
        (256, 2048),
        (256, 768),
    ]
    assert shapes["fc_dp7.0.weight"][:2] == (256, 448) and shapes["fc_dp7.3.weight"] == (2, 256, 1, 1) and "fc_dp7.3.bias" not in shapes
    assert shapes["mean_shift.running_mean"] == shapes["fc_dp7.4.running_mean"] == (2,)
    groups = {name: m.num_groups for name, m in IrnNet("resnet50").named_modules() if isinstance(m, torch.nn.GroupNorm)}
    assert {groups[f"fc_edge{i}.1"] for i in range(1, 6)} == {4}
    assert [groups[f"fc_dp{i}.1"] for i in range(1, 8)] == [8, 16, 16, 16, 16, 16, 16]


def test_backbone_keeps_its_statistics_and_the_shift_waits_for_inference(net: IrnNet) -> None:
    model = IrnNet("resnet18")
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model.mean_shift.running_mean[:] = torch.tensor([3.0, -1.0])
    x = torch.randn(2, 3, 40, 40)
    training = model.train()(x)[1]
    assert not model.backbone.training
    inference = model.eval()(x)[1]
    np.testing.assert_allclose((training - inference).mean((0, 2, 3)).detach(), [3, -1], atol=1e-5)
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_boundaries_are_those_of_picture_and_mirror(net: IrnNet) -> None:
    """The mirrored picture has the mirrored boundaries; padding is cut off; a picture beyond the padding is not cropped."""
    pixels = np.random.default_rng(0).integers(0, 256, (42, 60, 3), np.uint8)
    settings = IrnWalk(pad=0)
    edge = irn_edge(net, pixels, settings)
    assert edge.shape == (11, 15) and edge.min() >= 0 and edge.max() <= 1
    torch.testing.assert_close(irn_edge(net, np.ascontiguousarray(pixels[:, ::-1]), settings), edge.flip(-1))
    assert irn_edge(net, pixels, IrnWalk(pad=64)).shape == (11, 15)
    torch.testing.assert_close(irn_edge(net, pixels, IrnWalk(pad=40)), edge)
    assert not torch.allclose(irn_edge(net, pixels, IrnWalk(pad=0, flip=False)), edge)


def test_walk_of_a_picture(net: IrnNet) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (42, 57, 3), np.uint8)
    maps = rng.random((2, 11, 15), np.float32)
    found = walk_maps(net, pixels, maps, IrnConfig(walk=IrnWalk(pad=64)))
    assert found.shape == (2, 42, 57) and found.dtype == np.float32 and found.max() <= maps.max()
    assert walk_maps(net, pixels, maps[:0], IrnConfig()).shape == (0, 42, 57)
    one = walk_maps(net, pixels[:1, :1], maps[:, :1, :1], IrnConfig(walk=IrnWalk(pad=0)))
    assert one.shape == (2, 1, 1) and np.isfinite(one).all()
    with pytest.raises(ValueError, match="both have stride 4"):
        walk_maps(net, pixels, maps[:, :, :14], IrnConfig())


# --- losses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [255, 21, 0, 3])
def test_a_batch_of_one_label(value: int) -> None:
    """Nothing but ignored pixels: all losses are 0 and so are their gradients. Nothing but one label: only its own terms."""
    torch.manual_seed(0)
    edge, displacement = torch.randn(2, 1, 12, 16, requires_grad=True), torch.randn(2, 2, 12, 16, requires_grad=True)
    labels = torch.full((2, 12, 16), value, dtype=torch.uint8)
    losses = irn_losses(edge, displacement, labels, 5, 21)
    alive = {0: {"bg_pos", "dp_bg"}, 3: {"fg_pos", "dp_fg"}}.get(value, set())
    assert {name for name, loss in losses._asdict().items() if loss != 0} == alive
    gradients = torch.autograd.grad(sum(losses.terms().values()), (edge, displacement))
    assert all(bool(g.isfinite().all()) and bool(g.any()) == bool(alive) for g in gradients)


def test_gradient_in_double_precision() -> None:
    """Beside finite differences, for one path maximum after the other."""
    torch.manual_seed(1)
    edges = torch.rand(1, 6, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda e: path_affinity(e, 3), (edges,))


def test_largest_on_paths_says_where() -> None:
    edges = torch.rand(2, 9, 13)
    largest, places = largest_on_paths(edges, 4)
    torch.testing.assert_close(edges.flatten(1).gather(1, places.flatten(1).long()), largest.flatten(1))


# --- settings ----------------------------------------------------------------------------------------


def test_defaults_are_the_official_values() -> None:
    """RECIPES, section 3."""
    c = IrnConfig()
    c.check("refine.irn.")
    assert (c.backbone, c.weights, c.batch, c.epochs, c.crop, c.radius) == ("resnet50", "imagenet", 32, 3, 512, 10)
    assert (c.lr, c.lr * c.lr_displacement_factor, c.weight_decay, c.momentum) == (0.1, 1.0, 1e-4, None)
    assert (c.scale_low, c.scale_high, c.flip, c.precision) == (0.5, 1.5, True, "fp32")
    assert (c.walk.radius, c.walk.beta, c.walk.steps, c.walk.pad, c.walk.flip) == (5, 10, 256, 512, True)
    assert 10582 // c.batch * c.epochs == 990


def test_the_walk_is_no_part_of_the_training() -> None:
    base = IrnConfig()
    assert base.replace(**{"walk.beta": 5.0}).training_key() == base.training_key() != base.replace(radius=5).training_key()
    assert base.replace(**{"walk.beta": 5.0}).key() != base.key() == base.replace(log_every=1).key()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"crop": 0}, "crop"),
        ({"crop": 130}, "crop"),
        ({"crop": 64}, "crop"),
        ({"scale_low": 2.0}, "scale-low"),
        ({"lr": 0.0}, "lr"),
        ({"batch": 0}, "batch"),
        ({"walk.beta": 0.0}, "walk.beta"),
        ({"walk.radius": 0}, "walk.radius"),
    ],
)
def test_settings_that_cannot_work(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as error:
        IrnConfig().replace(**changes).check("refine.irn.")
    assert error.value.field == f"--refine.irn.{field}" and error.value.remedy
