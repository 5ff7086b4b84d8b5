"""Dense random fields: numbers of the official codes, and what must not end a run."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from seedbed.refine import crf as crf_module
from seedbed.refine.crf import (
    SEGMENTATION,
    DenseCrf,
    LabelCrfConfig,
    ScoreCrfConfig,
    label_crf,
    score_crf,
    segmentation_crf,
    with_background,
)
from seedbed.types import UserError

pytest.importorskip("pydensecrf")


def close_scores(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape and ours.dtype == np.float32
    assert np.abs(ours - theirs).mean() < 0.01
    assert (ours.argmax(0) == theirs.argmax(0)).mean() >= 0.99


@pytest.mark.golden
def test_label_form(golden: Any) -> None:
    case = golden("crf")
    pixels, n = case["image"], int(case["label_n"])
    for name, iterations in (("label_crf", 10), ("label_crf_t1", 1), ("label_crf_t5", 5)):
        ours = label_crf(pixels, case["label_in"], n, LabelCrfConfig(iterations=iterations))
        assert ours.dtype == np.uint8
        assert (ours == case[name]).mean() >= 0.99, name
    assert (label_crf(pixels, case["label21_in"], 21) == case["label21_crf"]).mean() >= 0.99


@pytest.mark.golden
def test_score_form(golden: Any) -> None:
    case = golden("crf")
    pixels, maps = case["image"], case["prob_in"]
    for alpha in (1, 4, 24):
        close_scores(score_crf(pixels, with_background(maps, alpha)), case[f"prob_alpha{alpha}"])
    four = with_background(maps, 4)
    close_scores(score_crf(pixels, four, ScoreCrfConfig(iterations=1)), case["prob_t1_alpha4"])
    close_scores(score_crf(pixels, four, scale_factor=2), case["prob_sf_alpha4"])


def settings(case: dict[str, np.ndarray], iterations: str) -> DenseCrf:
    names = {"crf_pos_xy": "gaussian_xy", "crf_pos_xy_std": "gaussian_xy", "crf_pos_w": "gaussian_weight", "crf_bi_xy": "bilateral_xy"}
    names |= {
        "crf_bi_xy_std": "bilateral_xy",
        "crf_bi_rgb": "bilateral_rgb",
        "crf_bi_rgb_std": "bilateral_rgb",
        "crf_bi_w": "bilateral_weight",
    }
    return DenseCrf(iterations=int(case[iterations]), **{ours: float(case[theirs]) for theirs, ours in names.items() if theirs in case})


def probabilities(logits: np.ndarray, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    import torch
    import torch.nn.functional as F

    enlarged = F.interpolate(torch.from_numpy(logits)[None], size, mode="bilinear", align_corners=align_corners)
    return enlarged[0].softmax(0).numpy()


@pytest.mark.golden
def test_deeplab_form(golden: Any) -> None:
    case = golden("deeplab_v2")
    assert settings(case, "crf_iter_max") == SEGMENTATION["deeplab"]
    pixels = case["infer_image"]
    prob = probabilities(case["crf_logits"], pixels.shape[:2], False)
    at = np.ix_(range(len(prob)), case["infer_prob_rows"], case["infer_prob_cols"])
    np.testing.assert_allclose(prob[at], case["crf_prob_slice"], atol=1e-4)
    ours = segmentation_crf(pixels, prob, "deeplab")
    assert (ours.argmax(0) == case["crf_label_demo"]).mean() >= 0.99
    assert np.abs(ours[at] - case["crf_score_demo_slice"]).mean() < 0.01
    once = crf_module.mean_field(pixels[:, :, ::-1], crf_module._energy(prob, pixels), SEGMENTATION["deeplab"].replace(iterations=1))
    assert np.abs(once[at] - case["crf_score_demo_t1_slice"]).mean() < 0.01
    wrapped = segmentation_crf(case["crf_image_main"][:, :, ::-1], prob, "deeplab")  # the picture that their evaluation script hands over
    assert (wrapped.argmax(0) == case["crf_label_main"]).mean() >= 0.99
    assert np.abs(wrapped[at] - case["crf_score_main_slice"]).mean() < 0.01


@pytest.mark.golden
def test_yudewang_form(golden: Any) -> None:
    case = golden("deeplab_v1_resnet38")
    assert settings(case, "crf_iters") == SEGMENTATION["yudewang"]
    pixels = case["crf_image"]
    prob = probabilities(case["crf_logits"], pixels.shape[:2], True)
    at = np.ix_(range(len(prob)), case["crf_rows"], case["crf_cols"])
    np.testing.assert_allclose(prob[at], case["crf_prob_slice"], atol=1e-4)
    assert (segmentation_crf(pixels, prob, "yudewang").argmax(0) == case["crf_label_t1"]).mean() >= 0.99
    for name, iterations in (("t1", 1), ("t10", 10)):
        ours = crf_module.mean_field(pixels, crf_module._energy(prob, pixels), SEGMENTATION["yudewang"].replace(iterations=iterations))
        assert (ours.argmax(0) == case[f"crf_label_{name}"]).mean() >= 0.99
        assert np.abs(ours[at] - case[f"crf_score_{name}_slice"]).mean() < 0.01


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_a_picture_of_few_pixels(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    labels = rng.integers(0, 3, size)
    assert label_crf(pixels, labels, 3).shape == size
    assert (label_crf(pixels, np.zeros(size, np.uint8), 1) == 0).all()
    scores = score_crf(pixels, with_background(rng.random((2, *size), dtype=np.float32), 4))
    np.testing.assert_allclose(scores.sum(0), 1, atol=1e-5)
    for form in ("deeplab", "yudewang"):
        assert np.isfinite(segmentation_crf(pixels, scores, form)).all()  # type: ignore[arg-type]


def test_a_picture_without_classes_is_background() -> None:
    scores = with_background(np.zeros((0, 4, 5)), 24)
    np.testing.assert_array_equal(scores, np.ones((1, 4, 5)))
    np.testing.assert_array_equal(score_crf(np.zeros((4, 5, 3), np.uint8), scores), np.ones((1, 4, 5)))


def test_the_same_bits_again() -> None:
    rng = np.random.default_rng(1)
    pixels, scores = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8), rng.random((3, 20, 30), dtype=np.float32)
    before = scores.copy()
    np.testing.assert_array_equal(score_crf(pixels, scores), score_crf(pixels, scores))
    np.testing.assert_array_equal(scores, before)


def test_what_does_not_fit_is_an_error() -> None:
    """One picture's error, which the stage sets aside by name, in place of a crash in the library."""
    pixels = np.zeros((4, 5, 3), np.uint8)
    for call in (
        lambda: label_crf(pixels, np.zeros((5, 4), np.uint8), 2),
        lambda: label_crf(pixels, np.full((4, 5), 2), 2),
        lambda: label_crf(pixels, np.full((4, 5), -1), 2),
        lambda: score_crf(pixels, np.zeros((2, 5, 4))),
        lambda: score_crf(pixels, np.full((2, 4, 5), np.nan)),
    ):
        with pytest.raises(ValueError):
            call()


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    with pytest.raises(UserError, match="pydensecrf is not installed"):
        label_crf(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8), 2)
