"""PASCAL VOC's devkit layout: split lists, pictures, class labels and masks, as they were published and as people have them on disk.

Class labels come from `Annotations/*.xml`, else `ImageSets/Main`, else the masks: per picture the first that has something to say.
"""

from __future__ import annotations

import re
import stat
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from seedbed.types import UserError

SPLITS = ("train", "val", "trainval", "trainaug", "test")
MASK_FOLDERS = {"class": "SegmentationClass", "aug": "SegmentationClassAug"}
LISTS = "ImageSets/Segmentation"
Difficult = Literal["present", "absent"]

_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")
_PAIR = re.compile(r"/?JPEGImages/(\S+)\.jpg\s+/?SegmentationClassAug/\1\.png")
_XML_BYTES = 1 << 20


def find_devkit(folder: Path) -> Path:
    """The VOC2012 folder of a devkit: given itself, or the VOCdevkit around it."""
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"there is no folder {folder}", file=folder, field="--devkit", remedy="name the folder VOCdevkit, or VOC2012 in it")
    for root in (folder, folder / "VOC2012", folder / "VOCdevkit" / "VOC2012"):
        if (root / LISTS).is_dir() and (root / "JPEGImages").is_dir():
            return root
    missing = " and no ".join(part for part in (LISTS, "JPEGImages") if not (folder / part).is_dir())
    raise UserError(
        f"{folder} is no VOC 2012 devkit: it has no {missing}",
        file=folder,
        field="--devkit",
        remedy="name the folder VOCdevkit (or VOC2012 in it) that unpacking VOCtrainval_11-May-2012.tar makes",
    )


@dataclass
class Lists:
    """The splits of a devkit, and what was wrong with their files."""

    splits: dict[str, list[str]] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)
    """(entry, reason) of lines that are not taken."""
    derived: bool = False
    """True where trainaug has no list and was put together from the masks."""


def read_lists(root: Path) -> Lists:
    """Every published list that is there. `train` and `val` must be; an empty one is an error; bad and double lines are refused by name."""
    lists = Lists()
    for name in SPLITS:
        path = root / LISTS / f"{name}.txt"
        if name == "trainaug" and not path.exists():
            path = path.with_name("train_aug.txt")
        if path.exists():
            lists.splits[name] = _read_list(path, lists.refused)
        elif name in ("train", "val"):
            raise UserError(
                f"{LISTS}/{name}.txt is missing",
                file=path,
                field=name,
                remedy="unpack the devkit again, or write a list of the ids you have",
            )
    if "trainaug" not in lists.splits:
        drawn = ids_in(root / MASK_FOLDERS["aug"], ".png", lists.refused)
        if drawn:
            # Some copies of the Aug folder hold SBD's masks alone: VOC's own train belongs to trainaug all the same.
            held_out = {*lists.splits["val"], *lists.splits.get("test", ())}
            lists.splits["trainaug"] = sorted({*drawn, *lists.splits["train"]} - held_out)
            lists.derived = True
    return lists


def _read_list(path: Path, refused: list[tuple[str, str]]) -> list[str]:
    where = f"{LISTS}/{path.name}"
    try:
        text = path.read_text(encoding="utf-8-sig", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"{where} can't be read: {error.strerror}", file=path, field=path.stem, remedy="unpack the devkit again") from error
    ids: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        entry = line.strip()
        if not entry:
            continue
        pair = _PAIR.fullmatch(entry)
        ident = pair.group(1) if pair else entry
        if not is_id(ident):
            refused.append((_shown(ident), f"{where} line {number}: this is no id of a picture"))
        elif ident in ids:
            refused.append((ident, f"{where} line {number}: listed a second time (first in line {ids[ident]}); the first one counts"))
        else:
            ids[ident] = number
    if not ids:
        raise UserError(f"{where} names no picture", file=path, field=path.stem, remedy="unpack the devkit again, or list the ids you have")
    return list(ids)


def is_id(text: str) -> bool:
    """True for a plain file name without its ending: nothing that could leave the folder."""
    return _ID.fullmatch(text) is not None and ".." not in text


def ids_in(folder: Path, suffix: str, refused: list[tuple[str, str]] | None = None) -> list[str]:
    """Ids of the files of a folder, sorted; names that are no ids are refused."""
    names = sorted(p.name for p in folder.iterdir() if p.suffix == suffix) if folder.is_dir() else []
    ids = [name.removesuffix(suffix) for name in names]
    if refused is not None:
        refused += [(_shown(i), f"{folder.name}/{_shown(i)}{suffix}: this is no id of a picture") for i in ids if not is_id(i)]
    return [ident for ident in ids if is_id(ident)]


def read_file(root: Path, relative: str) -> bytes:
    """Content of a regular file; ValueError says what is wrong with it, relative to the devkit."""
    path = root / relative
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError(f"{relative} is no file")
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{relative} is missing") from None
    except OSError as error:
        raise ValueError(f"{relative} can't be read: {error.strerror}") from None
    if not content:
        raise ValueError(f"{relative} is empty")
    return content


class ClassLabels:
    """Class labels of a devkit's pictures, without masks: from annotations, else from Main."""

    def __init__(self, root: Path, classes: Sequence[str], difficult: Difficult = "present") -> None:
        self.root, self.classes, self.difficult = root, tuple(classes), difficult
        self.notes: list[str] = []
        self._main, self._listed = self._read_main()

    def partly_listed(self, ids: Iterable[str]) -> list[str]:
        """Ids that only some of Main's class lists name: Main then says nothing about them."""
        return [i for i in ids if i in self._main and not self._listed[i].all()]

    def of(self, ident: str) -> tuple[np.ndarray, str] | None:
        """(labels (c,) uint8, source), or None where neither source knows the picture; ValueError for a broken annotation."""
        relative = f"Annotations/{ident}.xml"
        if (self.root / relative).exists():
            return self._annotated(relative), "annotations"
        if ident in self._main and self._listed[ident].all():
            present = self._main[ident] >= (0 if self.difficult == "present" else 1)
            return present.astype(np.uint8), "main"
        return None

    def _annotated(self, relative: str) -> np.ndarray:
        """Every object counts; parts of objects and names that are no class do not."""
        content = read_file(self.root, relative)
        if len(content) > _XML_BYTES:
            raise ValueError(f"{relative} has {len(content):,} bytes: this is no annotation")
        try:
            objects = ElementTree.fromstring(content).findall("object")
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            raise ValueError(f"{relative} is no XML: {error}") from None
        labels = np.zeros(len(self.classes), np.uint8)
        for thing in objects:
            name = (thing.findtext("name") or "").strip()
            hard = (thing.findtext("difficult") or "").strip() == "1"
            if name in self.classes and not (hard and self.difficult == "absent"):
                labels[self.classes.index(name)] = 1
        return labels

    def _read_main(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Per id the values -1, 0, 1 of every class, and which classes list the id at all. An id that is missing is no negative."""
        values: dict[str, np.ndarray] = {}
        listed: dict[str, np.ndarray] = {}
        for number, name in enumerate(self.classes):
            for split in ("trainval", "train", "val"):
                path = self.root / "ImageSets/Main" / f"{name}_{split}.txt"
                if not path.exists():
                    continue
                for line in path.read_text(encoding="utf-8-sig", errors="backslashreplace").splitlines():
                    fields = line.split()
                    if not fields:
                        continue
                    if len(fields) != 2 or fields[1] not in ("-1", "0", "1"):
                        self.notes.append(f"ImageSets/Main/{path.name}: {_shown(line)} is not an id and -1, 0 or 1")
                        continue
                    ident, value = fields[0], int(fields[1])
                    if ident not in values:
                        values[ident] = np.full(len(self.classes), -1, np.int8)
                        listed[ident] = np.zeros(len(self.classes), bool)
                    if listed[ident][number] and values[ident][number] != value:
                        self.notes.append(
                            f"ImageSets/Main: {ident} is {values[ident][number]} and {value} for {name}; the first one counts"
                        )
                    elif not listed[ident][number]:
                        values[ident][number], listed[ident][number] = value, True
        return values, listed


def _shown(text: str) -> str:
    """Whatever stands in a file, fit to be printed."""
    return text.encode("unicode_escape").decode()[:120]
