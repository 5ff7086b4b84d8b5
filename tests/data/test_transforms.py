"""Transforms: the official numbers, IRN's recipe step by step, and generators that belong to the image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seedbed.data.transforms import MEAN, STD, TrainTransform, generator, normalise, rescale, views
from seedbed.types import UserError


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.golden
def test_official_inputs(golden: Callable[[str], dict[str, np.ndarray]]) -> None:
    case = golden("cam_resnet50")
    scales = tuple(float(s) for s in case["scales"])
    found = views("x", case["image"], scales)
    assert (found.height, found.width) == case["image"].shape[:2] and found.scales == scales
    for number, scale in enumerate(scales):
        assert (rescale(case["image"], scale) == case[f"image_s{number}"]).all(), scale
        assert (found.tensors[number].numpy() == case[f"input_s{number}"]).all(), scale


# --- generators ------------------------------------------------------------------------------------


@given(st.integers(), st.text(max_size=5), st.text(max_size=5), st.integers(0, 9))
def test_generator_is_a_function_of_its_four(seed: int, stage: str, ident: str, visit: int) -> None:
    def draw(*which: object) -> list[int]:
        return list(generator(*which).integers(0, 1 << 62, 3))  # type: ignore[arg-type]

    mine = draw(seed, stage, ident, visit)
    assert mine == draw(seed, stage, ident, visit)
    others = [
        (seed + 1, stage, ident, visit),
        (seed, stage + "x", ident, visit),
        (seed, stage, ident + "x", visit),
        (seed, stage, ident, visit + 1),
    ]
    assert all(draw(*other) != mine for other in others)
    assert draw(seed, stage + "a", ident) != draw(seed, stage, "a" + ident), "the four are kept apart"


def test_generator_is_the_same_tomorrow() -> None:
    """These numbers are part of every key: another stream is another code version."""
    rng = generator(3, "rib", "2007_000032", 1)
    assert [int(v) for v in rng.integers(0, 1000, 5)] == [966, 368, 274, 42, 398] and round(float(rng.random()), 12) == 0.441095848633


# --- pixels ----------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_normalise_is_the_formula(height: int, width: int, seed: int) -> None:
    pixels = picture(height, width, seed)
    wanted = ((pixels.astype(np.float64) / 255 - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)
    assert (normalise(pixels).numpy() == wanted).all()
    assert (normalise(pixels[:, ::-1]).numpy() == wanted[:, :, ::-1]).all(), "a mirrored view needs no copy first"


def test_rescale_rounds_half_to_even() -> None:
    assert rescale(picture(5, 7), 0.5).shape == (2, 4, 3)  # 2.5 -> 2, 3.5 -> 4
    assert rescale(picture(1, 3), 0.1).shape == (1, 1, 3)
    pixels = picture(5, 7)
    assert rescale(pixels, 1.0) is pixels


@settings(deadline=None, max_examples=30)
@given(st.integers(8, 60), st.integers(8, 60), st.integers(4, 80) | st.none(), st.booleans())
def test_views(height: int, width: int, long_side: int | None, flip: bool) -> None:
    pixels = picture(height, width)
    found = views("x", pixels, (1.0, 0.5, 2.0), flip, long_side)
    assert (found.id, found.height, found.width) == ("x", height, width)
    shrink = min(1.0, long_side / max(height, width)) if long_side else 1.0
    for scale, tensor in zip(found.scales, found.tensors, strict=True):
        size = [max(1, int(np.round(side * scale * shrink))) for side in (height, width)]
        assert list(tensor.shape) == [2 if flip else 1, 3, *size] and tensor.dtype == torch.float32
        assert not flip or torch.equal(tensor[1], tensor[0].flip(-1))
    assert shrink < 1 or torch.equal(found.tensors[0][0], normalise(pixels))


# --- IRN's recipe ----------------------------------------------------------------------------------


def recipe(pixels: np.ndarray, rng: np.random.Generator, low: int, high: int, crop: int) -> np.ndarray:
    """RECIPES section 1 in its own order: resize, normalise, mirror, crop."""
    height, width = pixels.shape[:2]
    scale = rng.integers(low, high, endpoint=True) / max(height, width)
    size = int(np.round(width * scale)), int(np.round(height * scale))
    image = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)) if scale != 1 else pixels
    values = (image / 255 - MEAN) / STD
    if rng.random() < 0.5:
        values = values[:, ::-1]
    out = np.zeros((crop, crop, 3))
    source, target = [], []
    for side in values.shape[:2]:
        offset = rng.integers(abs(side - crop), endpoint=True)
        source.append(slice(offset, offset + crop) if side > crop else slice(0, side))
        target.append(slice(0, crop) if side > crop else slice(offset, offset + side))
    out[tuple(target)] = values[tuple(source)]
    return out.transpose(2, 0, 1).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(st.integers(10, 90), st.integers(10, 90), st.integers(8, 60), st.integers(20, 60), st.integers(0, 60), st.integers(0, 99))
def test_recipe(height: int, width: int, crop: int, low: int, more: int, visit: int) -> None:
    pixels = picture(height, width)
    transform = TrainTransform(resize_low=low, resize_high=low + more, crop=crop)
    found = transform(pixels, generator(0, "t", "x", visit))
    wanted = recipe(pixels, generator(0, "t", "x", visit), low, low + more, crop)
    assert found.shape == (3, crop, crop) and found.dtype == torch.float32
    assert (found.numpy() == wanted).all()


def test_recipe_draws_what_it_says() -> None:
    """Long sides 320 to 640 with both ends, a fair coin, every offset."""
    sides, mirrored, tops = set(), 0, set()
    ramp = np.zeros((100, 100, 3), np.uint8)
    ramp[:, :, 0] = np.arange(100)
    transform = TrainTransform(resize_low=9, resize_high=12, crop=16)
    for visit in range(400):
        image = transform(ramp, generator(0, "t", "x", visit))
        rows, columns = (torch.nonzero(image[1].any(dim=d)).flatten() for d in (1, 0))
        sides.add(len(rows))
        tops.add((len(rows), int(rows[0])))
        mirrored += bool(image[0, rows[0], columns[0]] > image[0, rows[0], columns[-1]])
    assert sides == {9, 10, 11, 12} and 160 < mirrored < 240
    assert {t for s, t in tops if s == 9} == set(range(8)) and {t for s, t in tops if s == 12} == set(range(5))


def test_zeros_lie_around_a_small_picture() -> None:
    image = TrainTransform(resize_low=0, resize_high=0, crop=32)(np.full((10, 20, 3), 255, np.uint8), generator(0, "t", "x"))
    assert int((image != 0).sum()) == 3 * 200 and torch.unique(image[0]).tolist() == pytest.approx([0, (1 - MEAN[0]) / STD[0]])


def test_without_resizing_a_crop_is_a_cutting() -> None:
    pixels = picture(40, 50)
    image = TrainTransform(resize_low=0, resize_high=0, crop=16, flip=False)(pixels, generator(1, "t", "x")).numpy()
    whole = normalise(pixels).numpy()
    places = [(r, c) for r in range(25) for c in range(35) if (whole[:, r : r + 16, c : c + 16] == image).all()]
    assert len(places) == 1


def test_scales_and_brightness() -> None:
    grey = np.full((20, 20, 3), 100, np.uint8)
    transform = TrainTransform(resize_low=0, resize_high=0, scales=(0.5, 1.0), brightness=0.2, crop=24)
    transform.check()
    sizes, values = set(), []
    for visit in range(200):
        image = transform(grey, generator(0, "t", "x", visit))
        inside = image[0][image[0] != 0]
        sizes.add(len(inside))
        values.append(float(inside[0]) * STD[0] + MEAN[0])
    assert sizes == {100, 400} and min(values) * 255 < 85 and max(values) * 255 > 115
    assert all(79.5 <= v * 255 <= 120.5 for v in values)
    bright = TrainTransform(resize_low=0, resize_high=0, brightness=1.0, crop=24)
    assert all(torch.isfinite(bright(np.full((24, 24, 3), 200, np.uint8), generator(0, "b", "x", v))).all() for v in range(20))


def test_settings() -> None:
    default = TrainTransform()
    assert (default.resize_low, default.resize_high, default.crop, default.flip) == (320, 640, 512, True)
    default.check()
    for bad in (
        TrainTransform(resize_low=700),
        TrainTransform(resize_low=0),
        TrainTransform(scales=(0.5,)),
        TrainTransform(crop=0),
        TrainTransform(scales=(0.0,), resize_low=0, resize_high=0),
        TrainTransform(brightness=2.0),
    ):
        with pytest.raises(UserError):
            bad.check("classifier.transform.")
