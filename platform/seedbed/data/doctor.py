"""The doctor: looks at every picture of a devkit, sets bad ones aside by name, and says what the set is beside what was published.

`prepare` does the same and writes what is sound into a store.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seedbed.data import voc
from seedbed.data.card import Card
from seedbed.data.examine import Examined, examine
from seedbed.data.store import StoreInfo, StoreWriter
from seedbed.types import UserError

SHOWN = 5


@dataclass
class Report:
    """What was found in a devkit."""

    root: Path
    card: Card
    lists: voc.Lists
    set_aside: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sound: dict[str, dict[str, int]] = field(default_factory=dict)
    """Split -> count of pictures, of labels, of masks by kind."""
    sources: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def subset(self) -> bool:
        return any(n["pictures"] < self.card.splits.get(name, 0) for name, n in self.sound.items())

    def text(self) -> str:
        """For the terminal: a table of the splits, the sources of labels, notes, and everything that was set aside."""
        known = sorted(self.card.splits)
        what = f"a subset of {self.card.name}" if self.subset else self.card.name
        lines = [f"{self.root}: {what}", ""]
        heads = ("split", "pictures", "published", "labels", *(f"{kind} masks" for kind in voc.MASK_FOLDERS))
        rows = [heads]
        for name, n in self.sound.items():
            published = f"{self.card.splits[name]:,}" if name in known else "-"
            rows.append((name, f"{n['pictures']:,}", published, f"{n['labels']:,}", *(f"{n[kind]:,}" for kind in voc.MASK_FOLDERS)))
        widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
        for row in rows:
            lines.append("  " + "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))))  # noqa: B905
        if self.lists.derived:
            lines.append("  trainaug has no list: it is every Aug mask, and train, without val and test")
        lines += ["", "class labels from: " + (", ".join(f"{source} {n:,}" for source, n in sorted(self.sources.items())) or "nowhere")]
        if self.notes:
            lines += ["", "notes:", *(f"  {note}" for note in self.notes)]
        lines += ["", f"set aside: {len(self.set_aside)}", *(f"  {entry}: {reason}" for entry, reason in self.set_aside)]
        return "\n".join(lines)


def examine_devkit(
    folder: Path, card: Card, *, difficult: voc.Difficult = "present", workers: int | None = None, progress: Any = None
) -> Report:
    """The doctor's report; writes nothing. `progress` shows how far it is (`seedbed.progress.Progress`)."""
    return _walk(folder, card, difficult, workers, progress, None)


def prepare(
    folder: Path, card: Card, out: Path, *, difficult: voc.Difficult = "present", workers: int | None = None, progress: Any = None
) -> Report:
    """A devkit to a sample store at `out`, with the doctor's report. UserError where nothing useful could be written; then nothing is."""
    return _walk(folder, card, difficult, workers, progress, out)


def _walk(folder: Path, card: Card, difficult: voc.Difficult, workers: int | None, progress: Any, out: Path | None) -> Report:
    began = time.perf_counter()
    root = voc.find_devkit(folder)
    lists = voc.read_lists(root)
    labels = voc.ClassLabels(root, card.classes, difficult)
    report = Report(root, card, lists, list(lists.refused))
    ids = sorted({ident for members in lists.splits.values() for ident in members})
    secret = set(lists.splits.get("test", ())) - {i for name, members in lists.splits.items() if name != "test" for i in members}

    def look(ident: str) -> Examined:
        return examine(root, ident, card.classes, labels, labelled=ident not in secret)

    facts = _Facts(report)

    def findings() -> Iterator[Examined]:
        with progress.stage("devkit", total=len(ids)) if progress is not None else contextlib.nullcontext() as line:
            for found in _ahead(look, ids, workers):
                facts.add(found)
                if line is not None:
                    line.advance(int(found.sample is not None), int(found.sample is None))
                yield found

    if out is None:
        for _ in findings():
            pass
        facts.finish(ids, labels)
    else:
        info = StoreInfo(card.name, card.classes, card.licence, card.palette, tuple(voc.MASK_FOLDERS), card=dict(card.splits))
        with StoreWriter(out, info) as writer:
            for found in findings():
                if found.sample is not None:
                    writer.add(found.sample)
            facts.finish(ids, labels)
            for name, members in facts.splits.items():
                writer.split(name, members)
            writer.describe(
                subset=report.subset,
                set_aside=tuple({"id": entry, "reason": reason} for entry, reason in report.set_aside),
                made={"difficult": difficult, "trainaug": "derived" if lists.derived else "listed"},
            )
    report.seconds = time.perf_counter() - began
    return report


class _Facts:
    """Adds up what single samples showed."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.splits: dict[str, list[str]] = {}
        self._sound: dict[str, tuple[bool, frozenset[str]]] = {}
        self._bad: set[str] = set()
        self._mismatch: dict[str, list[str]] = defaultdict(list)
        self._same: dict[bytes, list[str]] = defaultdict(list)

    def add(self, found: Examined) -> None:
        if found.sample is None:
            self._bad.add(found.id)
            self.report.set_aside.append((found.id, found.reason))
            return
        sample = found.sample
        self._sound[found.id] = (sample.labels is not None, frozenset(sample.masks))
        self._same[found.digest].append(found.id)
        self.report.sources[sample.label_source or "none"] += 1
        names = self.report.card.classes
        for what, classes in (("labels without pixels", found.without_pixels), ("pixels without label", found.without_label)):
            if classes:
                self._mismatch[what].append(f"{found.id} ({', '.join(names[i] for i in classes)})")
        if sample.labels is not None and not sample.labels.any():
            self._mismatch["no class at all"].append(found.id)

    def finish(self, ids: Sequence[str], labels: voc.ClassLabels) -> None:
        """Splits without what was set aside, and the notes. UserError where a split has nothing left."""
        report = self.report
        for name, members in report.lists.splits.items():
            left = [ident for ident in members if ident not in self._bad]
            if not left:
                reason = dict(report.set_aside)[members[0]]
                raise UserError(
                    f"no picture of {name} can be used; the first: {reason}",
                    file=report.root,
                    field=name,
                    remedy="unpack the devkit again, or name the folder that has the pictures",
                )
            self.splits[name] = left
            held = [self._sound[ident] for ident in left]
            report.sound[name] = {"pictures": len(left), "labels": sum(labelled for labelled, _ in held)}
            report.sound[name] |= {kind: sum(kind in kinds for _, kinds in held) for kind in voc.MASK_FOLDERS}
        report.notes += [_listed(what, entries) for what, entries in sorted(self._mismatch.items())]
        partly = labels.partly_listed(ids)
        if partly:
            report.notes.append(_listed("named by some of Main's class lists only, which then say nothing about them", partly))
        report.notes += labels.notes[:SHOWN]
        if len(labels.notes) > SHOWN:
            report.notes.append(f"... and {len(labels.notes) - SHOWN} more lines of ImageSets/Main")
        report.notes += self._overlaps()

    def _overlaps(self) -> Iterator[str]:
        """What would let a score look better than it is, and counts beyond the published ones."""
        splits = self.splits
        for scored in ("val", "test"):
            for trained in ("train", "trainaug"):
                both = sorted(set(splits.get(scored, ())) & set(splits.get(trained, ())))
                if both:
                    yield _listed(f"in {trained} and in {scored}: scores on {scored} would be of pictures seen in training", both)
        twins = [" = ".join(same) for same in self._same.values() if len(same) > 1]
        if twins:
            yield _listed("the same picture under different ids", twins)
        outside = sorted(set(splits["train"]) - set(splits.get("trainaug", splits["train"])))
        if outside:
            yield _listed("in train, but not in trainaug", outside)
        for name, members in splits.items():
            if len(members) > self.report.card.splits.get(name, len(members)):
                yield f"{name} has more pictures than were published: {len(members):,} of {self.report.card.splits[name]:,}"


def _listed(what: str, entries: Iterable[str]) -> str:
    entries = list(entries)
    more = f", ... ({len(entries) - SHOWN} more)" if len(entries) > SHOWN else ""
    return f"{what}: {len(entries)}: {', '.join(entries[:SHOWN])}{more}"


def _ahead(look: Callable[[str], Examined], ids: Sequence[str], workers: int | None) -> Iterator[Examined]:
    """The samples in order, decoded by threads (decoders let the interpreter go) a bounded distance ahead, so that memory stays flat."""
    number = workers or min(8, len(os.sched_getaffinity(0)))
    waiting: deque[Future[Examined]] = deque()
    with ThreadPoolExecutor(number) as threads:
        try:
            for ident in ids:
                waiting.append(threads.submit(look, ident))
                if len(waiting) > 8 * number:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
