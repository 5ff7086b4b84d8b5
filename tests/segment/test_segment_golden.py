"""Segmenters against numbers of the official codes, through what a run calls. Every size and setting comes from the files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from seedbed.segment import losses
from seedbed.segment.augment import DeepLabCrop, DeepLabDraws, YudeWangCrop, YudeWangDraws
from seedbed.segment.losses import segmentation_loss
from seedbed.segment.settings import SegmenterConfig

pytestmark = pytest.mark.golden

Case = dict[str, np.ndarray]


# --- pictures -------------------------------------------------------------------------------------------


def test_deeplab_crops(golden: Any) -> None:
    case = golden("deeplab_v2")
    recipe = DeepLabCrop(int(case["crop_size"]), tuple(float(s) for s in case["aug_scales_list"]), True)
    for k in range(len(case["aug_image_ids"])):
        draws = DeepLabDraws(
            float(case["aug_scale"][k]), int(case["aug_start_h"][k]), int(case["aug_start_w"][k]), bool(case["aug_flip_draw"][k] < 0.5)
        )
        assert draws.flip == bool(case["aug_flip"][k]) and draws.scale in recipe.scales
        image, labels = recipe.apply(case[f"aug_image_{k}"], case[f"aug_label_{k}"], draws)
        np.testing.assert_array_equal(labels, case["train_labels"][k])
        np.testing.assert_allclose(image, case["train_images"][k], rtol=0, atol=1e-4)


def test_yudewang_crops(golden: Any) -> None:
    case = golden("deeplab_v1_resnet38")
    recipe = YudeWangCrop(int(case["crop_size"]), (0.5, 1.5), True)
    for k in range(len(case["aug_scale"])):
        left, top = (int(v) for v in case["aug_crop_draw_x_then_y"][k])
        shift = tuple(int(v) for v in case["aug_delta_hsv"][k])
        draws = YudeWangDraws(shift, bool(case["aug_flip_draw"][k] < 0.5), float(case["aug_scale"][k]), left, top)  # type: ignore[arg-type]
        assert draws.scale == pytest.approx(float(case["aug_scale_draw"][k]) + 0.5)
        from seedbed.segment.augment import scaled_size
        from seedbed.segment.hue import shift_hsv

        np.testing.assert_array_equal(shift_hsv(case[f"aug_image_{k}"], draws.hsv), case[f"aug_after_hsv_{k}"])
        assert scaled_size(case[f"aug_image_{k}"].shape, draws.scale) == tuple(case["aug_scaled_size"][k])
        image, labels = recipe.apply(case[f"aug_image_{k}"], case[f"aug_label_{k}"], draws)
        np.testing.assert_array_equal(labels, case["train_labels"][k])
        np.testing.assert_allclose(image, case["train_images"][k], rtol=0, atol=1e-4)


# --- losses and schedules ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "name"), [("plain", "plain"), ("balanced_half", "half"), ("balanced_dsrg", "dsrg")])
def test_balanced_losses(golden: Any, form: Any, name: str) -> None:
    case = golden("deeplab_v2")
    logits, labels = torch.from_numpy(case["bal_logits"]).requires_grad_(), torch.from_numpy(case["bal_labels"])
    loss = segmentation_loss(logits, labels, form)
    loss.backward()
    np.testing.assert_allclose(float(loss), float(case[f"bal_{name}_loss"]), rtol=1e-4)
    expected = case[f"bal_{name}_grad"]
    np.testing.assert_allclose(logits.grad, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())  # type: ignore[arg-type]
    assert float(case["bal_dsrg_min_prob"]) == losses.FLOOR


def test_losses_without_a_group(golden: Any) -> None:
    """The public code divides by nothing there; ours counts an empty group as 0."""
    case = golden("deeplab_v2")
    first = torch.from_numpy(case["bal_logits"][:1])
    labels = torch.from_numpy(case["bal_half_no_foreground_labels"])
    plain = float(segmentation_loss(first, labels, "plain"))
    np.testing.assert_allclose(plain, float(case["bal_plain_loss_no_foreground"]), rtol=1e-4)
    assert np.isnan(case["bal_half_loss_no_foreground"]) and float(segmentation_loss(first, labels, "balanced_half")) == pytest.approx(
        plain / 2
    )
    guarded = float(segmentation_loss(first, torch.from_numpy(case["bal_dsrg_no_foreground_labels"]), "balanced_dsrg"))
    np.testing.assert_allclose(guarded, float(case["bal_dsrg_loss_no_foreground"]), rtol=1e-4)
    assert np.isnan(case["bal_plain_loss_all_ignored"])
    assert float(segmentation_loss(first, torch.full_like(labels, 255), "plain")) == 0


@pytest.mark.parametrize("k", [0, 1])
def test_deeplab_v2_schedule(golden: Any, k: int) -> None:
    case = golden("deeplab_v2")
    steps, base = int(case[f"sched{k}_iter_max"]), float(case[f"sched{k}_base_lr"])
    config = SegmenterConfig(steps=steps, lr=base, lr_hold=int(case[f"sched{k}_lr_decay"]), power=float(case[f"sched{k}_power"]))
    rates, factors = config.rates(), np.array([1, config.lr_head_factor, 2 * config.lr_head_factor])
    for iteration, used in zip(case[f"sched{k}_iterations"], case[f"sched{k}_lr_used"], strict=True):
        np.testing.assert_allclose(base * factors * rates(int(iteration) - 1), used, rtol=1e-9)
    np.testing.assert_allclose(base * factors * rates(steps), case[f"sched{k}_lr_after_end"], rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize("k", [0, 1])
def test_deeplab_v1_schedule(golden: Any, k: int) -> None:
    case = golden("deeplab_v1_resnet38")
    base = float(case[f"sched{k}_base_lr"])
    config = SegmenterConfig.named("hfpl", steps=int(case[f"sched{k}_max_itr"]), lr=base, power=float(case[f"sched{k}_power"]))
    rates = config.rates()
    for iteration, used in zip(case[f"sched{k}_itr"], case[f"sched{k}_lr"], strict=True):
        np.testing.assert_allclose(base * np.array([1, 2, 10, 20]) * rates(int(iteration)), used, rtol=1e-9)
