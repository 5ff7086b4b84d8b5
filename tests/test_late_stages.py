"""From seeds to a scored segmenter at the smallest size: what it leaves, what is made again, what it must not have seen, bad input."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image
from whole_study import WHOLE, digests, scrambled, whole

from seedbed.artefacts import Fragments, find_stages, open_stage
from seedbed.artefacts.records import decode_png
from seedbed.data import open_store
from seedbed.report.pictures import painted
from seedbed.study import run
from seedbed.types import IGNORE, UserError

LATE = ("crf", "confidence", "affinity", "masks", "scored", "segmenter", "retrained", "predictions")
ROOT = Path(__file__).resolve().parents[1]
SUBMISSION, BENCHMARKS = ROOT / "datasets" / "voc2012" / "submission.py", ROOT / "benchmarks"


def imported(script: Path) -> Any:
    sys.path.insert(0, str(script.parent))
    try:
        return importlib.import_module(script.stem)
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    run(whole(out))
    return out


@pytest.fixture
def copy(reference: Path, tmp_path: Path) -> Path:
    shutil.copytree(reference, tmp_path / "copy")
    return tmp_path / "copy"


def keys(out: Path) -> set[tuple[str, str]]:
    return {(m["stage"], m["key"]) for m in find_stages(out)}


def test_every_stage_is_scored(reference: Path) -> None:
    rows = json.loads((reference / "scores.json").read_text())["rows"]
    seen = {(r["stage"], r["split"], r["metric"]) for r in rows if r["method"] == "cam"}
    for stage, split in (("seed", "train"), ("crf", "train"), ("mask", "train"), ("segmentation", "train"), ("segmentation", "val")):
        assert {(stage, split, m) for m in ("mIoU", "F", "J_and_F", "precision", "recall", "F1")} <= seen
    assert set(LATE) <= {stage for stage, _ in keys(reference)}
    by = {(r["stage"], r["split"]): r["protocol"] for r in rows if r["metric"] == "mIoU" and r["method"] == "cam"}
    assert by["mask", "train"]["threshold"] == {"value": 0.2, "source": "fixed"} and by["mask", "train"]["refinement"] == "irn"
    segmentation = by["segmentation", "val"]
    assert segmentation["initial_weights"] == "none" and segmentation["retrained"] is True and segmentation["threshold"]["value"] is None
    assert segmentation["labels"]["oracle"] is False and segmentation["images"] == 8 and by["crf", "train"]["crf"].startswith("label CRF")


def strips_of(html: str) -> list[tuple[str, ...]]:
    """Of every picture in the report the captions of its tiles, in their order; a tile without an image is left out."""
    image, caption = re.compile(r'<img [^>]*src="data:image/\w+;base64,[^"]+"'), re.compile(r"</span>([^<]+?) *(?:<span>|</figcaption>)")
    strips = (panel.split('<figure class="tile"')[1:] for panel in html.split('<figure class="panel"')[1:])
    return [tuple(caption.findall(tile)[0] for tile in strip if image.search(tile)) for strip in strips]


def test_report_follows_a_picture_to_the_end(reference: Path) -> None:
    html = (reference / "report.html").read_text()
    for words in ("prediction", "coverage and disagreement", "Pseudo-labels on train", "Segmentations on val"):
        assert words in html
    strips = strips_of(html)
    assert len(strips) == 8
    assert set(strips) == {("picture", "CAM", "CAM seed", "mask", "labels", "prediction", "truth")}


def test_runs_of_stages_have_names_of_their_own(copy: Path) -> None:
    """Three stages of predictions: of the splits, and what fills labels."""
    from seedbed.local import LocalExecutor, NullTracker
    from seedbed.stages import Study

    names = []

    class Names(NullTracker):
        def stage(self, name: str, tags: dict[str, str], params: dict[str, Any] | None = None) -> str:
            names.append(name)
            return name

    Study.open(whole(copy)).collect(LocalExecutor(device="cpu", threads=1, workers=1, commit_every=8), Names())
    assert len(names) == len(set(names)), sorted(names)
    assert {n for n in names if n.startswith("pred")} == {f"predictions cam 0 {of}" for of in ("filling", "train", "val")}
    assert {"classifier 0", "maps cam 0", "thresholds cam 0 train", "segmenter cam 0", "seeds centred_box 0"} <= set(names)


def test_coverage_is_of_the_pixels_that_are_trained_on(tmp_path: Path) -> None:
    """Small and large pictures by their pixels, over random seeds; masks that are made only to be scored do not count."""
    from types import SimpleNamespace

    from seedbed.artefacts import MASKS, Stage
    from seedbed.results import coverage

    found = [
        {"small": (10, 10, [1.0, 0.0, 0.0, 0.5]), "large": (30, 10, [0.0, 0.5, 0.5, 0.1]), "scored": (90, 90, [0.0, 1.0, 0.0, 1.0])},
        {"small": (10, 10, [0.0, 1.0, 0.0, 0.0])},
    ]
    stages = [Stage(tmp_path, "masks", f"key{seed}", MASKS) for seed in range(2)]
    for stage, records in zip(stages, found, strict=True):
        with stage.writer() as writer:
            for ident, (height, width, shares) in records.items():
                blank = {name: None for name in MASKS.names if name not in ("id", "hash")}
                writer.add({**blank, "id": ident, "height": height, "width": width, "shares": shares})
    study: Any = SimpleNamespace(
        going=lambda stage: ("cam",),
        seeds=range(2),
        masks_stage=lambda method, seed: stages[seed],
        keys=SimpleNamespace(pseudo_ids=["small", "large"]),
    )
    assert coverage(study)["cam"] == pytest.approx({"object": 20.0, "background": 50.0, "ignored": 30.0, "changed": 16.0})
    study.keys.pseudo_ids = []
    assert coverage(study)["cam"] == {"object": 0, "background": 0, "ignored": 0, "changed": 0}


def test_second_call_computes_nothing(copy: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*.arrow")}
    assert all(stage.computed == 0 for stage in run(whole(copy)).stages)
    assert before == {p: p.stat().st_mtime_ns for p in copy.rglob("*.arrow")}


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"segmenter.lr": 1e-3}, {"segmenter", "retrained", "predictions"}),
        ({"refine.mask_background": 0.25}, {"masks", "scored", "segmenter", "retrained", "predictions"}),
        ({"refine.irn.walk.squarings": 3}, {"masks", "scored", "segmenter", "retrained", "predictions"}),
        ({"refine.confident_foreground": 0.5}, {"confidence", "affinity", "masks", "scored", "segmenter", "retrained", "predictions"}),
        ({"segmenter.retrain": "no"}, {"predictions"}),
        ({"data.segment_splits": ("val",)}, set()),
    ],
    ids=str,
)
def test_what_a_change_makes_again(reference: Path, changes: dict[str, Any], again: set[str]) -> None:
    from seedbed.stages import Study

    study = Study.open(whole(reference, **changes), dry=True)
    assert {stage.name for _, stage in study.plan() if (stage.name, stage.key) not in keys(reference)} == again


def followed(out: Path) -> None:
    """The figure of docs/pipeline.md: every stage has its column, and the prediction is the last segmenter's, which is scored."""
    columns = imported(BENCHMARKS / "pipeline_pictures.py").columns
    predictions = {"tolerance" in m["settings"]: Fragments(Path(m["folder"])) for m in find_stages(out, "predictions") if m["count"] == 10}
    ident = next(i for i in predictions[True].ids() if predictions[True][i]["pixels"] != predictions[False][i]["pixels"])
    shown = columns(out, ident)
    order = "picture, CAM, RIB, seed, CRF'd seed, confidence, boundaries, mask, labels, filled, prediction, truth"
    assert list(shown) == order.split(", ")
    record = json.loads((out / "run.json").read_text())["dataset"]
    last = decode_png(predictions[True][ident]["label_map"])
    assert np.array_equal(shown["prediction"], painted(open_store(record["store"])[ident].pixels(), last, record["palette"]))
    hatches = [(np.asarray(shown[name]) == 250).all(-1).any() for name in ("labels", "filled")]
    assert hatches == [True, False], "the labels' open pixels are filled"


def test_keys_of_several_workers(reference: Path) -> None:
    """Losses of several workers were once means of each share: what was trained so is not found. One worker's key has no word of it."""
    from seedbed.stages import Study

    for workers in (1, 2):
        keys = Study.open(whole(reference, **{"run.workers": workers}), dry=True).keys
        for settings in (keys.affinity_settings(0), keys.segmenter_settings(0)):
            assert settings["workers"] == workers and ("counts" in settings) == (workers > 1)
        assert "counts" not in keys.classifier_settings(0)


def test_the_plain_maps_go_as_far_as_asked(tmp_path: Path) -> None:
    """CAM's masks and segmentation beside RIB's, compared on the same pictures; without it nothing of RIB's is made again."""
    changes = {"method": "rib", "rib.steps": 2, "rib.batch": 2, "rib.lr": 1e-3, "rib.margin": 30.0, "rib.loss_scales": (1.0,)}
    run(whole(tmp_path / "out", **changes))
    alone = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert {p["stage"] for p in alone["paired"]} == {"seed"}
    assert not [r for r in alone["rows"] if r["method"] == "cam" and r["stage"] in ("mask", "segmentation")]
    followed(tmp_path / "out")
    result = run(whole(tmp_path / "out", **changes, baseline="segmentation"))
    assert {s.name for s in result.stages if s.computed} == {
        f"{name} cam" for name in ("confidence", "affinity", "masks", "scored", "segmenter", "retrained", "predictions")
    }
    beside = json.loads((tmp_path / "out" / "scores.json").read_text())
    kept = [r for r in beside["rows"] if r["method"] == "rib"]
    assert [r["value"] for r in kept] == [r["value"] for r in alone["rows"] if r["method"] == "rib"]
    for stage, split in (("mask", "train"), ("segmentation", "train"), ("segmentation", "val")):
        mine = {r["method"]: r["value"] for r in beside["rows"] if (r["stage"], r["split"], r["metric"]) == (stage, split, "mIoU")}
        (found,) = [p for p in beside["paired"] if (p["stage"], p["split"]) == (stage, split)]
        assert found["difference"] == pytest.approx(mine["rib"] - mine["cam"])
    html = (tmp_path / "out" / "report.html").read_text()
    assert "RIB − CAM, masks on train, is" in html and "RIB − CAM, segmentations on val, is" in html


def test_another_scored_split_makes_its_own_pictures_alone(copy: Path, reference: Path, tmp_path: Path) -> None:
    """Networks are trained on the same pictures whatever is scored: they are found. Maps and masks are those of a study of its own."""
    changes = {"data.score_split": "val"}
    made = {s.name.split()[0]: s.computed for s in run(whole(copy, **changes)).stages}
    assert made["maps"] == made["masks"] == made["scored"] == 8, "the pictures of train have theirs already"
    assert {made[name] for name in ("classifier", "confidence", "affinity", "segmenter", "retrained", "predictions")} == {0}
    own = run(whole(tmp_path / "own", **changes, until="mask"))
    assert {s.name.split()[0]: s.computed for s in own.stages}["maps"] == 18
    for stage in ("maps", "masks"):
        (digest,) = digests(tmp_path / "own")[stage]
        assert digest in digests(copy)[stage] and digest not in digests(reference)[stage]


def test_another_tolerance_predicts_nothing_again(copy: Path, reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a segmenter predict what it has filled labels with: its label maps are there, and are counted."""
    from seedbed.segment.predict import PredictWork

    monkeypatch.setattr(PredictWork, "open", lambda self: pytest.fail("a network was opened"))

    def scores(out: Path, metric: str) -> dict[str, float]:
        rows = json.loads((out / "scores.json").read_text())["rows"]
        return {f"{r['stage']} {r['split']}": r["value"] for r in rows if (r["method"], r["metric"]) == ("cam", metric)}

    run(whole(copy, **{"scoring.tolerance": 0.1}))
    mine, theirs = scores(copy, "F"), scores(reference, "F")
    assert scores(copy, "mIoU") == scores(reference, "mIoU") and all(mine[name] > theirs[name] for name in theirs)
    assert set(digests(copy)["predictions"]) == set(digests(reference)["predictions"])
    result = run(whole(copy, **{"segmenter.retrain": "no", "data.segment_splits": ("train",)}))
    assert {s.name for s in result.stages if s.computed} == {"predictions cam"}


def test_records_of_other_pictures_are_not_taken_over(copy: Path) -> None:
    """The same ids, settings and networks, but a store whose pictures are not those that the maps were made of."""
    for manifest in find_stages(copy, "maps"):
        path = Path(manifest["folder"]) / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "summary": {"pictures": "others"}}))
    result = run(whole(copy, **{"data.score_split": "val", "until": "seed"}))
    assert {s.name.split()[0]: s.computed for s in result.stages}["maps"] == 18


def test_seeds_vary_rib_alone(tmp_path: Path) -> None:
    """Two fine-tunings of one classifier: networks trained on their maps have one seed, else the error bars are not RIB's own."""
    from seedbed.segmenting import segmenter_task
    from seedbed.stages import Study

    def seeds_of(vary: str) -> dict[str, set[int]]:
        changes = {"method": "rib", "seeds": 2, "seeds_vary": vary, "rib.loss_scales": (1.0,)}
        study = Study.open(whole(tmp_path / "out", **changes), dry=True)
        found: dict[str, set[int]] = {}
        for label, stage in study.plan():
            if "seed" in stage.settings:
                found.setdefault(label.rsplit(" ", 1)[0], set()).add(stage.settings["seed"])
        found["task"] = {segmenter_task(study, "rib", seed, None).seed for seed in (0, 1)}
        assert len({study.segmenter_stage("rib", seed).key for seed in (0, 1)}) == 2
        return found

    rib = seeds_of("rib")
    assert {"classifier", "affinity rib", "segmenter rib", "retrained rib"} < set(rib) and rib["maps rib"] == {0, 1}
    assert {label for label, seeds in rib.items() if seeds == {0, 1}} == {"maps rib"}
    assert all(seeds == {0, 1} for seeds in seeds_of("all").values())


@pytest.mark.parametrize("refinement", ["affinitynet", "crf", "none"])
def test_refinements_differ(copy: Path, reference: Path, refinement: str) -> None:
    run(whole(copy, until="mask", **{"refine.method": refinement}))
    made = {m["key"]: m["digest"] for m in find_stages(copy, "masks")}
    assert len(made) == 2 and len(set(made.values())) == 2
    affinity = {m["settings"]["refinement"] for m in find_stages(copy, "affinity")}
    assert affinity == {"irn", *([refinement] if refinement == "affinitynet" else [])}


def test_weights_of_a_stage_that_is_not_reached_are_not_asked_for(tmp_path: Path) -> None:
    """ResNet-38d's weights have to be a file: a study that ends with the seeds does not need it."""
    from seedbed.stages import Study

    changes = {"refine.method": "affinitynet", "refine.affinitynet.backbone": "resnet38", "refine.affinitynet.weights": "imagenet"}
    Study.open(whole(tmp_path / "out", until="seed", **changes), dry=True)
    with pytest.raises(UserError, match="can't be downloaded"):
        Study.open(whole(tmp_path / "out", until="mask", **changes), dry=True)


def test_until_mask_trains_no_segmenter(copy: Path) -> None:
    result = run(whole(copy, until="mask"))
    assert {r["stage"] for r in result.rows} >= {"seed", "crf", "mask"} and "segmentation" not in {r["stage"] for r in result.rows}


def test_masks_reach_the_scores_alone(reference: Path, tmp_path: Path) -> None:
    """Every mask upside down: all that is trained, made or predicted is bit-identical; scores are not."""
    from seedbed.pipeline import Experiment

    changes = {k: v for k, v in WHOLE.items() if not k.startswith("shapes.")}
    changes["data.store"] = scrambled(reference, tmp_path / "scrambled")
    run(Experiment(name="whole", out=str(tmp_path / "out")).replace(**changes))
    mine, theirs = digests(tmp_path / "out"), digests(reference)
    for stage in ("classifier", "maps", "confidence", "affinity", "masks", "segmenter", "retrained", "predictions"):
        assert mine[stage] == theirs[stage], f"{stage} has seen the masks"
    assert mine["scored"] != theirs["scored"]
    trained = ("classifier", "maps", "confidence", "affinity", "masks", "segmenter", "retrained")
    assert {k for k in keys(tmp_path / "out") if k[0] in trained} == {k for k in keys(reference) if k[0] in trained}, "keys know the masks"


def test_masks_of_val_reach_its_scores_alone(copy: Path, reference: Path, tmp_path: Path) -> None:
    """Those of val alone upside down: every stage but the predictions on val is found under its key, and these are the same labels."""
    from seedbed.pipeline import Experiment

    changes = {k: v for k, v in WHOLE.items() if not k.startswith("shapes.")}
    store = scrambled(reference, tmp_path / "scrambled", ("val",))
    result = run(Experiment(name="whole", out=str(copy)).replace(**{**changes, "data.store": store}))
    assert {stage.name.split()[0] for stage in result.stages if stage.computed} == {"predictions"}
    new = keys(copy) - keys(reference)
    assert len(new) == 1 and {k for k, _ in new} == {"predictions"}
    assert set(digests(copy)["predictions"]) == set(digests(reference)["predictions"]), "a prediction has seen the masks"
    before = json.loads((reference / "scores.json").read_text())["rows"]
    values = [{(r["stage"], r["split"], r["metric"]): r["value"] for r in rows if r["method"] == "cam"} for rows in (before, result.rows)]
    moved = {(stage, split) for (stage, split, metric), value in values[0].items() if values[1].get((stage, split, metric)) != value}
    assert moved == {("segmentation", "val")}


def test_a_damaged_mask_costs_its_score_alone(copy: Path, reference: Path) -> None:
    """Of a picture that is trained on and scored: everything is found or made as before; it counts nowhere, and is named where it would."""
    from seedbed.data import open_store

    store = open_store(next((copy / "data").iterdir()))
    victim = store.ids("train")[0]
    wanted = bytes(store[victim].masks["class"])
    data = next(p for p in store.path.iterdir() if wanted in p.read_bytes())
    content = bytearray(data.read_bytes())
    content[content.index(wanted) + len(wanted) // 2] ^= 0x40
    data.unlink()
    data.write_bytes(content)
    for stage in ("seeds", "crf", "predictions"):
        shutil.rmtree(copy / "stages" / stage)
    result = run(whole(copy, **{"data.skip_unreadable": True}))
    assert keys(copy) == keys(reference)
    assert digests(copy)["predictions"] == digests(reference)["predictions"]
    asides = {m["stage"]: m["set_aside"] for m in find_stages(copy) if m["set_aside"]}
    assert set(asides) == {"seeds", "crf", "predictions"} and json.loads((copy / "run.json").read_text())["exit_status"] == 3
    assert all([a["id"] for a in aside] == [victim] and "mask" in aside[0]["reason"] for aside in asides.values())
    assert {r["protocol"]["images"] for r in result.rows if (r["stage"], r["split"]) == ("segmentation", "train")} == {9}
    assert len(open_stage(copy, "seeds", method="cam")) == 10


def test_a_mask_of_another_size_costs_its_score_alone(reference: Path, tmp_path: Path) -> None:
    from seedbed.artefacts.records import png
    from seedbed.data import StoreWriter, open_store
    from seedbed.types import Sample
    from seedbed.work import counted

    store = open_store(next((reference / "data").iterdir()))
    with StoreWriter(tmp_path / "store", store.info) as writer:
        for ident, masks in (("small", {"class": png(np.zeros((3, 4), np.uint8))}), ("none", {})):
            s = store[store.ids("train")[0]]
            writer.add(Sample(ident, bytes(s.picture), s.height, s.width, s.labels, s.label_source, masks), ["train"])
    found = {i: counted(open_store(tmp_path / "store"), i, np.zeros((48, 48), np.uint8), 0.0075) for i in ("small", "none")}
    assert all(record["confusion"] is record["contour"] is None for record in found.values())
    assert found["none"]["uncounted"] is None and "small" in found["small"]["uncounted"] and "3" in found["small"]["uncounted"]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "stage",
    [
        "masks",
        "segmenter",
        *(pytest.param(s, marks=SLOW) for s in ("crf", "confidence", "affinity", "scored", "retrained", "predictions")),
    ],
)
def test_cut_short_and_started_again(copy: Path, reference: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in a late stage after some records or steps; the second call gives the same bits."""
    from seedbed.local import LocalExecutor

    for later in LATE[LATE.index(stage) :]:
        shutil.rmtree(copy / "stages" / later)
    maps, train = LocalExecutor.map_images, LocalExecutor.train

    def map_images(self: LocalExecutor, work: Any, ids: list[str], artefact: Any, shown: Any) -> int:
        if artefact.name == stage:
            maps(self, work, ids[:3], artefact, shown)
            raise KeyboardInterrupt
        return maps(self, work, ids, artefact, shown)

    def trained(self: LocalExecutor, task: Any, folder: Path, report: Any = None) -> None:
        if folder.parent.name == stage:
            loss = task.loss

            def cut(model: Any, batch: Any, step: int) -> Any:
                if step >= 2:
                    raise KeyboardInterrupt
                return loss(model, batch, step)

            task.loss = cut
        train(self, task, folder, report)

    with monkeypatch.context() as patched:
        patched.setattr(LocalExecutor, "map_images", map_images)
        patched.setattr(LocalExecutor, "train", trained)
        with pytest.raises(KeyboardInterrupt):
            run(whole(copy))
    run(whole(copy))
    assert digests(copy) == digests(reference)


PER_PICTURE = ("crf", "confidence", "masks", "scored", "predictions")


@dataclass(frozen=True)
class Fatal:
    """A stage's own work in an actor whose process is killed at the third picture, once. `mark` has the pid of each picture's process."""

    light: ClassVar[bool] = False  # by actors, however short the work
    work: Any
    mark: Path

    def open(self) -> Callable[[str], dict[str, Any]]:
        compute = self.work.open()

        def deadly(ident: str) -> dict[str, Any]:
            killed_at(self.mark, str(os.getpid()), 3)
            return compute(ident)

        return deadly


def fatal(task: Any, mark: Path, at: int) -> None:
    """The worker that trains this task is killed in its update number `at`, once. `mark` has every update that was begun."""
    loss = task.loss

    def deadly(model: Any, batch: Any, step: int) -> Any:
        killed_at(mark, str(step), at)
        return loss(model, batch, step)

    task.loss = deadly


def killed_at(mark: Path, line: str, count: int) -> None:
    with open(mark, "a") as file:
        file.write(f"{line}\n")
    if len(mark.read_text().splitlines()) == count:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("stage", LATE)
def test_worker_killed(copy: Path, reference: Path, small_ray: None, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL to the actor, or to the training's worker, in mid-stage: another one takes over, and the bits are the same."""
    import ray

    from seedbed.runtime.launch import RayExecutor

    mark, maps, train = tmp_path / "mark", RayExecutor.map_images, RayExecutor.train

    def map_images(self: RayExecutor, work: Any, ids: Any, artefact: Any, shown: Any) -> int:
        return maps(self, Fatal(work, mark) if artefact.name == stage else work, ids, artefact, shown)

    def trained(self: RayExecutor, task: Any, folder: Path, report: Any = None) -> None:
        if folder.parent.name == stage:
            fatal(task, mark, 4 if stage == "affinity" else 13)
        train(self, task, folder, report)

    monkeypatch.setattr(RayExecutor, "map_images", map_images)
    monkeypatch.setattr(RayExecutor, "train", trained)
    shutil.rmtree(copy / "stages" / stage)
    changes = {"run.executor": "ray", "run.actors": 1, "run.commit_every": 1}
    changes |= {f"{of}.checkpoint_seconds": 1e6 for of in ("refine.irn", "segmenter")}  # by updates alone
    changes |= {"refine.irn.checkpoint_every": 2, "segmenter.checkpoint_every": 5}
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import a test
    try:
        run(whole(copy, **changes))
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert digests(copy) == digests(reference)
    lines = mark.read_text().splitlines()
    if stage in PER_PICTURE:
        assert lines[2] == lines[0] != lines[3], "the process that was killed went on"
    else:
        steps = [int(line) for line in lines]
        begun = 4 if stage == "affinity" else 13
        again = begun - 2 if stage == "affinity" else begun - 3  # the checkpoint before
        assert steps[:begun] == list(range(begun)) and steps[begun] == again, "it did not go on from its checkpoint"


@pytest.mark.parametrize("stage", ["masks", *(pytest.param(s, marks=SLOW) for s in PER_PICTURE if s != "masks")])
def test_disk_full_in_mid_stage(copy: Path, reference: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from seedbed.artefacts import fragments

    shutil.rmtree(copy / "stages" / stage)
    write, written = fragments.write_table, []

    def full(path: Path, tables: Any, schema: Any) -> None:
        if path.parent.parent.name == stage and len(written) >= 4:
            raise fragments.unwritten(path, OSError(errno.ENOSPC, "No space left on device"))
        written.append(path)
        write(path, tables, schema)

    with monkeypatch.context() as patched:
        patched.setattr(fragments, "write_table", full)
        with pytest.raises(UserError, match="No space left"):
            run(whole(copy, **{"run.commit_every": 1}))
    kept = len(list((copy / "stages" / stage).rglob("*.arrow")))
    result = run(whole(copy))
    pictures = sum(m["count"] for m in find_stages(reference, stage))
    assert sum(s.computed for s in result.stages if s.name.startswith(stage)) == pictures - kept < pictures
    assert digests(copy) == digests(reference)


def test_filled_labels_have_nothing_ignored(reference: Path) -> None:
    """The second segmenter's labels: the first one's predictions where they were ignored, all else as it was."""
    from seedbed.stages import Study

    study = Study.open(whole(reference), dry=True)
    from seedbed.segmenting import segmenter_task

    task = segmenter_task(study, "cam", 0, study.filling_stage("cam", 0).folder)
    task.open()
    ignored = 0
    for label in open_stage(reference, "masks"):
        filled = task._pair(label.id)[1]
        ignored += int((label.labels == IGNORE).sum())
        assert not (filled == IGNORE).any() and (filled == label.labels)[label.labels != IGNORE].all()
    assert ignored


def test_saliency_ignores_more(copy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "saliency"
    folder.mkdir()
    masks = open_stage(copy, "masks")
    for label in masks:
        Image.fromarray(np.zeros(label.mask.shape, np.uint8)).save(folder / f"{label.id}.png")
    before = {m["key"] for m in find_stages(copy, "masks")}
    run(whole(copy, until="mask", **{"refine.saliency": str(folder)}))
    (new,) = {m["key"] for m in find_stages(copy, "masks")} - before
    for label in open_stage(copy, "masks", key=new):
        assert set(np.unique(label.labels)) <= {0, IGNORE}, "what is not salient can't be labelled an object"
        assert (label.mask == masks[label.id].mask).all(), "the mask that is scored knows nothing of saliency"
    next(folder.glob("*.png")).unlink()
    with pytest.raises(UserError, match="no saliency map of"):
        run(whole(copy, until="mask", **{"refine.saliency": str(folder)}))


def test_damaged_saliency_maps(copy: Path, tmp_path: Path) -> None:
    """What a header shows is said before the first stage: else it took the picture out of the scores of the masks, too."""
    folder = tmp_path / "saliency"
    folder.mkdir()
    shapes = {label.id: label.mask.shape for label in open_stage(copy, "masks")}
    for ident, shape in shapes.items():
        Image.fromarray(np.zeros(shape, np.uint8)).save(folder / f"{ident}.png")
    first, second = (folder / f"{ident}.png" for ident in list(shapes)[:2])
    sound, before = first.read_bytes(), keys(copy)
    changes = {"until": "mask", "refine.saliency": str(folder)}
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(first)
    second.write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        run(whole(copy, **changes))
    assert "3 x 4 pixels" in caught.value.message and f"{second.name} can't be read" in caught.value.message
    assert keys(copy) == before, "a stage was made"
    first.write_bytes(sound)
    second.write_bytes(sound[: sound.index(b"IDAT") + 6])
    run(whole(copy, **changes))
    (masks,) = [m for m in find_stages(copy, "masks") if ("masks", m["key"]) not in before]
    assert masks["count"] == 9 and [a["id"] for a in masks["set_aside"]] == [second.stem]


def test_only_background_is_warned_about(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import seedbed.segment.predict  # noqa: F401 (the package has a function of that name)

    predict = sys.modules["seedbed.segment.predict"]
    shutil.rmtree(copy / "stages" / "predictions")
    shutil.rmtree(copy / "stages" / "retrained")
    said = "segmenter cam predicts only background in train (they fill the open pixels of its labels)"
    original, calls = predict.predict, iter(range(1000))

    def blind_at_first(model: Any, pixels: np.ndarray, config: Any) -> np.ndarray:
        return np.zeros(pixels.shape[:2], np.uint8) if next(calls) < 10 else original(model, pixels, config) | np.eye(48, dtype=np.uint8)

    def warned() -> set[str]:
        return {w for w in run(whole(copy)).warnings if "background" in w or "no object" in w}

    monkeypatch.setattr(predict, "predict", blind_at_first)
    assert warned() == {said} and next(calls) > 10
    for manifest in find_stages(copy, "predictions"):
        if "truth" in manifest["settings"]:
            shutil.rmtree(manifest["folder"])
    monkeypatch.setattr(predict, "predict", lambda model, pixels, config: np.zeros(pixels.shape[:2], np.uint8))
    after = {said, *(f"retrained cam predicts only background in {split}" for split in ("train", "val"))}
    assert warned() == after
    monkeypatch.undo()
    assert warned() == after, "found artefacts are looked at, too"


def test_split_without_masks_is_segmented(reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As VOC's test: pictures without masks and without labels."""
    import seedbed.segment.predict  # noqa: F401 (the package has a function of that name)
    from seedbed.data import StoreWriter, open_store
    from seedbed.pipeline import Experiment
    from seedbed.types import Sample

    store = open_store(next((reference / "data").iterdir()))
    with StoreWriter(tmp_path / "store", store.info) as writer:
        for split in ("train", "val"):
            for ident in store.ids(split):
                s = store[ident]
                bare = split == "val"
                masks = {} if bare else {k: bytes(v) for k, v in s.masks.items()}
                labels, source = (None, None) if bare else (s.labels, s.label_source)
                writer.add(Sample(s.id, bytes(s.picture), s.height, s.width, labels, source, masks), [split])
    changes = {k: v for k, v in WHOLE.items() if not k.startswith("shapes.")} | {"segmenter.retrain": "no", "segmenter.steps": 5}
    out = tmp_path / "out"
    predict = sys.modules["seedbed.segment.predict"]
    monkeypatch.setattr(predict, "predict", lambda model, pixels, config: np.zeros(pixels.shape[:2], np.uint8))
    result = run(Experiment(name="whole", out=str(out)).replace(**{**changes, "data.store": str(tmp_path / "store")}))
    assert {r["split"] for r in result.rows if r["stage"] == "segmentation"} == {"train"}
    assert {m["settings"]["split"]: m["count"] for m in find_stages(out, "predictions")} == {"train": 10, "val": 8}
    for split in ("train", "val"):  # not scored, and looked at all the same
        assert f"segmenter cam predicts only background in {split}" in result.warnings


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("actors", [1, 3])
def test_same_bits_over_actors(reference: Path, tmp_path: Path, small_ray: None, actors: int) -> None:
    out = tmp_path / "out"
    run(whole(out, **{"run.executor": "ray", "run.actors": actors, "run.commit_every": 2}))
    assert digests(out) == digests(reference)


@pytest.mark.parametrize(
    "changes",
    [{"refine.saliency": "x"}, {"segmenter.retrain": "no"}, {"refine.method": "none"}, {"segmenter.test_flip": True}],
    ids=str,
)
def test_another_study_has_another_key(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert whole(tmp_path, **changes).key() != whole(tmp_path).key()


def test_retraining_is_off_with_saliency_and_on_coco(reference: Path) -> None:
    from seedbed.segment.settings import SegmenterConfig
    from seedbed.stages import Study

    def retrains(**changes: Any) -> bool:
        return Study.open(whole(reference, **changes), dry=True).retrains

    assert retrains() and not retrains(**{"refine.saliency": "x"}) and not retrains(**{"refine.labels": "mask"})
    assert retrains(**{"refine.saliency": "x", "segmenter.retrain": "yes"})
    assert not retrains(segmenter=SegmenterConfig.named("coco"))


def test_weights_trained_on_masks_are_told(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Initial weights from a segmenter's own file: the record, the table and a warning say that masks were used."""
    import torch

    from seedbed.artefacts.records import weights_from

    segmenter = next(Path(m["folder"]) for m in find_stages(copy, "segmenter"))
    file = copy / "segmenter.pth"
    torch.save(weights_from(segmenter), file)
    result = run(whole(copy, **{"segmenter.weights": str(file), "segmenter.weights_from": "masks", "segmenter.retrain": "no"}))
    record = next(r["protocol"] for r in result.rows if r["stage"] == "segmentation")
    assert record["initial_weights_trained_on"] == "masks" and record["from_scratch"] is False
    assert any("not weakly supervised" in w for w in result.warnings) and "trained on MASKS" in capsys.readouterr().out
    for said, recorded in (("imagenet", "imagenet"), ("auto", "masks")):  # the segmenter is there already: what is said of its file counts
        result = run(whole(copy, **{"segmenter.weights": str(file), "segmenter.weights_from": said, "segmenter.retrain": "no"}))
        assert not any(stage.computed for stage in result.stages)
        protocols = [r["protocol"] for r in result.rows if r["stage"] == "segmentation"]
        assert {p["initial_weights_trained_on"] for p in protocols} == {recorded}
        assert any("not weakly supervised" in w for w in result.warnings) is (recorded == "masks")


def test_a_classifier_trained_on_masks_is_told(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A segmenter's file loads into the classifier and into the refinement's network: their rows, tables and warnings say so."""
    import torch

    from seedbed.artefacts.records import weights_from

    classifier = next(Path(m["folder"]) for m in find_stages(copy, "classifier"))
    file = copy / "segmenter.pth"
    torch.save({**weights_from(classifier), "aux_classifier.0.weight": torch.zeros(3)}, file)
    same = {"classifier.epochs": 2, "until": "mask", "refine.crf_seeds": False}
    result = run(whole(copy, **same, **{"classifier.weights": str(file)}))
    seen = {r["stage"]: r["protocol"] for r in result.rows if r["method"] == "cam"}
    assert {record["initial_weights_trained_on"] for record in seen.values()} == {"masks"} and set(seen) == {"seed", "mask"}
    assert seen["mask"]["refinement_weights"] == "classifier" and seen["mask"]["refinement_weights_trained_on"] == "masks"
    assert any("classifier's initial weights (segmenter.pth" in w and "not weakly" in w for w in result.warnings)
    assert "trained on MASKS" in capsys.readouterr().out
    bare = next(r["protocol"] for r in result.rows if r["method"] == "whole_picture")
    assert bare["initial_weights_trained_on"] == "none"
    result = run(whole(copy, **{"until": "mask", "refine.crf_seeds": False, "refine.irn.weights": str(file)}))
    record = next(r["protocol"] for r in result.rows if r["stage"] == "mask")
    assert (record["initial_weights_trained_on"], record["refinement_weights_trained_on"]) == ("none", "masks")
    assert [w for w in result.warnings if "not weakly" in w] == [
        f"The refinement's initial weights ({record['refinement_weights']}) were trained on segmentation masks:"
        " these scores are not weakly supervised."
    ]
    assert "those of the refinement trained on MASKS" in capsys.readouterr().out


# --- what is handed on: exported label maps, the test server's package -----------------------------------


@pytest.mark.parametrize(("stage", "count"), [("seed", 10), ("crf", 10), ("mask", 10), ("labels", 10), ("segmentation", 18)])
def test_export(reference: Path, tmp_path: Path, stage: str, count: int) -> None:
    from seedbed.__main__ import export

    export(reference, stage, tmp_path / "png")
    assert len(list((tmp_path / "png" / "cam").glob("*.png"))) == count


def submission(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SUBMISSION), *map(str, arguments)], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def package(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("package") / "results.tgz"
    done = submission("make", "--run", reference, "--split", "val", "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def test_package_passes_its_check(reference: Path, package: Path) -> None:
    store = next((reference / "data").iterdir())
    limited = package.with_name("ids.txt")
    with tarfile.open(package) as archive:
        names = archive.getnames()
    assert len(names) == 8 and all(n.startswith("results/VOC2012/Segmentation/comp6_val_cls/") for n in names)
    limited.write_text("\n".join(Path(n).stem for n in names))
    done = submission("check", package, "--store", store, "--ids", limited)
    assert done.returncode == 0 and "8 label maps" in done.stdout, done.stderr


def spoiled(package: Path, out: Path, kind: str) -> None:
    if kind == "no tar":
        out.write_bytes(b"no archive at all")
        return
    if kind == "empty":
        tarfile.open(out, "w:gz").close()
        return
    if kind == "cut short":
        out.write_bytes(package.read_bytes()[:-200])
        return
    with tarfile.open(package) as source, tarfile.open(out, "w:gz") as target:
        for number, member in enumerate(source):
            content = source.extractfile(member).read()  # type: ignore[union-attr]
            if number == 0:
                picture = Image.open(io.BytesIO(content))
                values = np.array(picture)
                if kind == "missing":
                    continue
                if kind == "name":
                    member.name = member.name.replace(".png", "_x.png")
                if kind == "escape":
                    member.name = "../../a.png"
                if kind == "link":
                    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
                if kind in ("size", "value", "rgb", "void"):
                    values = values[:-3] if kind == "size" else np.full_like(values, {"value": 77, "void": 255}.get(kind, 1))
                    made = Image.fromarray(values)
                    sink = io.BytesIO()
                    (made.convert("RGB") if kind == "rgb" else made).save(sink, "PNG")
                    content = sink.getvalue()
                if kind == "text":
                    content = b"not a picture"
                if kind == "twice":
                    member.size = len(content)
                    target.addfile(member, io.BytesIO(content))
            member.size = len(content) if member.isfile() else 0
            target.addfile(member, io.BytesIO(content) if member.isfile() else None)


KINDS = {
    "missing": "missing", "size": "pixels", "rgb": "RGB", "value": "77", "void": "255", "name": "no picture of the store",
    "escape": "../../a.png", "link": "plain file", "text": "decoded", "twice": "twice",
    "empty": "no label map", "no tar": "can't be read", "cut short": "bad.tgz",
}  # fmt: skip


def checked(package: Path, reference: Path) -> str:
    """What the check says of a package; empty of a sound one."""
    from seedbed.data import open_store

    try:
        imported(SUBMISSION).check(package, open_store(next((reference / "data").iterdir())), None)
    except UserError as error:
        assert package.name in error.message
        return error.message
    return ""


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_faulty_package_is_refused(reference: Path, package: Path, tmp_path: Path, kind: str) -> None:
    bad = tmp_path / "bad.tgz"
    spoiled(package, bad, kind)
    assert KINDS[kind] in checked(bad, reference)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.tgz"], "the check wrote files"


def test_package_is_read_to_its_end(reference: Path, package: Path, tmp_path: Path) -> None:
    """A gzip's check sum stands behind the archive's end mark."""
    import gzip

    content, bad = package.read_bytes(), tmp_path / "bad.tgz"
    flipped = bytearray(content)
    flipped[-6] ^= 0xFF  # in the check sum
    plain = gzip.decompress(content)
    faulty = [content[:-count] for count in (1, 4, 8, 20)] + [bytes(flipped), content + b"garbage" * 100, plain + b"x"]
    faulty += [gzip.compress(plain + b"x"), gzip.compress(plain + plain)]
    for spoilt in faulty:
        bad.write_bytes(spoilt)
        assert "can't be read" in checked(bad, reference)
    for sound in (plain, plain + bytes(5000), gzip.compress(plain + bytes(5000)), content + bytes(512)):
        bad.write_bytes(sound)
        assert not checked(bad, reference)


def renamed(package: Path, out: Path, old: str, new: str, content: bytes | None = None) -> Path:
    """The package with its members' names changed, and the first one's content."""
    with tarfile.open(package) as source, tarfile.open(out, "w:gz") as target:
        for number, member in enumerate(source):
            given = content if content is not None and number == 0 else source.extractfile(member).read()  # type: ignore[union-attr]
            member.name, member.size = member.name.replace(old, new), len(given)
            target.addfile(member, io.BytesIO(given))
    return out


def test_unknown_split_hides_no_other_fault(reference: Path, package: Path, tmp_path: Path) -> None:
    said = checked(renamed(package, tmp_path / "bad.tgz", "_val_", "_vla_", b"no picture"), reference)
    assert said.startswith("bad.tgz would be refused") and "no split 'vla'" in said and "train, val" in said and "can't be decoded" in said


def test_package_of_a_folder_with_a_dot(reference: Path, package: Path, tmp_path: Path) -> None:
    """`tar czf results.tgz ./results` writes ./results/...: the same files when unpacked."""
    dotted = renamed(package, tmp_path / "dotted.tgz", "results/", "./results/")
    assert not checked(dotted, reference)
    assert "no place" in checked(renamed(package, tmp_path / "bad.tgz", "results/", "../results/"), reference)


def test_incomplete_package_is_not_made_unsaid(copy: Path, tmp_path: Path) -> None:
    """Two pictures set aside: named, and nothing written; by the manifest alone where the store is gone."""
    from seedbed.artefacts.fragments import Writer
    from seedbed.artefacts.schemas import PREDICTIONS

    make, out = imported(SUBMISSION).make, tmp_path / "results.tgz"
    (folder,) = [Path(m["folder"]) for m in find_stages(copy, "predictions") if m["settings"]["split"] == "val"]
    records = list(Fragments(folder))
    aside = [r["id"] for r in records[:2]]
    for path in folder.glob("*.arrow"):
        path.unlink()
    with Writer(folder, PREDICTIONS, 100, 60.0) as writer:
        for record in records[2:]:
            writer.add({name: value for name, value in record.items() if name != "hash"})
    manifest = json.loads((folder / "manifest.json").read_text())
    noted = {**manifest, "count": 6, "set_aside": [{"id": i, "reason": "boom"} for i in aside]}
    for content in (manifest, noted):
        (folder / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(UserError) as caught:
            make(copy, "val", out, "", 6)
        assert all(ident in caught.value.message for ident in ("2 pictures of val", *aside)) and "--incomplete" in caught.value.remedy
    record = json.loads((copy / "run.json").read_text())
    record["dataset"]["store"] = "/nowhere"
    (copy / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=aside[1]):
        make(copy, "val", out, "", 6)
    assert not out.exists()
    assert make(copy, "val", out, "", 6, incomplete=True) == 6
    with tarfile.open(out) as archive:
        assert len(archive.getnames()) == 6


def test_package_of_a_limited_study_warns(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its 10 of 24 pictures are all that it asked for."""
    make = imported(SUBMISSION).make
    assert make(reference, "train", tmp_path / "train.tgz", "", 6) == 10
    assert "10 of the 24 pictures of train" in capsys.readouterr().err
    assert make(reference, "val", tmp_path / "val.tgz", "", 6) == 8
    assert not capsys.readouterr().err


# --- said before the first stage -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"refine.ignore_foreground": 0.1, "refine.ignore_background": 0.4}, ("ignore-foreground", "0.4")),
        ({"refine.confident_foreground": 0.1}, ("confident-foreground",)),
        ({"refine.method": "affinitynet", "refine.alpha_low": 30.0}, ("alpha-low",)),
        ({"refine.saliency": "/nowhere/maps"}, ("/nowhere/maps",)),
        ({"segmenter.weights": "/nowhere/deeplab.pth"}, ("/nowhere/deeplab.pth",)),
        ({"refine.irn.weights": "/nowhere/irn.pth"}, ("/nowhere/irn.pth",)),
        ({"data.segment_splits": ("nowhere",)}, ("nowhere",)),
        ({"segmenter.weights": "classifier"}, ("classifier", "--segmenter.weights")),
        ({"segmenter.weights": "imagenet"}, ("ImageNet", "--segmenter.weights")),
        ({"refine.irn.weights": "coco"}, ("coco", "--refine.irn.weights")),
        ({"refine.irn.backbone": "resnet18"}, ("resnet18", "small")),
        ({"refine.irn.batch": 1000}, ("--refine.irn.batch", "10 pictures")),
        ({"segmenter.batch": 1000}, ("--segmenter.batch", "10 pictures")),
        ({"run.workers": 5}, ("5 training workers",)),
        ({"refine.labels": "mask", "segmenter.retrain": "yes"}, ("no pixel open", "--segmenter.retrain")),
        ({"segmenter.steps": 0}, ("steps",)),
        ({"segmenter.crop": 0}, ("crop",)),
        ({"segmenter.lr": -1.0}, ("lr",)),
    ],
    ids=str,
)
def test_bad_setting(tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        run(whole(tmp_path / "out", **changes))
    assert all(word in caught.value.text() for word in words), caught.value.text()
    assert not (tmp_path / "out" / "stages").exists(), "a stage was begun"
