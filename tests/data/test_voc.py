"""VOC's layout: which pictures, which class labels from where, and what is never taken for an id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_devkit import CARD, EXTRA, TRAIN, VAL, classes_of, write_annotation, write_main

from seedbed.data import voc
from seedbed.data.store_format import color_map
from seedbed.types import UserError


def lists_folder(devkit: Path) -> Path:
    return devkit / "VOC2012" / voc.LISTS


def names(labels: np.ndarray) -> set[str]:
    return {CARD.classes[i] for i in np.flatnonzero(labels)}


def test_card() -> None:
    assert len(CARD.classes) == 20 and CARD.classes[14] == "person" and CARD.palette == color_map()
    assert (CARD.splits["train"], CARD.splits["val"], CARD.splits["trainaug"], CARD.splits["test"]) == (1464, 1449, 10582, 1456)


def test_found_from_either_folder(mini_devkit: Path) -> None:
    root = mini_devkit / "VOC2012"
    assert voc.find_devkit(root) == root == voc.find_devkit(mini_devkit) == voc.find_devkit(mini_devkit.parent)
    with pytest.raises(UserError, match="nowhere"):
        voc.find_devkit(mini_devkit / "nowhere")
    with pytest.raises(UserError, match="has no JPEGImages") as error:
        (root / "JPEGImages").rename(root / "Pictures")
        voc.find_devkit(root)
    assert "VOCtrainval" in error.value.remedy


# --- lists -----------------------------------------------------------------------------------------


def test_trainaug_derived(mini_devkit: Path) -> None:
    lists = voc.read_lists(mini_devkit / "VOC2012")
    assert lists.derived and lists.splits["trainaug"] == sorted(TRAIN + EXTRA) and lists.splits["trainval"] == TRAIN + VAL
    assert not lists.refused and "test" not in lists.splits


def test_trainaug_derived_where_aug_has_only_sbds_masks(mini_devkit: Path) -> None:
    for ident in TRAIN:
        (mini_devkit / "VOC2012/SegmentationClassAug" / f"{ident}.png").unlink()
    assert voc.read_lists(mini_devkit / "VOC2012").splits["trainaug"] == sorted(TRAIN + EXTRA)


@pytest.mark.parametrize("name", ["trainaug.txt", "train_aug.txt"])
def test_trainaug_from_its_list(mini_devkit: Path, name: str) -> None:
    (lists_folder(mini_devkit) / name).write_text("\r\n".join([EXTRA[1], TRAIN[0]]) + "\r\n")
    lists = voc.read_lists(mini_devkit / "VOC2012")
    assert lists.splits["trainaug"] == [EXTRA[1], TRAIN[0]] and not lists.derived


def test_list_of_file_pairs(mini_devkit: Path) -> None:
    lines = [f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png" for i in EXTRA]
    (lists_folder(mini_devkit) / "train_aug.txt").write_text("\ufeff" + "\n".join(lines))
    assert voc.read_lists(mini_devkit / "VOC2012").splits["trainaug"] == EXTRA
    (lists_folder(mini_devkit) / "train_aug.txt").write_text("/JPEGImages/a.jpg /SegmentationClassAug/b.png\n" + lines[0])
    lists = voc.read_lists(mini_devkit / "VOC2012")
    assert lists.splits["trainaug"] == EXTRA[:1] and "line 1" in lists.refused[0][1]


def test_no_aug_no_trainaug(mini_devkit: Path) -> None:
    (mini_devkit / "VOC2012/SegmentationClassAug").rename(mini_devkit / "elsewhere")
    assert "trainaug" not in voc.read_lists(mini_devkit / "VOC2012").splits


@pytest.mark.parametrize("name", ["train", "val"])
def test_list_empty_or_missing(mini_devkit: Path, name: str) -> None:
    path = lists_folder(mini_devkit) / f"{name}.txt"
    path.write_text(" \n\n")
    with pytest.raises(UserError, match=f"{name}.txt names no picture"):
        voc.read_lists(mini_devkit / "VOC2012")
    path.unlink()
    with pytest.raises(UserError, match=f"{name}.txt is missing"):
        voc.read_lists(mini_devkit / "VOC2012")


def test_double_line_keeps_the_first(mini_devkit: Path) -> None:
    path = lists_folder(mini_devkit) / "train.txt"
    path.write_text(path.read_text() + TRAIN[2] + "\n")
    lists = voc.read_lists(mini_devkit / "VOC2012")
    assert lists.splits["train"] == TRAIN
    assert lists.refused == [
        (TRAIN[2], "ImageSets/Segmentation/train.txt line 7: listed a second time (first in line 3); the first one counts")
    ]


@given(
    st.one_of(
        st.text(), st.binary().map(lambda b: b.decode("latin-1")), st.sampled_from(["..", "a/b", "a\\b", "a..b", "", ".", "a\0", "a\n"])
    )
)
def test_an_id_stays_in_its_folder(text: str) -> None:
    if voc.is_id(text):
        folder = Path("/devkit/JPEGImages")
        path = folder / f"{text}.jpg"
        assert path.parent == folder and ".." not in text and "\0" not in text and "\\" not in text
    if text.isascii() and text.replace("_", "").isdigit() and len(text) < 100:
        assert voc.is_id(text)


# --- class labels ----------------------------------------------------------------------------------


def test_annotations_first(mini_devkit: Path) -> None:
    root = mini_devkit / "VOC2012"
    write_main(root, {name: {TRAIN[0]: -1, TRAIN[1]: 1 if name == "dog" else -1} for name in CARD.classes})
    write_annotation(root, TRAIN[0], [("person", 0), ("cat", 1), ("hand", 0), ("person", 1)])
    labels = voc.ClassLabels(root, CARD.classes)
    found, source = labels.of(TRAIN[0]) or (None, None)
    assert source == "annotations" and found is not None and names(found) == {"person", "cat"}
    found, source = labels.of(TRAIN[1]) or (None, None)
    assert source == "main" and found is not None and names(found) == {"dog"}
    assert labels.of(TRAIN[2]) is None, "absence from Main is not a negative"
    strict = voc.ClassLabels(root, CARD.classes, difficult="absent").of(TRAIN[0])
    assert strict is not None and names(strict[0]) == {"person"}


def test_difficult_in_main(mini_devkit: Path) -> None:
    root = mini_devkit / "VOC2012"
    write_main(root, {name: {TRAIN[0]: {"dog": 0, "cat": 1}.get(name, -1)} for name in CARD.classes})
    present, absent = (voc.ClassLabels(root, CARD.classes, how).of(TRAIN[0]) for how in ("present", "absent"))
    assert present is not None and absent is not None
    assert names(present[0]) == {"dog", "cat"} and names(absent[0]) == {"cat"}


def test_main_that_leaves_an_id_out_of_some_classes_says_nothing(mini_devkit: Path) -> None:
    root = mini_devkit / "VOC2012"
    write_main(root, {name: {TRAIN[0]: 1} for name in CARD.classes[:19]})
    labels = voc.ClassLabels(root, CARD.classes)
    assert labels.of(TRAIN[0]) is None and labels.partly_listed(TRAIN) == TRAIN[:1]


def test_main_in_train_and_val_files(mini_devkit: Path) -> None:
    root = mini_devkit / "VOC2012"
    write_main(root, {name: {TRAIN[0]: 1 if name == "cow" else -1} for name in CARD.classes}, "train")
    write_main(root, {name: {VAL[0]: 1 if name == "dog" else -1, TRAIN[0]: -1} for name in CARD.classes}, "val")
    labels = voc.ClassLabels(root, CARD.classes)
    first, second = labels.of(TRAIN[0]), labels.of(VAL[0])
    assert first is not None and second is not None and names(first[0]) == {"cow"} and names(second[0]) == {"dog"}
    assert len(labels.notes) == 1 and "cow" in labels.notes[0], "two files that disagree are named"


def test_bad_lines_of_main_are_noted(mini_devkit: Path) -> None:
    root = mini_devkit / "VOC2012"
    write_main(root, {name: {TRAIN[0]: -1} for name in CARD.classes})
    path = root / "ImageSets/Main/cow_trainval.txt"
    path.write_text(path.read_text() + "2007_000001 7\n2007_000002\n\x1b[31m 1 1\n")
    labels = voc.ClassLabels(root, CARD.classes)
    assert len(labels.notes) == 3 and all("cow_trainval" in note and "\x1b" not in note for note in labels.notes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"<annotation><object>", "is no XML"),
        (b"\xff\xfe not xml", "is no XML"),
        (b"<a>" + b" " * (2 << 20) + b"</a>", "no annotation"),
        (b'<?xml version="1.0" encoding="nonsense"?><a/>', "is no XML"),
        (
            b'<!DOCTYPE a [<!ENTITY x0 "ha">'
            + b"".join(b'<!ENTITY x%d "%s">' % (i, b"&x%d;" % (i - 1) * 12) for i in range(1, 12))
            + b"]><a>&x11;</a>",
            "is no XML",
        ),
    ],
    ids=["empty", "cut", "bytes", "large", "encoding", "billion laughs"],
)
def test_broken_annotation(mini_devkit: Path, content: bytes, words: str) -> None:
    root = mini_devkit / "VOC2012"
    (root / "Annotations").mkdir()
    (root / "Annotations" / f"{TRAIN[0]}.xml").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        voc.ClassLabels(root, CARD.classes).of(TRAIN[0])


def test_masks_hold_what_the_made_labels_say(mini_devkit: Path) -> None:
    assert classes_of(TRAIN[3]) == (3, 13) and voc.ClassLabels(mini_devkit / "VOC2012", CARD.classes).of(TRAIN[3]) is None
