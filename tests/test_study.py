"""The whole way at the smallest size: from pictures to scores.json, report and run.json; again; cut short; with other masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from whole_study import digests, scrambled

from seedbed.artefacts import find_stages, open_stage
from seedbed.pipeline import Experiment, RibConfig, ShapesExperiment
from seedbed.study import parse, run
from seedbed.types import UserError

TINY: dict[str, Any] = {
    "shapes.train": 24, "shapes.val": 8, "shapes.size": 48,
    "classifier.backbone": "small", "classifier.weights": "none", "classifier.epochs": 30, "classifier.batch": 5,
    "classifier.optimizer": "adam", "classifier.lr": 4e-3, "classifier.validate": "end",
    "classifier.transform.resize_low": 0, "classifier.transform.resize_high": 0, "classifier.transform.crop": 48,
    "data.train_split": "train", "data.map_split": "train", "data.companion_split": "train", "data.score_split": "train",
    "data.limit": 10, "cam.scales": (1.0, 0.5), "rib.loss_scales": (1.0,), "rib.steps": 3, "rib.batch": 2, "rib.lr": 1e-3,
    "rib.snapshots": True, "scoring.low": 0.02, "scoring.high": 0.4, "scoring.step": 0.02,
    "run.executor": "local", "run.tracking_uri": "none", "until": "seed",
}  # fmt: skip


def tiny(out: Path, **changes: Any) -> ShapesExperiment:
    return ShapesExperiment(name="tiny", out=str(out)).replace(**{**TINY, **changes})


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "out"
    run(tiny(out))
    return out


def test_leaves_what_the_interface_says(reference: Path) -> None:
    rows = json.loads((reference / "scores.json").read_text())["rows"]
    seen = {(r["stage"], r["method"], r["metric"]) for r in rows}
    for method in ("cam", "rib", "whole_picture", "centred_box"):
        assert {("seed", method, m) for m in ("mIoU", "F", "J_and_F", "precision", "recall", "F1")} <= seen
    assert all(0 <= r["value"] <= 100 and r["protocol"]["dataset"] for r in rows)
    record = next(r["protocol"] for r in rows if r["method"] == "rib")
    assert record["threshold"]["source"] == "oracle" and record["labels"]["oracle"] is False and record["images"] == 10
    assert record["from_scratch"] is True and record["classes"][0] == "background"
    provenance = json.loads((reference / "run.json").read_text())
    assert provenance["status"] == "FINISHED" and provenance["exit_status"] == 0 and provenance["versions"]["torch"]
    assert "RIB" in (reference / "report.html").read_text()


def test_method_is_compared_with_cam_picture_by_picture(reference: Path) -> None:
    content = json.loads((reference / "scores.json").read_text())
    (paired,) = content["paired"]
    value = {r["method"]: r["value"] for r in content["rows"] if r["metric"] == "mIoU" and r["stage"] == "seed"}
    assert paired["difference"] == pytest.approx(value["rib"] - value["cam"]) and paired["pictures"] == 10
    assert paired["low"] <= paired["high"] and "bootstrap" in (reference / "report.html").read_text()


def test_j_and_f_share_their_threshold(reference: Path) -> None:
    rows = json.loads((reference / "scores.json").read_text())["rows"]
    by = {r["metric"]: r for r in rows if r["method"] == "rib" and r["seed"] == 0}
    assert by["J_and_F"]["value"] == pytest.approx((by["mIoU"]["value"] + by["F"]["value"]) / 2)
    assert by["mIoU"]["protocol"]["threshold"] == by["F"]["protocol"]["threshold"]


def test_maps_of_rib_are_others_than_cams(reference: Path) -> None:
    cams, ribs = open_stage(reference, "maps", method="cam"), open_stage(reference, "maps", method="rib")
    assert cams.ids() == ribs.ids()
    moved = 0
    for cam, rib in zip(cams, ribs, strict=True):
        assert rib.snapshots is not None and 1 <= len(rib.snapshots) <= 3
        # The first step looks at the untouched classifier: that is the plain CAM.
        assert all(np.allclose(a, b, atol=1e-4, rtol=1e-4) for a, b in zip(cam.sums, rib.snapshots[0], strict=True))
        moved += rib.steps > 1 and any(not np.allclose(a, b) for a, b in zip(cam.sums, rib.sums, strict=True))
    assert moved > len(cams) / 2


def test_second_call_computes_nothing(reference: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in reference.rglob("*.arrow")}
    result = run(tiny(reference))
    assert before == {p: p.stat().st_mtime_ns for p in reference.rglob("*.arrow")}
    assert all(stage.computed == 0 for stage in result.stages)
    assert all(m["computed"] == 0 for m in find_stages(reference))


def test_finished_study_starts_no_cluster(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from seedbed.runtime import launch

    def started(*_: Any) -> None:
        raise AssertionError("a cluster was asked for")

    monkeypatch.setattr(launch, "ray_executor", started)
    changes = {"run.executor": "ray"}
    assert all(stage.computed == 0 for stage in run(tiny(reference, **changes)).stages)
    with pytest.raises(AssertionError, match="asked for"):
        run(tiny(reference, **changes, **{"rib.lr": 2e-3}))


def test_a_lost_map_is_the_only_one_made_again(reference: Path, tmp_path: Path) -> None:
    import shutil

    from seedbed.artefacts import Fragments, Stage

    out = tmp_path / "copy"
    shutil.copytree(reference, out)
    manifest = next(m for m in find_stages(out, "maps") if m["method"] == "rib")
    folder = Path(manifest["folder"])
    kept = list(Fragments(folder))[:-3]
    from seedbed.artefacts import MAPS

    for path in folder.iterdir():
        path.unlink()
    stage = Stage(out, "maps", manifest["key"], MAPS, method="rib")
    with stage.writer(2) as writer:
        for record in kept:
            writer.add({k: v for k, v in record.items() if k != "hash"})
    result = run(tiny(out))
    assert next(s.computed for s in result.stages if s.name.startswith("maps rib")) == 3
    assert digests(out) == digests(reference)


def test_masks_reach_the_scores_alone(reference: Path, tmp_path: Path) -> None:
    """Every mask upside down, pictures and labels as they were: classifier and maps are bit-identical, scores are not."""
    from seedbed.pipeline import Experiment

    changes = {k: v for k, v in TINY.items() if not k.startswith("shapes.")}
    changes["data.store"] = scrambled(reference, tmp_path / "scrambled")
    run(Experiment(name="tiny", out=str(tmp_path / "out")).replace(**changes))
    mine, theirs = digests(tmp_path / "out"), digests(reference)
    assert mine["classifier"] == theirs["classifier"] and mine["maps"] == theirs["maps"]
    assert mine["seeds"] != theirs["seeds"]


def test_two_seeds_have_mean_and_std(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(tiny(tmp_path / "out", seeds=2, seeds_vary="rib", **{"rib.lr": 3e-3}))
    assert "RIB" in capsys.readouterr().out, "thresholds that differ from seed to seed must not break the table"
    values = {r["seed"]: r["value"] for r in result.rows if (r["method"], r["metric"]) == ("rib", "mIoU")}
    assert values["mean"] == pytest.approx((values[0] + values[1]) / 2) and values[0] != values[1] and "std" in values
    assert len(find_stages(tmp_path / "out", "classifier")) == 1, "seeds-vary rib trains once"


def test_until_maps_scores_nothing(tmp_path: Path) -> None:
    result = run(tiny(tmp_path / "out", until="maps"))
    assert {s.name.split()[0] for s in result.stages} == {"classifier", "maps"}
    assert not [r for r in result.rows if r["stage"] == "seed"]


def test_explain_writes_nothing(tmp_path: Path, reference: Path) -> None:
    from seedbed.pipeline import explain

    lines: list[str] = []
    explain(tiny(tmp_path / "new"), lines.append)
    assert not list(tmp_path.rglob("*")) and all("runs" in line for line in lines)
    lines.clear()
    explain(tiny(reference, **{"rib.lr": 1e-5}), lines.append)
    states = {line.split()[0] + " " + line.split()[1]: line for line in lines}
    assert "found" in next(v for k, v in states.items() if k.startswith("maps cam"))
    assert "runs" in next(v for k, v in states.items() if k.startswith("maps rib"))


def test_every_picture_failing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from seedbed.methods.cam import Cam

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no map today")

    monkeypatch.setattr(Cam, "localise", broken)
    with pytest.raises(UserError) as caught:
        run(tiny(tmp_path / "out"))
    assert "no map today" in caught.value.message


def test_one_picture_failing_is_set_aside_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from seedbed.methods.cam import Cam

    plain = Cam.localise

    def fussy(self: Cam, model: Any, views: Any, labels: Any, companions: Any) -> Any:
        if views.id == victim:
            raise RuntimeError("not this one")
        return plain(self, model, views, labels, companions)

    experiment = tiny(tmp_path / "out", method="cam")
    victim = experiment.open_data().ids("train")[0]
    monkeypatch.setattr(Cam, "localise", fussy)
    result = run(experiment)
    aside = [a for s in result.stages for a in s.set_aside]
    assert aside == [{"id": victim, "reason": "RuntimeError: not this one"}]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["exit_status"] == 3


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"rib.steps": 0}, "steps"),
        ({"rib.tau": float("nan")}, "tau"),
        ({"rib.batch": 10**6}, "batch"),
        ({"run.actors": 0}, "actors"),
        ({"classifier.weights": "/nowhere/weights.pth"}, "/nowhere/weights.pth"),
        ({"data.score_split": "test"}, "test"),
        ({"seeds": 0}, "seeds"),
        ({"method": "seam", "seeds": 2, "seeds_vary": "rib"}, "--seeds-vary"),
    ],
)
def test_bad_settings_name_the_field(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError) as caught:
        run(tiny(tmp_path / "out", **change))
    assert word in caught.value.text() and caught.value.remedy


def test_command_line_stands_above_smoke_above_preset_above_script() -> None:
    script = ShapesExperiment(name="x").replace(**{"rib.margin": 5.0, "rib.lr": 1.0, "rib.area_guard": True, "rib.steps": 4})
    smoke = {"rib.steps": 2}
    assert parse(script, smoke, []).rib.margin == 5.0
    paper = parse(script, smoke, ["--rib.preset", "paper"])
    assert paper.rib.area_guard is False and paper.rib.lr == 8e-6 and paper.rib.steps == 10
    both = parse(script, smoke, ["--rib.preset", "paper", "--smoke"])
    assert both.rib.steps == 2 and both.rib.area_guard is False
    assert parse(script, smoke, ["--rib.preset", "paper", "--smoke", "--rib.steps", "7"]).rib.steps == 7
    assert parse(script, smoke, ["--smoke", "--rib.steps", "2"]).key() == parse(script, smoke, ["--rib.steps", "2"]).key()


def test_a_recipe_stands_where_the_script_does() -> None:
    """Above what the script says, below presets, --smoke and the command line."""

    def recipe(chosen: Experiment) -> dict[str, Any]:
        return {"rib.margin": 7.0, "rib.steps": 8} if chosen.method == "cam" else {}

    script = Experiment(name="study", rib=RibConfig(margin=5.0))
    assert parse(script, {}, [], recipe).rib.margin == 5.0
    cam = parse(script, {"rib.steps": 3}, ["--method", "cam"], recipe)
    assert (cam.method, cam.rib.margin, cam.rib.steps) == ("cam", 7.0, 8)
    assert parse(script, {"rib.steps": 3}, ["--method", "cam", "--smoke"], recipe).rib.steps == 3
    assert parse(script, {}, ["--method", "cam", "--rib.margin", "9"], recipe).rib.margin == 9.0
    assert parse(script, {}, ["--method", "cam", "--rib.preset", "paper"], recipe).rib.preset == "paper"


def test_exported_seeds_give_the_scores_again(reference: Path, tmp_path: Path) -> None:
    """The PNG of every method, counted anew against the store's masks."""
    from PIL import Image

    from seedbed.__main__ import export
    from seedbed.data import open_store

    store = open_store(next((reference / "data").iterdir()))
    assert export(reference, "seed", tmp_path / "png") == 4 * 10
    rows = json.loads((reference / "scores.json").read_text())["rows"]
    for method in ("cam", "rib"):
        row = next(r for r in rows if r["method"] == method and r["metric"] == "mIoU" and r["seed"] == 0)
        hist = np.zeros((7, 7), np.int64)
        for path in sorted((tmp_path / "png" / method).glob("*.png")):
            with Image.open(path) as picture:
                assert picture.mode == "P" and picture.getpalette()[:3] == list(store.info.palette[0])  # type: ignore[index]
                predicted = np.array(picture)
            np.add.at(hist, (store[path.stem].mask().ravel(), predicted.ravel()), 1)  # type: ignore[union-attr]
        there = hist.sum(1) > 0
        iou = np.diag(hist) / np.maximum(hist.sum(0) + hist.sum(1) - np.diag(hist), 1)
        assert row["protocol"]["absent_classes"] == "truth"
        assert row["value"] == pytest.approx(100 * iou[there].mean(), abs=1e-9)


def test_nothing_to_export_is_said(tmp_path: Path) -> None:
    from seedbed.__main__ import export

    with pytest.raises(UserError) as caught:
        export(tmp_path, "seed", tmp_path / "png")
    assert "seeds" in caught.value.message


def test_what_chooses_the_threshold_is_in_the_key(reference: Path) -> None:
    from seedbed.stages import Study

    def keys(**changes: Any) -> tuple[str, str]:
        study = Study.open(tiny(reference, **changes), dry=True)
        return study.seeds_stage("rib", 0).key, study.seeds_stage("centred_box", 0).key

    plain = keys()
    assert keys(**{"scoring.absent_classes": "zero"})[0] != plain[0]
    assert keys(**{"scoring.high": 0.3})[0] != plain[0]
    assert keys(**{"scoring.threshold_source": "fixed", "scoring.threshold": 0.1})[0] != plain[0]
    held_out = {"scoring.threshold_source": "held-out", "scoring.held_out_split": "val"}
    assert keys(**held_out)[0] != plain[0]
    assert keys(**{"scoring.high": 0.3})[1] == plain[1], "a row without a network has no threshold"


def test_held_out_threshold(tmp_path: Path) -> None:
    result = run(tiny(tmp_path / "out", method="cam", **{"scoring.threshold_source": "held-out", "scoring.held_out_split": "val"}))
    row = next(r for r in result.rows if r["method"] == "cam" and r["metric"] == "mIoU" and r["stage"] == "seed")
    assert row["protocol"]["threshold"]["source"] == "held-out" and row["protocol"]["threshold"]["split"] == "val"
    assert row["protocol"]["images"] == 10 and len(find_stages(tmp_path / "out", "thresholds")) == 2


def test_pictures_that_were_not_trained_on_are_oracle_rows(tmp_path: Path) -> None:
    result = run(tiny(tmp_path / "out", method="cam", **{"data.map_limit": 20}))
    assert all(r["protocol"]["labels"]["oracle"] for r in result.rows if r["stage"] == "seed")
