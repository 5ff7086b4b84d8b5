"""The doctor and `datasets/voc2012/prepare.py`: sound samples are kept, bad ones named, and a check writes nothing."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_devkit import CARD, EXTRA, ROOT, TRAIN, VAL, classes_of, write_annotation, write_main, write_mask
from PIL import Image

from seedbed.data import Store, doctor, open_store
from seedbed.types import UserError

SCRIPT = ROOT / "datasets" / "voc2012" / "prepare.py"


def load_script() -> object:
    spec = importlib.util.spec_from_file_location("prepare_voc2012", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepare = load_script()


def call(*arguments: object) -> int:
    return prepare.main([str(a) for a in arguments])  # type: ignore[attr-defined]


@pytest.fixture
def root(mini_devkit: Path) -> Path:
    return mini_devkit / "VOC2012"


# --- sound -----------------------------------------------------------------------------------------


def test_whole_way(mini_devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--devkit", mini_devkit, "--out", tmp_path / "store") == 0
    text = capsys.readouterr().out
    assert "a subset of PASCAL VOC 2012" in text and "1,464" in text and "masks 13" in text
    store = open_store(tmp_path / "store")
    assert store.ids("train") == TRAIN and store.ids("val") == VAL and store.ids("trainaug") == sorted(TRAIN + EXTRA)
    assert store.info.subset and store.info.card["trainaug"] == 10582 and store.info.made == {"difficult": "present", "trainaug": "derived"}
    assert store.info.classes == CARD.classes and store.info.mask_kinds == ("class", "aug")
    for ident in store.ids():
        sample = store[ident]
        assert bytes(sample.picture) == (mini_devkit / "VOC2012/JPEGImages" / f"{ident}.jpg").read_bytes()
        assert sample.pixels().shape == (sample.height, sample.width, 3)
        assert tuple(np.flatnonzero(sample.labels)) == classes_of(ident) and sample.label_source == "masks"
        assert set(sample.masks) == ({"aug"} if ident in EXTRA else {"class", "aug"})
        mask = sample.mask("aug")
        assert mask is not None and set(np.unique(mask)) == {0, 255, *(i + 1 for i in classes_of(ident))}
    assert call("--check", "--out", tmp_path / "store") == 0
    assert "sound" in capsys.readouterr().out


def test_from_anywhere_as_a_program(mini_devkit: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--devkit", str(mini_devkit), "--check", "--out", "unused"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0 and "subset" in run.stdout and "13 pictures" in run.stderr and not (tmp_path / "unused").exists()
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--devkit", "nowhere", "--check"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2 and run.stderr.startswith("error: ") and "  remedy: " in run.stderr and "Traceback" not in run.stderr
    long = [sys.executable, str(SCRIPT), "--devkit", "x" * 400, "--check"]
    run = subprocess.run(long, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 2 and "File name too long" in run.stderr and "remedy:" in run.stderr and "Traceback" not in run.stderr
    run = subprocess.run([sys.executable, str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 2 and "--devkit" in run.stderr


def test_check_writes_nothing(mini_devkit: Path) -> None:
    def tree() -> list[tuple[str, int]]:
        return sorted((str(p), p.stat().st_mtime_ns) for p in mini_devkit.parent.rglob("*"))

    before = tree()
    assert call("--devkit", mini_devkit, "--check", "--out", mini_devkit.parent / "unused") == 0
    assert tree() == before


def test_store_is_the_same_with_any_number_of_workers(mini_devkit: Path, tmp_path: Path) -> None:
    for workers in (1, 3):
        assert call("--devkit", mini_devkit, "--out", tmp_path / f"store{workers}", "--workers", workers) == 0
    one, three = open_store(tmp_path / "store1"), open_store(tmp_path / "store3")
    assert one.checksum == three.checksum and [f["crc32"] for f in one.info.files] == [f["crc32"] for f in three.info.files]


def test_test_split_is_held_without_labels(mini_devkit: Path, root: Path, tmp_path: Path) -> None:
    for number in range(2):
        image = np.full((8, 9, 3), 50 * number, np.uint8)
        Image.fromarray(image).save(root / "JPEGImages" / f"2010_00000{number}.jpg")
    (root / "ImageSets/Segmentation/test.txt").write_text("2010_000000\n2010_000001\n")
    # VOC's test annotations list some people of the layout task: nobody's class label
    write_annotation(root, "2010_000000", [("person", 0)])
    assert call("--devkit", mini_devkit, "--out", tmp_path / "store") == 0
    store = open_store(tmp_path / "store")
    assert store.ids("test") == ["2010_000000", "2010_000001"]
    for ident in store.ids("test"):
        assert store[ident].labels is None and not store[ident].masks
    assert store.info.label_sources == {"masks": 13, "none": 2}


def test_sources_are_counted_and_recorded(mini_devkit: Path, root: Path, tmp_path: Path) -> None:
    write_annotation(root, TRAIN[0], [("cow", 0)])
    write_main(root, {name: dict.fromkeys(VAL, 1 if name == "dog" else -1) for name in CARD.classes})
    assert call("--devkit", mini_devkit, "--out", tmp_path / "store") == 0
    store = open_store(tmp_path / "store")
    assert store.info.label_sources == {"annotations": 1, "main": 4, "masks": 8}
    assert store[TRAIN[0]].label_source == "annotations" and store.label_sources(VAL) == {"main": 4}


def test_difficult(mini_devkit: Path, root: Path, tmp_path: Path) -> None:
    write_annotation(root, TRAIN[0], [("cow", 1), ("dog", 0)])
    for how, wanted in (("present", {"cow", "dog"}), ("absent", {"dog"})):
        assert call("--devkit", mini_devkit, "--out", tmp_path / how, "--difficult", how) == 0
        store = open_store(tmp_path / how)
        assert {CARD.classes[i] for i in np.flatnonzero(store[TRAIN[0]].labels)} == wanted and store.info.made["difficult"] == how


@pytest.mark.parametrize("mode", ["L", "CMYK", "progressive"])
def test_unusual_pictures(mini_devkit: Path, root: Path, tmp_path: Path, mode: str) -> None:
    path = root / "JPEGImages" / f"{TRAIN[0]}.jpg"
    with Image.open(path) as image:
        changed = image.copy() if mode == "progressive" else image.convert(mode)
    changed.save(path, "JPEG", progressive=mode == "progressive")
    assert call("--devkit", mini_devkit, "--out", tmp_path / "store") == 0
    assert open_store(tmp_path / "store")[TRAIN[0]].pixels().shape == (24, 40, 3)


def test_whole_set_is_called_none(mini_devkit: Path) -> None:
    card = dataclasses.replace(CARD, name="MADE", splits={"train": 6, "val": 4, "trainval": 10, "trainaug": 9})
    report = doctor.examine_devkit(mini_devkit, card)
    assert not report.subset and "subset" not in report.text() and not report.notes
    beyond = doctor.examine_devkit(mini_devkit, dataclasses.replace(card, splits={"train": 5}))
    assert beyond.notes == ["train has more pictures than were published: 6 of 5"]


# --- notes: not wrong enough to leave anything out -------------------------------------------------


def test_labels_and_pixels_that_disagree(mini_devkit: Path, root: Path) -> None:
    first, second = (CARD.classes[i] for i in classes_of(TRAIN[0]))
    write_annotation(root, TRAIN[0], [(first, 0), ("train", 0)])
    write_annotation(root, TRAIN[1], [])
    notes = "\n".join(doctor.examine_devkit(mini_devkit, CARD).notes)
    assert f"labels without pixels: 1: {TRAIN[0]} (train)" in notes and f"{TRAIN[0]} ({second})" in notes
    assert f"no class at all: 1: {TRAIN[1]}" in notes and "pixels without label: 2" in notes


def test_overlaps_and_twins(mini_devkit: Path, root: Path) -> None:
    lists = root / "ImageSets/Segmentation"
    (lists / "train.txt").write_text("\n".join([*TRAIN, VAL[0]]))
    pictures = root / "JPEGImages"
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png"), ("SegmentationClassAug", "png")):
        (root / folder / f"{TRAIN[1]}.{suffix}").write_bytes((root / folder / f"{TRAIN[0]}.{suffix}").read_bytes())
    notes = "\n".join(doctor.examine_devkit(mini_devkit, CARD).notes)
    assert f"in train and in val: scores on val would be of pictures seen in training: 1: {VAL[0]}" in notes
    assert f"the same picture under different ids: 1: {TRAIN[0]} = {TRAIN[1]}" in notes and pictures.is_dir()
    assert f"in train, but not in trainaug: 1: {VAL[0]}" in notes


def test_partly_listed_in_main(mini_devkit: Path, root: Path) -> None:
    write_main(root, {name: {TRAIN[0]: -1} for name in CARD.classes[:5]})
    assert "only" in "\n".join(n for n in doctor.examine_devkit(mini_devkit, CARD).notes if TRAIN[0] in n)


# --- bad samples are set aside, named, and the rest is kept ----------------------------------------

BAD = TRAIN[2]


def damage_picture(root: Path, content: Callable[[bytes], bytes]) -> None:
    path = root / "JPEGImages" / f"{BAD}.jpg"
    path.write_bytes(content(path.read_bytes()))


def damage_mask(root: Path, content: Callable[[bytes], bytes], folder: str = "SegmentationClass") -> None:
    path = root / folder / f"{BAD}.png"
    path.write_bytes(content(path.read_bytes()))


def huge_header() -> bytes:
    """A PNG whose header claims 60,000 x 60,000 pixels."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def png(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda r: (r / "JPEGImages" / f"{BAD}.jpg").unlink(), "is missing"),
    "empty": (lambda r: damage_picture(r, lambda b: b""), "is empty"),
    "truncated": (lambda r: damage_picture(r, lambda b: b[: len(b) // 3]), "truncated"),
    "text": (lambda r: damage_picture(r, lambda b: b"not a picture"), "is no JPEG"),
    "bomb": (lambda r: damage_picture(r, lambda b: huge_header()), ""),
    "folder": (lambda r: ((r / "JPEGImages" / f"{BAD}.jpg").unlink(), (r / "JPEGImages" / f"{BAD}.jpg").mkdir()), "is no file"),
    "mask truncated": (lambda r: damage_mask(r, lambda b: b[:80]), f"SegmentationClass/{BAD}.png"),
    "aug mask is text": (lambda r: damage_mask(r, lambda b: b"mask", "SegmentationClassAug"), f"SegmentationClassAug/{BAD}.png"),
    "mask in colors": (lambda r: damage_mask(r, lambda b: png(np.zeros((26, 38, 3), np.uint8))), "mode RGB"),
    "mask of another size": (lambda r: damage_mask(r, lambda b: png(np.zeros((38, 26), np.uint8))), "is 26 x 38, the picture 38 x 26"),
    "mask with 21": (lambda r: write_mask(r / "SegmentationClass" / f"{BAD}.png", np.full((26, 38), 21)), "21 (988 pixels)"),
    "mask with 254": (lambda r: write_mask(r / "SegmentationClassAug" / f"{BAD}.png", np.full((26, 38), 254)), "254"),
    "dangling link": (
        lambda r: ((r / "SegmentationClass" / f"{BAD}.png").unlink(), (r / "SegmentationClass" / f"{BAD}.png").symlink_to("nowhere")),
        "is missing",
    ),
    "annotation": (lambda r: ((r / "Annotations").mkdir(), (r / "Annotations" / f"{BAD}.xml").write_text("<annotation>")), "is no XML"),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_sample(mini_devkit: Path, root: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, words = DAMAGE[kind]
    damage(root)
    assert call("--devkit", mini_devkit, "--check") == 3
    assert call("--devkit", mini_devkit, "--out", tmp_path / "store") == 3
    text = capsys.readouterr().out
    assert BAD in text and words in text
    store = open_store(tmp_path / "store")
    left = [i for i in TRAIN if i != BAD]
    assert BAD not in store and store.ids("train") == left and store.ids("trainaug") == sorted(left + EXTRA)
    assert [entry["id"] for entry in store.info.set_aside] == [BAD]
    assert call("--check", "--out", tmp_path / "store") == 0


@pytest.mark.parametrize("entry", ["../../../../etc/passwd", "/etc/passwd", "a\x00b", "2007_000032\\..\\x", "..", "x" * 300, "\x1b[2Jx"])
def test_entry_that_is_no_id(mini_devkit: Path, root: Path, tmp_path: Path, entry: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / "ImageSets/Segmentation/train.txt"
    path.write_text(path.read_text() + entry + "\n")
    assert call("--devkit", mini_devkit, "--out", tmp_path / "store") == 3
    text = capsys.readouterr().out
    assert "train.txt line 7" in text and "\x1b" not in text and "\x00" not in text
    assert open_store(tmp_path / "store").ids("train") == TRAIN


def test_every_reason_is_told(mini_devkit: Path, root: Path) -> None:
    for ident in TRAIN[:5]:
        (root / "JPEGImages" / f"{ident}.jpg").write_bytes(b"")
    report = doctor.examine_devkit(mini_devkit, CARD)
    assert [entry for entry, _ in report.set_aside] == TRAIN[:5] and report.sound["train"]["pictures"] == 1
    assert all(ident in report.text() for ident in TRAIN[:5])


def test_nothing_left_is_an_error_and_leaves_no_store(mini_devkit: Path, root: Path, tmp_path: Path) -> None:
    for ident in VAL:
        (root / "JPEGImages" / f"{ident}.jpg").unlink()
    with pytest.raises(UserError, match=f"no picture of val can be used; the first: JPEGImages/{VAL[0]}.jpg is missing"):
        call("--devkit", mini_devkit, "--out", tmp_path / "store")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["VOCdevkit"]


def test_over_an_older_store(mini_devkit: Path, tmp_path: Path) -> None:
    assert call("--devkit", mini_devkit, "--out", tmp_path / "store") == 0
    before = open_store(tmp_path / "store").checksum
    assert call("--devkit", mini_devkit, "--out", tmp_path / "store") == 0
    assert open_store(tmp_path / "store").checksum == before and len(os.listdir(tmp_path / "store")) == 2


def test_damaged_store(mini_devkit: Path, tmp_path: Path, flipped: Callable[[Path, int], None], capsys: pytest.CaptureFixture[str]) -> None:
    call("--devkit", mini_devkit, "--out", tmp_path / "store")
    samples = next(p for p in (tmp_path / "store").iterdir() if p.name.startswith("samples"))
    flipped(samples, samples.read_bytes().index((mini_devkit / "VOC2012/JPEGImages" / f"{VAL[1]}.jpg").read_bytes()) + 50)
    capsys.readouterr()
    with pytest.raises(UserError, match="1 damaged"):
        call("--check", "--out", tmp_path / "store")
    assert f"{VAL[1]}: picture" in capsys.readouterr().out


# --- the real subset -------------------------------------------------------------------------------


def test_real_lists_and_labels(devkit: Path) -> None:
    from seedbed.data import voc

    root = voc.find_devkit(devkit)
    lists = voc.read_lists(root)
    assert {name: len(ids) for name, ids in lists.splits.items()} == {"train": 437, "val": 445, "trainval": 882, "trainaug": 667}
    assert not lists.refused and not lists.derived and set(lists.splits["train"]) < set(lists.splits["trainaug"])
    labels = voc.ClassLabels(root, CARD.classes)
    found = [labels.of(ident) for ident in lists.splits["trainaug"]]
    assert all(entry is not None and entry[1] == "main" and entry[0].any() for entry in found) and not labels.notes
    animals = [CARD.classes.index(name) for name in ("cat", "cow", "dog", "horse", "sheep")]
    assert all(entry is not None and entry[0][animals].any() for entry in found)


@pytest.mark.slow
def test_real_subset(devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--devkit", devkit, "--out", tmp_path / "store") == 0
    text = capsys.readouterr().out
    assert "437" in text and "445" in text and "667" in text and "subset" in text and "main 1,112" in text
    store: Store = open_store(tmp_path / "store")
    assert len(store) == 1112 and list(store.verify()) == []
    train = store.ids("train")
    assert (
        store.has_mask(train).all()
        and not store.has_mask(store.ids("trainaug")).all()
        and store.has_mask(store.ids("trainaug"), "aug").all()
    )
