"""The shapes set: the same bits always, exact masks, and the shares that its settings promise."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedbed.data import open_store, shapes
from seedbed.data.shapes import CLASSES, ShapesConfig
from seedbed.data.shapes_drawing import BODY, HEAD, background_only, body_only, draw
from seedbed.types import UserError

QUIET = ShapesConfig(noise=0.0)
PINNED = (1, 112.8, 113.9, 118.4, 1526, 263)


def test_pictures_depend_on_seed_and_id_alone() -> None:
    few, many = ShapesConfig(train=2, val=0), ShapesConfig(train=1000, val=50)
    for image_id in shapes.ids("train", few):
        first, second = (draw(shapes.scene(image_id, config)) for config in (few, many))
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    other_seed = draw(shapes.scene("train_000000", few.replace(seed=1)))[0]
    other_split = draw(shapes.scene("val_000000", few))[0]
    here = draw(shapes.scene("train_000000", few))[0]
    assert (here != other_seed).any() and (here != other_split).any()


def test_nothing_changed_without_a_new_version() -> None:
    """A picture of the frozen generator, by a few coarse numbers; bits may differ with the version of numpy."""
    pixels, mask, parts = draw(shapes.scene("train_000000", ShapesConfig()))
    found = (shapes.VERSION, *(pixels.mean((0, 1)).round(1).tolist()), int((mask > 0).sum()), int((parts == HEAD).sum()))
    assert found == pytest.approx(PINNED, abs=0.11)


@settings(max_examples=30, deadline=None)
@given(number=st.integers(0, 10_000), size=st.sampled_from([24, 47, 96, 130]))
def test_masks_are_exact(number: int, size: int) -> None:
    """Without noise a part that is shown changes the picture inside its mask (and on its soft edge) and nowhere else."""
    content = shapes.scene(f"train_{number:06d}", QUIET.replace(size=size))
    pixels, mask, parts = draw(content)
    assert pixels.shape == (size, size, 3) and mask.shape == parts.shape == (size, size)
    assert np.array_equal(mask > 0, parts > 0) and set(np.unique(parts)) <= {0, HEAD, BODY}
    assert {int(v) - 1 for v in np.unique(mask) if v} <= {t.label for t in content.objects}
    edge = _grown(mask > 0)
    changed = (pixels != background_only(content)).any(2)
    assert not changed[~edge].any()
    heads = (pixels != body_only(content)).any(2)
    each = [draw(dataclasses.replace(content, objects=(thing,)))[2] == HEAD for thing in content.objects]
    assert not heads[~_grown(np.any(each, axis=0))].any()  # a head that another object covers may shine through
    assert not (parts == HEAD).any() or heads[parts == HEAD].mean() > 0.9


def _grown(mask: np.ndarray) -> np.ndarray:
    wide = np.pad(mask, 1)
    h, w = mask.shape
    return np.any([wide[i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=0)


@settings(max_examples=25, deadline=None)
@given(number=st.integers(0, 10_000), size=st.sampled_from([24, 96]))
def test_objects_lie_inside_the_frame(number: int, size: int) -> None:
    content = shapes.scene(f"val_{number:06d}", ShapesConfig(size=size))
    for thing in content.objects:
        whole = draw(dataclasses.replace(content, objects=(thing,)))[1] > 0
        area = 0.872 * 4 * thing.body.half_length * thing.body.half_width
        assert abs(whole.sum() - area) < 0.04 * area + 6  # cut off at the frame it would be smaller


def test_shares_are_those_of_the_settings() -> None:
    config = ShapesConfig(train=600)
    scenes = [shapes.scene(i, config) for i in shapes.ids("train", config)]
    things = [thing for content in scenes for thing in content.objects]
    assert np.mean([len(c.objects) == 2 for c in scenes]) == pytest.approx(config.two_objects, abs=0.07)
    assert np.mean([t.head is None for t in things]) == pytest.approx(config.head_missing, abs=0.06)
    assert np.mean([t.body.kind == t.label for t in things]) == pytest.approx(config.own_texture, abs=0.05)
    counts = np.bincount([t.label for t in things], minlength=len(CLASSES)) / len(things)
    assert counts == pytest.approx(np.full(len(CLASSES), 1 / len(CLASSES)), abs=0.04)


def test_only_the_spurious_class_comes_with_waves() -> None:
    config = ShapesConfig(train=150, waves_amplitude=0.3, clutter=0.0, noise=0.0)
    wavy: dict[bool, list[bool]] = {True: [], False: []}
    for image_id in shapes.ids("train", config):
        content = shapes.scene(image_id, config)
        rough = np.abs(np.diff(content.background, axis=1)).max() > 0.05 or np.abs(np.diff(content.background, axis=0)).max() > 0.05
        wavy[any(t.label == config.spurious_class for t in content.objects)].append(bool(rough))
    assert np.mean(wavy[True]) == pytest.approx(config.waves_own, abs=0.2)
    assert np.mean(wavy[False]) == pytest.approx(config.waves_other, abs=0.07)


def test_outlines_lie_on_both_sides_of_fsl_delta() -> None:
    """Color distance of a body to what is around it, against delta = 0.076, from which on FSL pushes apart."""
    config = ShapesConfig(train=60)
    contrast = []
    for image_id in shapes.ids("train", config):
        content = shapes.scene(image_id, config)
        pixels, mask, _ = draw(content)
        for thing in content.objects:
            inside = mask == thing.label + 1
            ring = _grown(_grown(inside)) & (mask == 0)
            contrast.append(np.abs(pixels[inside].mean(0) - pixels[ring].mean(0)).mean() / 255)
    assert 0.1 < np.mean(np.array(contrast) < 0.076) < 0.9


def test_store_holds_everything_and_is_found_again(tmp_path: Path) -> None:
    config = ShapesConfig(size=32, train=5, val=2)
    path = shapes.make_shapes(tmp_path, config)
    before = {f: f.stat().st_mtime_ns for f in path.iterdir()}
    assert shapes.make_shapes(tmp_path, config) == path
    assert {f: f.stat().st_mtime_ns for f in path.iterdir()} == before
    assert shapes.make_shapes(tmp_path, config.replace(seed=1)) != path

    store = open_store(path)
    assert store.info.classes == CLASSES and store.info.made["settings"]["size"] == 32
    assert store.ids("train") == shapes.ids("train", config) and len(store.ids("val")) == 2
    for image_id in store.ids():
        sample = store[image_id]
        pixels, mask, parts = draw(shapes.scene(image_id, config))
        assert np.array_equal(sample.pixels(), pixels)
        assert np.array_equal(sample.mask("class"), mask) and np.array_equal(sample.mask("parts"), parts)
        assert sample.label_source == "generator" and sample.labels is not None
        assert set(np.flatnonzero(sample.labels) + 1) >= set(np.unique(mask)) - {0}
    assert not list(store.verify())


def test_a_damaged_store_is_made_again(tmp_path: Path) -> None:
    config = ShapesConfig(size=24, train=3, val=0)
    path = shapes.make_shapes(tmp_path, config)
    checksum = open_store(path).checksum
    for file in path.glob("samples-*"):
        file.write_bytes(file.read_bytes()[:-40])
    assert open_store(shapes.make_shapes(tmp_path, config)).checksum == checksum


@pytest.mark.parametrize("field", [{"length": (80.0, 60.0)}, {"size": 8}, {"own_texture": 1.5}, {"body_opacity": (0.2, float("nan"))}])
def test_settings_out_of_range_are_named(field: dict[str, object]) -> None:
    with pytest.raises(UserError) as error:
        ShapesConfig().replace(**field).check("shapes.")
    assert next(iter(field)).replace("_", "-") in error.value.text()
