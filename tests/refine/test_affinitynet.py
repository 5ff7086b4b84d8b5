"""AffinityNet against numbers of the official code, its network's shapes, and what its loss does where there is nothing to learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made_labels import one_hot

from seedbed.artefacts.records import SCORE_STEPS, scored_label_record, scores_from
from seedbed.models.affinity import AffinityNet
from seedbed.refine.affinitynet import pooled, walk_maps, walked
from seedbed.refine.affinitynet_loss import affinity_losses, pair_affinity, pair_labels, reduced, reduced_labels, windows
from seedbed.refine.affinitynet_settings import AffinityConfig
from seedbed.refine.crf import with_background
from seedbed.refine.random_walk import affinitynet_affinity, affinitynet_radius, walk
from seedbed.refine.settings import RefineConfig
from seedbed.types import IGNORE, UserError

# --- golden numbers ----------------------------------------------------------------------------------


@pytest.mark.golden
def test_pairs_and_their_affinity(golden: Any) -> None:
    case = golden("affinitynet")
    f9, radius = torch.from_numpy(case["f9"]), int(case["radius"])
    flat = torch.arange(f9.shape[2] * f9.shape[3]).reshape(1, *f9.shape[2:])
    ends = [(source.flatten(), partner.flatten()) for source, partner in windows(flat, radius)]
    np.testing.assert_array_equal(ends[0][0], case["ind_from"])
    np.testing.assert_array_equal(torch.stack([partner for _, partner in ends]), case["ind_to"])
    np.testing.assert_allclose(pair_affinity(F.elu(f9), radius), case["aff_sparse"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(affinitynet_affinity(F.elu(f9)[0], radius, 1).dense(), case["aff_dense"], atol=1e-5, rtol=0)


@pytest.mark.golden
def test_short_sides(golden: Any) -> None:
    case = golden("affinitynet")
    f9 = torch.from_numpy(case["small_f9"])
    assert affinitynet_radius((f9.shape[2], f9.shape[3]), int(case["radius"])) == int(case["small_radius_hfpl"])
    np.testing.assert_allclose(pair_affinity(F.elu(f9), int(case["small_radius_hfpl"])), case["small_aff_sparse_hfpl"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(pair_affinity(F.elu(f9), int(case["radius"])), case["small_aff_sparse_psa"], atol=1e-5, rtol=0)
    dense = affinitynet_affinity(F.elu(f9)[0], int(case["radius"]), 1).dense()
    np.testing.assert_allclose(dense, case["small_aff_dense_hfpl"], atol=1e-5, rtol=0)


@pytest.mark.golden
@pytest.mark.parametrize("whose", ["hfpl", "psa"])
def test_walk(golden: Any, whose: str) -> None:
    case = golden("affinitynet")
    alpha, beta, squarings = case[f"{whose}_params_alpha_beta_logt"]
    config = AffinityConfig(alpha=alpha, beta=beta, squarings=int(squarings), walk_radius=int(case["radius"]))
    f9, channels = torch.from_numpy(case["f9"][0]), [0, *(case["cam_keys"] + 1)]
    maps = torch.from_numpy(with_background(case["cams"], alpha))
    low = pooled(maps, 8)
    if whose == "hfpl":
        np.testing.assert_allclose(low, case["cam_low"][channels], atol=1e-5, rtol=0)
        transition = affinitynet_affinity(F.elu(f9), config.walk_radius, beta).transition()
        for _ in range(int(squarings)):
            transition = transition @ transition
        np.testing.assert_allclose(transition, case["hfpl_transition"], atol=5e-4, rtol=0)
    after = walk(low, affinitynet_affinity(F.elu(f9), config.walk_radius, beta), config.steps)
    np.testing.assert_allclose(after, case[f"{whose}_rw_low"][channels], atol=2e-4, rtol=0)
    assert not np.delete(case[f"{whose}_rw_low"], channels, 0).any()
    up = walked(f9, maps, config)
    height, width = case["image_size"]
    np.testing.assert_allclose(up, case[f"{whose}_rw_up_labelled"][:, :height, :width], atol=2e-4, rtol=0)
    labels = np.array(channels)[up.argmax(0)]
    assert (labels != case[f"{whose}_pred"]).mean() <= 1e-3


@pytest.mark.golden
def test_labels(golden: Any) -> None:
    case = golden("affinitynet")
    scores = case["lab_prob_cropped"].transpose(2, 0, 1).reshape(2, int(case["lab_n_labels"]), *case["lab_prob_cropped"].shape[:2])
    stride = scores.shape[2] // len(case["lab_label"])
    np.testing.assert_allclose(
        reduced(scores, stride).reshape(-1, *case["lab_label"].shape).transpose(1, 2, 0), case["lab_pooled"], atol=1e-6
    )
    labels = reduced_labels(scores, stride)
    np.testing.assert_array_equal(labels, case["lab_label"])
    kept = scores_from(scored_label_record("a", np.zeros(scores.shape[2:], np.uint8), scores, 0.0))
    np.testing.assert_array_equal(reduced_labels(kept / np.float32(SCORE_STEPS), stride), case["lab_label"])
    pairs = pair_labels(torch.from_numpy(labels)[None], int(case["radius"]))
    for found, name in zip(pairs, ("bg_pos", "fg_pos", "neg"), strict=True):
        np.testing.assert_array_equal(found[0].float(), case[f"lab_{name}"])


@pytest.mark.golden
def test_losses(golden: Any) -> None:
    case = golden("affinitynet")
    f9, labels = torch.from_numpy(case["loss_f9"]).requires_grad_(), torch.from_numpy(case["loss_label_maps"])
    radius = int(case["radius"])
    np.testing.assert_allclose(pair_affinity(F.elu(f9), radius).detach(), case["loss_aff"], atol=1e-5, rtol=0)
    np.testing.assert_allclose([p.sum() for p in pair_labels(labels, radius)], case["loss_counts"], rtol=1e-6)
    losses = affinity_losses(f9, labels, radius)
    for value, name in zip(losses, ("bg", "fg", "neg"), strict=True):
        np.testing.assert_allclose(value.detach(), case[f"loss_{name}_loss"], rtol=1e-4)
    total = torch.stack(list(losses.terms().values())).sum()
    np.testing.assert_allclose(total.detach(), case["loss_loss"], rtol=1e-4)
    (gradient,) = torch.autograd.grad(total, f9)
    np.testing.assert_allclose(gradient, case["loss_grad_f9"], rtol=1e-3, atol=1e-3 * np.abs(case["loss_grad_f9"]).max())


# --- network -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backbone", "stride"), [("resnet38", 8), ("resnet18", 8), ("resnet50", 8), ("small", 4)])
def test_shapes_of_any_backbone_and_size(backbone: str, stride: int) -> None:
    with torch.device("meta"):
        model = AffinityNet(backbone)
        assert model.stride == stride
        for height, width in ((64, 64), (37, 50), (1, 5)):
            out = model(torch.empty(2, 3, height, width))
            assert out.shape == (2, 448, -(-height // stride), -(-width // stride))
    model.train_from("stage3")
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == {id(p) for p in (*model.backbone_parameters(), *model.new_parameters())}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert "backbone.conv1a.weight" in frozen or "backbone.conv1.weight" in frozen
    assert all(
        "bn" in name or "downsample" in name or name.startswith(("backbone.conv1", "backbone.b2", "backbone.layer1")) for name in frozen
    )
    norms = {f"{n}.{p}" for n, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d) for p in ("weight", "bias")}
    assert norms <= frozen
    model.train_from("all")
    assert all(p.requires_grad for p in model.parameters())


def test_layers_of_the_recipe() -> None:
    """RECIPES, section 4b: channels, and the names of PSA's checkpoints."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in AffinityNet("resnet38").state_dict().items()}
    assert shapes["f8_3.weight"] == (64, 512, 1, 1) and shapes["f8_4.weight"] == (128, 1024, 1, 1)
    assert shapes["f8_5.weight"] == (256, 4096, 1, 1) and shapes["f9.weight"] == (448, 448, 1, 1)


def test_a_picture_walks() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    for backbone, size in (("small", (30, 45)), ("resnet18", (90, 100)), ("small", (1, 1)), ("resnet18", (9, 60))):
        net = AffinityNet(backbone).eval()
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        maps = rng.random((2, *size), dtype=np.float32)
        out = walk_maps(net, pixels, maps, AffinityConfig(backbone=backbone))
        assert out.shape == (3, *size) and out.dtype == np.float32 and np.isfinite(out).all()
        with pytest.raises(ValueError, match="don't go with a picture"):
            walk_maps(net, pixels, maps[:, :, :-1], AffinityConfig(backbone=backbone))
        nothing = walk_maps(net, pixels, maps[:0], AffinityConfig(backbone=backbone))
        assert nothing.shape == (1, *size) and (nothing > 0).all()


# --- labels and loss by hand -------------------------------------------------------------------------


def test_blocks_of_sure_pixels() -> None:
    """The majority decides, and what nobody is sure of is background only where there is much of it."""
    labels = np.full((2, 8), IGNORE, np.uint8)
    labels[:, 0:2] = 1
    labels[:, 2:4] = [[1, IGNORE], [1, 1]]
    labels[:, 4:6] = 0
    labels[:, 6:8] = [[0, IGNORE], [IGNORE, 0]]
    scores = one_hot(labels)
    np.testing.assert_array_equal(reduced_labels(scores, 1), labels)
    np.testing.assert_array_equal(reduced_labels(scores, 2), [[1, 1, 0, 0]])
    np.testing.assert_array_equal(reduced_labels(np.zeros((2, 3, 2, 2), np.float32), 2), [[IGNORE]])
    assert (reduced_labels(one_hot(np.full((4, 4), IGNORE, np.uint8)), 2) == IGNORE).all()


@pytest.mark.parametrize("value", [IGNORE, 0, 3])
def test_a_batch_of_one_label(value: int) -> None:
    torch.manual_seed(0)
    f9 = torch.randn(2, 6, 11, 12, requires_grad=True)
    losses = affinity_losses(f9, torch.full((2, 11, 12), value, dtype=torch.uint8), 5)
    alive = {0: {"background"}, 3: {"foreground"}}.get(value, set())
    assert {name for name, loss in losses._asdict().items() if loss != 0} == alive
    (gradient,) = torch.autograd.grad(sum(losses.terms().values()), f9)
    assert bool(gradient.isfinite().all()) and bool(gradient.any()) == bool(alive)


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (3, 3)])
def test_maps_too_small_for_pairs(size: tuple[int, int]) -> None:
    f9 = torch.randn(1, 4, *size, requires_grad=True)
    total = sum(affinity_losses(f9, torch.zeros(1, *size, dtype=torch.uint8), 5).terms().values())
    assert total == 0
    total.backward()  # type: ignore[union-attr]


def test_gradient_in_double_precision() -> None:
    torch.manual_seed(1)
    features = torch.rand(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: pair_affinity(f, 3), (features,))


# --- settings ----------------------------------------------------------------------------------------


def test_defaults_are_the_official_values() -> None:
    """RECIPES, section 4b."""
    c = AffinityConfig()
    c.check("refine.affinitynet.")
    assert (c.backbone, c.batch, c.epochs, c.crop, c.radius, c.lr, c.weight_decay, c.momentum) == (
        "resnet38",
        8,
        8,
        448,
        5,
        0.01,
        5e-4,
        None,
    )
    assert (c.alpha, c.beta, c.steps, c.walk_radius, c.lr_new_factor) == (6, 8, 64, 5, 10)
    assert (c.resolved().trained, c.resolved().batch_norm) == ("stage3", "fixed")
    psa = RefineConfig.named("psa").affinitynet
    psa.check()
    assert (psa.alpha, psa.steps, psa.lr) == (16, 256, 0.1)
    assert 10582 // c.batch * c.epochs == 10576
    assert c.replace(beta=5.0).training_key() == c.training_key() != c.replace(radius=4).training_key()
    assert RefineConfig.named("psa").alphas == (4, 32) and RefineConfig.named("hfpl").with_alphas(1, 24).alphas == (1, 24)


def test_settings_that_cannot_work() -> None:
    for changes in ({"crop": 0}, {"crop": 444}, {"batch": 0}, {"lr": 0.0}, {"radius": 1}, {"alpha": 0.0}):
        with pytest.raises(UserError):
            AffinityConfig(**changes).check("refine.affinitynet.")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="can't be downloaded") as error:
        AffinityConfig().check_used("refine.affinitynet.")
    assert error.value.field == "--refine.affinitynet.weights"
    AffinityConfig(backbone="resnet50").check_used("refine.affinitynet.")
