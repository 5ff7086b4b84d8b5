"""PASCAL VOC 2012: the test server's package of a run's segmentations, and a check of anyone's.

    python datasets/voc2012/submission.py make --run OUT --split test --out results.tgz
    python datasets/voc2012/submission.py check results.tgz --store STORE [--ids LIST]

The check reads the package from beginning to end, writes nothing, and says all that is wrong with it.
Exit status: 0 sound, 2 bad input or a faulty package.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import json
import lzma
import re
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from seedbed.__main__ import palette_of
from seedbed.artefacts import Fragments, fills_labels, find_stages
from seedbed.artefacts.records import decode_png, png
from seedbed.data import Store, open_store
from seedbed.data.settings import evenly
from seedbed.study import reported_errors
from seedbed.types import UserError

NAME = re.compile(r"results/VOC2012/Segmentation/comp([56])_([A-Za-z0-9]+)_cls/([A-Za-z0-9_-]+)\.png")
LARGEST = 16 << 20
"""Bytes of a member above which it is no label map of a VOC picture, and is not read."""
CHUNK = 1 << 20
SHOWN = 10


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make", help="the package of a run's segmentations")
    maker.add_argument("--run", type=Path, required=True, help="output folder of a study")
    maker.add_argument("--split", required=True, help="split that was segmented: test, or val to try")
    maker.add_argument("--out", type=Path, required=True, help="file to write, .tgz")
    maker.add_argument("--key", default="", help="beginning of the artefact's key, where the run has several")
    maker.add_argument(
        "--competition",
        type=int,
        choices=(5, 6),
        default=6,
        help="5: trained on VOC's own pictures alone; 6: on others too, ImageNet among them (default)",
    )
    maker.add_argument("--incomplete", action="store_true", help="write the package although pictures that the study asked for are missing")
    checker = commands.add_parser("check", help="what is wrong with a package")
    checker.add_argument("package", type=Path)
    checker.add_argument("--store", required=True, help="sample store with the pictures")
    checker.add_argument("--ids", type=Path, help="file with the ids that must be there, one a line (default: the split's in the store)")
    return parser.parse_args(arguments)


def make(run: Path, split: str, out: Path, key: str, competition: int, incomplete: bool = False) -> int:
    """Writes the package; returns how many label maps are in it. The file appears whole or not at all.

    Raises UserError where a picture that the study asked for has no label map, unless `incomplete`.
    """
    there = [m for m in find_stages(run, "predictions") if m["settings"]["split"] == split and not fills_labels(m["settings"])]
    fit = [m for m in there if m["key"].startswith(key)]
    if len(fit) != 1:
        known = ", ".join(f"{m['method']}:{m['key']}" for m in there) or "none"
        message = f"{len(fit)} artefacts of segmentations of {split!r} fit in {run}"
        remedy = f"run the study to its end with --data.segment-splits {split}, or name one with --key; there are: {known}"
        raise UserError(message, file=run, field="--split, --key", remedy=remedy)
    palette = palette_of(run)
    folder = f"results/VOC2012/Segmentation/comp{competition}_{split}_cls"
    beside = out.with_name(f".{out.name}.tmp")
    records = Fragments(Path(fit[0]["folder"]))
    missing, total = lacking(run, split, fit[0], records)
    if missing and not incomplete:
        message = f"{len(missing):,} pictures of {split} have no segmentation: {some(missing)}"
        remedy = "mend what set them aside (the report says why) and run the study again; --incomplete writes the package without them"
        raise UserError(message, file=run, field="--run", remedy=remedy)
    if len(records) < total:
        print(f"warning: {len(records):,} of the {total:,} pictures of {split}: the test server wants them all", file=sys.stderr)
    try:
        with tarfile.open(beside, "w:gz") as archive:
            for record in records:
                content = png(decode_png(record["label_map"]), palette)
                member = tarfile.TarInfo(f"{folder}/{record['id']}.png")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        beside.replace(out)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(f"{out} can't be written: {error.strerror}", file=out, field="--out", remedy="name another place") from error
    return len(records)


def lacking(run: Path, split: str, manifest: dict[str, Any], records: Fragments) -> tuple[list[str], int]:
    """Ids that the study asked for and that have no record, and the number of the split's pictures.

    Asked for is what the study's store has of the split, as far as its limit (`--data.limit`, `--data.map-limit`) goes, and what was
    set aside. Where the store is gone, only the latter is known.
    """
    record = json.loads((run / "run.json").read_text())
    aside = [entry["id"] for entry in manifest["set_aside"]]
    try:
        ids = open_store(record["dataset"]["store"]).ids(split)
        data = record["settings"]["data"]
        asked = evenly(ids, data["map_limit"] or data["limit"])
    except (UserError, KeyError):
        ids, asked = [], []
    if len(records) > len(asked):  # run.json tells of the last call, and these are of one without its limit
        asked = ids
    missing = [i for i in dict.fromkeys([*asked, *aside]) if i not in records]
    return missing, len(ids) or len(records) + len(missing)


def check(package: Path, store: Store, ids: Path | None) -> int:
    """Raises UserError with everything that is wrong; returns the number of label maps of a sound package."""
    problems: list[str] = []
    seen: dict[str, str] = {}
    folders: set[str] = set()
    for name, content in members(package):
        match = NAME.fullmatch(name.removeprefix("./"))  # `tar czf results.tgz ./results`
        if match is None:
            problems.append(f"{name!r} has no place in a package: results/VOC2012/Segmentation/comp6_SPLIT_cls/ID.png")
            continue
        ident = match[3]
        folders.add(name.removeprefix("./").rpartition("/")[0])
        if ident in seen:
            problems.append(f"{ident} is there twice")
        seen[ident] = match[2]
        if ident not in store:
            problems.append(f"{ident} is no picture of the store")
        elif problem := label_map_problem(content, store.size(ident)):
            problems.append(f"{ident}: {problem}")
    if not seen:
        problems.append("there is no label map in it")
    if len(folders) > 1:
        problems.append(f"several folders: {', '.join(sorted(folders))}")
    wanted = None
    if ids is not None:
        wanted = listed_ids(ids)
    elif len(splits := set(seen.values())) == 1:
        (split,) = splits
        wanted = store.ids(split) if split in store.info.splits else None
        if wanted is None:
            problems.append(f"the store has no split {split!r}, which its folder names: {', '.join(store.info.splits) or 'it has none'}")
    if wanted is not None:
        problems += differences(wanted, seen, store)
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise UserError(
            f"{package.name} would be refused:\n  - " + "\n  - ".join([*problems[:SHOWN], *more]),
            file=package,
            field="package",
            remedy="mend what is listed; `submission.py make` writes a sound package from a run",
        )
    return len(seen)


def differences(wanted: list[str], seen: dict[str, str], store: Store) -> Iterator[str]:
    """Between the ids that must be there and those that are; those that the store does not know are said elsewhere."""
    missing, foreign = [i for i in wanted if i not in seen], [i for i in seen if i not in set(wanted) and i in store]
    if missing:
        yield f"{len(missing)} of {len(wanted)} are missing: {some(missing)}"
    if foreign:
        yield f"{len(foreign)} are not asked for: {some(foreign)}"


def some(ids: list[str]) -> str:
    return ", ".join(ids[:3]) + (" ..." if len(ids) > 3 else "")


def members(package: Path) -> Iterator[tuple[str, bytes | None]]:
    """(name, content) of everything that is no folder; the content is None of what is not read (links, devices, huge files).

    The file is read to its very end: an archive's end mark comes before a gzip's check sum, and before what does not belong there.
    """
    try:
        with unpacked(package) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                if member.isdir():
                    continue
                source = archive.extractfile(member) if member.isfile() and member.size <= LARGEST else None
                yield member.name, None if source is None else source.read()
            while rest := archive.fileobj.read(CHUNK):  # the stream, through what tarfile has of it already
                if rest.strip(b"\0"):
                    raise tarfile.ReadError("there is more behind its end mark")
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else f"it is no whole tar archive ({error})"
        raise UserError(f"{package.name} can't be read: {what}", file=package, field="package", remedy="make it again") from error


def unpacked(package: Path) -> IO[bytes]:
    """What a .tgz (.tar.gz), .tar.bz2 or .tar.xz holds, or the file itself; reading it to its end checks its sums."""
    with package.open("rb") as file:
        start = file.read(6)
    for magic, opened in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)):
        if start.startswith(magic):
            return opened(package, "rb")  # type: ignore[return-value]
    return package.open("rb")


def label_map_problem(content: bytes | None, size: tuple[int, int]) -> str | None:
    if content is None:
        return f"no plain file of at most {LARGEST >> 20} MB"
    try:
        with Image.open(io.BytesIO(content)) as picture:
            kind, mode = picture.format, picture.mode
            if kind != "PNG" or mode not in ("P", "L"):
                return f"a {kind} of mode {mode}, where a PNG of class numbers (mode P or L) is wanted"
            if picture.size != size[::-1]:
                return f"{picture.size[0]} x {picture.size[1]} pixels, the picture has {size[1]} x {size[0]}"
            values = np.unique(np.array(picture))
    except (OSError, SyntaxError, ValueError, zlib.error, Image.DecompressionBombError) as error:
        return f"it can't be decoded ({error})"
    wrong = [int(v) for v in values if v > 20]
    return f"values {', '.join(map(str, wrong[:5]))}, where 0 to 20 are classes" if wrong else None


def listed_ids(ids: Path) -> list[str]:
    try:
        return list(dict.fromkeys(ids.read_text().split()))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{ids} can't be read: {error}", file=ids, field="--ids", remedy="name a text file, one id a line") from error


def main(arguments: list[str]) -> None:
    given = parse(arguments)
    with reported_errors():
        if given.command == "make":
            count = make(given.run, given.split, given.out, given.key, given.competition, given.incomplete)
            print(f"{given.out}: {count:,} label maps of {given.split}")
        else:
            count = check(given.package, open_store(given.store), given.ids)
            print(f"{given.package}: sound, {count:,} label maps")


if __name__ == "__main__":
    main(sys.argv[1:])
