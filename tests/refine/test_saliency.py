"""Saliency maps of others: any of the usual forms, and by name what is missing or wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seedbed.refine.saliency import check_folder, check_headers, folder_digest, salient
from seedbed.types import UserError

WANTED = np.array([[True, False, True], [False, False, True]])


def write(folder: Path, form: str) -> None:
    soft = np.where(WANTED, 0.8, 0.3)
    forms = {
        "8 bit": lambda: Image.fromarray((soft * 255).astype(np.uint8)).save(folder / "a.png"),
        "0 and 255": lambda: Image.fromarray(np.where(WANTED, 255, 0).astype(np.uint8)).save(folder / "a.png"),
        "0 and 1": lambda: Image.fromarray(WANTED.astype(np.uint8)).save(folder / "a.png"),
        "one bit": lambda: Image.fromarray(WANTED).save(folder / "a.png"),
        "16 bit": lambda: Image.fromarray((soft * 65535).astype(np.uint16)).save(folder / "a.png"),
        "rgb": lambda: Image.fromarray(np.repeat((soft * 255).astype(np.uint8)[..., None], 3, 2)).save(folder / "a.bmp"),
        "palette": lambda: palette().save(folder / "a.png"),
        "array": lambda: np.save(folder / "a.npy", soft.astype(np.float32)),
        "array of one plane": lambda: np.save(folder / "a.npy", soft[None]),
        "float picture": lambda: Image.fromarray(soft.astype(np.float32)).save(folder / "a.tiff"),
    }
    forms[form]()


def palette() -> Image.Image:
    picture = Image.fromarray(WANTED.astype(np.uint8), "P")
    picture.putpalette([0, 0, 0, 128, 0, 0])
    return picture


FORMS = ("8 bit", "0 and 255", "0 and 1", "one bit", "16 bit", "rgb", "palette", "array", "array of one plane", "float picture")


@pytest.mark.parametrize("form", FORMS)
def test_usual_forms(tmp_path: Path, form: str) -> None:
    write(tmp_path, form)
    assert (salient(tmp_path, "a", (2, 3)) == WANTED).all()


@pytest.mark.parametrize("full", [1.0, 255.0])
@pytest.mark.parametrize("form", ["npy", "tiff"])
def test_resized_soft_maps_overshoot(tmp_path: Path, full: float, form: str) -> None:
    """One value above full salience, one below 0: the others mean what they meant."""
    soft = (np.where(WANTED, 0.9, 0.1) * full).astype(np.float32)
    for over, under in ((1.0000001, -1e-7), (1.02, -0.02), (1.9, -0.2)):
        soft[0, 0], soft[0, 1] = np.float32(over * full), under * full
        np.save(tmp_path / "a.npy", soft) if form == "npy" else Image.fromarray(soft).save(tmp_path / "a.tiff")
        assert (salient(tmp_path, "a", (2, 3)) == WANTED).all()


@pytest.mark.parametrize(("low", "top"), [(-0.3, 0.9), (0.0, 140_000.0)])
def test_soft_maps_of_no_range_are_refused(tmp_path: Path, low: float, top: float) -> None:
    np.save(tmp_path / "a.npy", np.array([[low, top]]))
    with pytest.raises(UserError, match=r"negative|values up to"):
        salient(tmp_path, "a", (1, 2))


def test_whole_numbers_do_not_overshoot(tmp_path: Path) -> None:
    """2 of 255 is next to nothing; it is no mask of 0 and 1 that was resized."""
    np.save(tmp_path / "a.npy", np.array([[0, 1, 2]], np.uint8))
    assert not salient(tmp_path, "a", (1, 3)).any()
    np.save(tmp_path / "a.npy", np.array([[0, 256, 65535]], np.int64))
    assert salient(tmp_path, "a", (1, 3)).tolist() == [[False, False, True]]


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 1), (1, 5, 1), (1, 1, 5), (5, 1, 1), (3, 2, 1)])
def test_axes_of_one(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """A map of one pixel, of one row or column, with or without an axis more."""
    np.save(tmp_path / "a.npy", np.ones(shape, np.float32))
    pictures = {1: [(1, 1)], 5: [(1, 5), (5, 1)], 6: [(3, 2)]}[int(np.prod(shape))]
    for picture in pictures:
        assert salient(tmp_path, "a", picture).shape == picture
    with pytest.raises(UserError):
        salient(tmp_path, "a", (2, 3))


@pytest.mark.parametrize("array", [np.zeros((0, 0)), np.zeros((1, 2), complex), np.full((1, 2), "a"), np.ones(2), np.ones(())])
@pytest.mark.parametrize("read", [salient, lambda folder, ident, shape: check_headers(folder, {ident: shape})])
def test_arrays_that_are_no_maps(tmp_path: Path, array: np.ndarray, read: Callable[..., object]) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UserError) as caught:
        read(tmp_path, "a", (1, 2))
    assert "a.npy" in caught.value.message and caught.value.field == "--refine.saliency"


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_cut_outs_are_refused(tmp_path: Path, mode: str) -> None:
    """White with a transparent background would be salient everywhere. Opaque, the same file is a grey map."""
    planes = np.full((2, 3, len(mode)), 255, np.uint8)
    planes[..., -1] = np.where(WANTED, 255, 0)
    Image.fromarray(planes).save(tmp_path / "a.png")
    for read in (lambda: salient(tmp_path, "a", (2, 3)), lambda: check_headers(tmp_path, {"a": (2, 3)})):
        with pytest.raises(UserError, match=r"a\.png can't be read: it has transparent pixels"):
            read()
    planes[..., :-1], planes[..., -1] = np.where(WANTED, 230, 0)[..., None], 255
    Image.fromarray(planes).save(tmp_path / "a.png")
    check_headers(tmp_path, {"a": (2, 3)})
    assert (salient(tmp_path, "a", (2, 3)) == WANTED).all()


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.Png", "a.pNG"])
def test_a_map_that_is_there_is_found(tmp_path: Path, name: str) -> None:
    """What the check before the first stage lets pass, the stage finds."""
    write(tmp_path, "8 bit")
    (tmp_path / "a.png").rename(tmp_path / name)
    if name == "a.pNG":
        with pytest.raises(UserError, match="no saliency map of a"):
            check_folder(tmp_path, ["a"])
        return
    check_folder(tmp_path, ["a"])
    assert (salient(tmp_path, "a", (2, 3)) == WANTED).all()


def test_headers_name_what_does_not_fit(tmp_path: Path) -> None:
    for name in "abcdef":
        Image.fromarray(np.zeros((2, 3), np.uint8)).save(tmp_path / f"{name}.png")
    sizes = dict.fromkeys("abcdef", (2, 3))
    check_headers(tmp_path, sizes)
    (tmp_path / "b.png").write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        check_headers(tmp_path, {**sizes, "a": (3, 2), "d": (2, 2), "f": (1, 1)})
    assert "of a has 2 x 3 pixels, the picture 3 x 2" in caught.value.message and "b.png can't be read" in caught.value.message
    assert "and 1 more" in caught.value.message and str(caught.value.file).endswith("a.png")


def test_missing_map_is_named(tmp_path: Path) -> None:
    write(tmp_path, "8 bit")
    with pytest.raises(UserError) as caught:
        check_folder(tmp_path, ["a", "b", "c", "d", "e", "f"])
    assert "b, c, d and 2 more" in caught.value.message and caught.value.field == "--refine.saliency"
    with pytest.raises(UserError, match="no saliency map of b"):
        salient(tmp_path, "b", (2, 3))
    check_folder(tmp_path, ["a"])


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        check_folder(tmp_path / "nowhere", ["a"])


def test_another_size_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "8 bit")
    with pytest.raises(UserError, match="2 x 3 pixels, the picture 3 x 2"):
        salient(tmp_path, "a", (3, 2))


@pytest.mark.parametrize("content", [b"", b"not a picture"])
def test_unreadable(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match="can't be read"):
        salient(tmp_path, "a", (2, 3))


@pytest.mark.parametrize("values", [[[0.1, np.nan]], [[-1.0, 0.5]], [[[0.1], [0.2]], [[0.1], [0.3]], [[0.5], [0.1]]]])
def test_no_map_of_numbers(tmp_path: Path, values: list[object]) -> None:
    array = np.array(values)
    np.save(tmp_path / "a.npy", np.stack([array, array]) if array.ndim == 3 else array)
    with pytest.raises(UserError) as caught:
        salient(tmp_path, "a", (1, 2))
    assert caught.value.field == "--refine.saliency"


def test_pickled_array_runs_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="can't be read"):
        salient(tmp_path, "a", (1, 1))


def test_key_is_the_content(tmp_path: Path) -> None:
    write(tmp_path, "8 bit")
    before = folder_digest(tmp_path, ["a"])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "elsewhere" / "a.png")
    assert folder_digest(tmp_path / "elsewhere", ["a"]) == before
    write(tmp_path / "elsewhere", "0 and 255")
    assert folder_digest(tmp_path / "elsewhere", ["a"]) != before
