"""The study of mu and sigma on its way: which pictures, their records, and what is written."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import pyarrow as pa

from seedbed import progress, provenance
from seedbed.analysis import fsl_parameters as fsl
from seedbed.analysis.fsl_parameters import Subject
from seedbed.analysis.fsl_study import PAPER, Found, FslStudy
from seedbed.artefacts import Stage, hold, write_atomically
from seedbed.artefacts.fragments import column, stage_schema
from seedbed.artefacts.records import pack, unpack
from seedbed.config import digest
from seedbed.data.store import Store, open_store
from seedbed.data.transforms import generator
from seedbed.local import LocalExecutor, NullTracker, Tracker, make_missing
from seedbed.types import UserError

FITS = stage_schema(column("fits", pa.binary()))
"""Per picture, packed: gate -> (settings, kept steps, 2), J and F; the study's own gate with all settings, the others with the paper's."""
VERSION = 1
"""Of the code that makes these records."""


def command(default: FslStudy, smoke: Mapping[str, Any], arguments: Sequence[str] | None = None) -> FslStudy:
    """The study as the command line asks for it, checked."""
    import tyro

    import __main__

    given = list(sys.argv[1:] if arguments is None else arguments)
    about = (__main__.__doc__ or "").strip()
    study = tyro.cli(FslStudy, default=default, args=given, description=about)
    if study.smoke:
        study = tyro.cli(FslStudy, default=default.replace(**smoke), args=given, description=about)
    study.check()
    for name, values in (("mus", study.mus), ("sigmas", study.sigmas)):
        if not values:
            raise UserError(f"--{name} is empty", field=f"--{name}", remedy="give at least one value")
    return study


def drawn(study: FslStudy, store: Store) -> list[Subject]:
    """Of every class so many single-object pictures as there are draws, or as there are, in the order in which they are drawn."""
    ids = store.ids(study.data.split)
    if not store.has_mask(ids).any():
        raise UserError(f"the pictures of {study.data.split} have no masks", field="--data.split", remedy="name a split with masks")
    labels = store.labels(ids)
    found: list[Subject] = []
    for index in range(labels.shape[1]):
        alone = [ident for ident, row in zip(ids, labels, strict=True) if row[index] and row.sum() == 1]
        order = generator(study.seed, "fsl-parameters", store.info.classes[index]).permutation(len(alone))
        mine: list[Subject] = []
        for i in order:
            candidate = fsl.subject(store[alone[i]])
            if candidate is not None and candidate.class_index == index:
                mine.append(candidate)
            if len(mine) == study.draws:
                break
        found += mine
    if not found:
        raise UserError("no picture shows a single object", field="--data.split", remedy="name a split that has some")
    return found


@dataclass(frozen=True)
class FitWork:
    """What becomes of one picture's map, for every setting and gate."""

    light: ClassVar[bool] = False

    study: FslStudy

    def open(self) -> Callable[[str], dict[str, Any]]:
        s, store = self.study, open_store(self.study.data.store)

        def fit(ident: str) -> dict[str, Any]:
            one = fsl.subject(store[ident])
            assert one is not None, "it was drawn because it is one"
            wanted = {gate: s.settings() if gate == s.gate else [PAPER] for gate in get_args(fsl.Gate)}
            fits = {gate: fsl.fits(one, order, gate, s.steps, s.lr, s.kept()) for gate, order in wanted.items()}
            return {"id": ident, "fits": pack(fits)}

        return fit


def stage_of(study: FslStudy, store: Store, subjects: Sequence[Subject]) -> Stage:
    """The artefact of these pictures and settings: found again, and gone on with after a kill."""
    ids = [s.id for s in subjects]
    settings = {"order": study.settings(), "gate": study.gate, "steps": study.kept(), "lr": study.lr}
    inputs = {"pictures": store.inputs_checksum(ids), "truth": store.truth_checksum(ids)}
    key = digest({"stage": "fits", "settings": settings, "inputs": inputs, "version": VERSION})
    return Stage(Path(study.out), "fits", key, FITS, settings=settings, inputs=inputs, version=VERSION)


def open_pictures(study: FslStudy) -> tuple[Store, list[Subject], Stage]:
    if not study.data.store:
        remedy = "python datasets/voc2012/prepare.py --devkit VOCdevkit --out STORE makes one"
        raise UserError("no sample store is named", field="--data.store", remedy=remedy)
    store = open_store(study.data.store)
    subjects = drawn(study, store)
    return store, subjects, stage_of(study, store, subjects)


def explain(study: FslStudy) -> str:
    """name, key, state: nothing is run and nothing written."""
    _, subjects, stage = open_pictures(study)
    state = "found" if stage.manifest is not None else "goes on" if stage.folder.exists() else "runs"
    return f"{'fits':24} {stage.key}  {state:8} {len(stage.records()):,} of {len(subjects):,} pictures are there"


def run(study: FslStudy, tracker: Tracker | None = None) -> Found:
    """Draws, optimises, scores; prints the table, writes numbers, figure, page and run.json to the output folder."""
    tracker, began, failure = tracker or NullTracker(), time.time(), ""
    store, subjects, stage = open_pictures(study)
    with hold(Path(study.out).absolute()):
        tracker.start("fsl_parameters", None, study.flat(), {"seedbed.kind": "study", "seedbed.key": stage.key})
        status = "FAILED"
        try:
            found = _found(study, store, subjects, stage)
            _conclude(found, tracker, time.time() - began)
            status = "FINISHED"
            return found
        except BaseException as error:
            status, failure = "KILLED" if isinstance(error, KeyboardInterrupt) else status, f"{type(error).__name__}: {error}"
            raise
        finally:
            tracker.end(status)
            _write_record(study, stage, began, status, failure)


def _found(study: FslStudy, store: Store, subjects: list[Subject], stage: Stage) -> Found:
    ids = [s.id for s in subjects]
    if stage.manifest is None or stage.found() is None:
        began = time.perf_counter()
        executor = LocalExecutor(device="cpu", threads=1, workers=1, commit_every=1)  # more threads change the last bits
        computed = make_missing(executor, FitWork(study), ids, stage, progress.Progress(), "fits")
        stage.finish(computed=computed, seconds=time.perf_counter() - began)
    records, names = stage.records(), store.info.classes
    subjects = [s for s in subjects if s.id in records]
    fits = [unpack(records[s.id]["fits"]) for s in subjects]
    there = {s.class_index for s in subjects}
    missing = tuple(name for i, name in enumerate(names) if i not in there)
    values = np.stack([f[study.gate] for f in fits])
    found = Found(study, subjects, tuple(names[i] for i in sorted(there)), missing, values)
    for gate in get_args(fsl.Gate):
        paper = study.settings().index(PAPER) if gate == study.gate else 0
        found.gates[gate] = fsl.class_mean(np.stack([f[gate][paper] for f in fits]), found.of)
    return found


def _conclude(found: Found, tracker: Tracker, seconds: float) -> None:
    from seedbed.analysis.fsl_page import told, write

    lines = told(found)
    print("\n".join(lines))
    page = write(found, lines, seconds)
    print(f"report: {page}")
    curves = found.curves()
    for (mu, sigma), values in curves.items():
        tracker.log({f"mu {mu:g} sigma {sigma:g}/{name}": values[name] for name in ("J", "F", "J_and_F")})
    for path in (page, page.with_name("fsl_parameters.json"), *sorted((page.parent / "figures").glob("*"))):
        tracker.artifact(path)


def _write_record(study: FslStudy, stage: Stage, began: float, status: str, failure: str) -> None:
    """run.json, as a study has it."""
    made = stage.manifest or {}
    record = {
        "name": "fsl_parameters", "command": provenance.command(), "settings": study.to_dict(), "key": stage.key,
        "git": provenance.git_commit(), "versions": provenance.versions(), "hardware": provenance.hardware(),
        "stages": [{"name": "fits", **{k: made.get(k) for k in ("key", "digest", "computed", "seconds")}}],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(began)), "seconds": round(time.time() - began, 1),
        "status": status, "failure": failure or None,
    }  # fmt: skip
    write_atomically(Path(study.out).absolute() / "run.json", json.dumps(record, indent=1, default=str).encode())
