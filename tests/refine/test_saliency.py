"""Saliency maps of others: any of the usual forms, and by name what is missing or wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seedbed.refine.saliency import check_folder, folder_digest, salient
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
