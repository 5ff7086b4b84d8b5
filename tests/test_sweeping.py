"""Sweeps without Ray: tables, spaces, what is free, records, failures, the report. Ray Tune: tests/runtime/test_sweep.py."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from test_study import TINY

from seedbed.artefacts import find_stages
from seedbed.methods.rib import RibConfig
from seedbed.pipeline import Experiment, RefineConfig, ShapesExperiment
from seedbed.study import run as run_study
from seedbed.sweeps import space
from seedbed.sweeps.addon_tables import ADDON_TABLES
from seedbed.sweeps.cut import free_settings, share_runs
from seedbed.sweeps.differences import reference_lines
from seedbed.sweeps.drive import Driver, absolute, explain, main, run
from seedbed.sweeps.isl_tables import ISL_TABLES
from seedbed.sweeps.rib_tables import RIB_TABLES
from seedbed.sweeps.settings import ShapesSweep, Sweep
from seedbed.sweeps.tables import Line, PaperTable, SweepResult, named, printed
from seedbed.sweeps.trials import setting_text
from seedbed.sweeps.view import notes_of
from seedbed.sweeps.watch import score_of
from seedbed.types import UserError


def tiny(out: Path, **changes: Any) -> ShapesSweep:
    return ShapesSweep(name="tiny", out=str(out)).replace(**{**TINY, "rib.snapshots": False, **changes})


def plain(out: Path, **changes: Any) -> ShapesExperiment:
    return ShapesExperiment(name="tiny", out=str(out)).replace(**{**TINY, "rib.snapshots": False, **changes})


def sweep(out: Path, **changes: Any) -> SweepResult:
    return run(tiny(out, **changes), RIB_TABLES)


def scores(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((out / "scores.json").read_text())["rows"]
    return rows


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Table 5(b): five trials, two of which are cut out of a third."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    sweep(out, table="5b", **{"rib.margin": 4.0})
    return out


# --- what is asked for --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "trials"), [("5a", 4), ("5b", 5), ("5c", 4), ("S1", 7), ("fig5", 3)])
def test_papers_grids(name: str, trials: int) -> None:
    """With the paper's own base every value is the paper's, every row has its printed number."""
    table = named(RIB_TABLES, name, Experiment())
    assert len(table.settings) == trials
    assert all(line.printed["mIoU"][0] > 48 for line in table.lines if name != "fig5")
    own = [line for line in table.lines if line.default]
    assert len(own) == 1 and own[0].printed["mIoU"][0] == 56.5
    assert Experiment().replace(**{**table.fixed, **own[0].setting}).key() == Experiment().replace(**table.fixed).key()


def test_papers_values() -> None:
    lines = named(RIB_TABLES, "5(b)", Experiment()).lines
    assert [(x.setting["rib.margin"], x.setting["rib.lr"], x.printed["mIoU"][0]) for x in lines if x.setting] == [
        (300.0, 8e-6, 54.0), (600.0, 5e-6, 54.9), (600.0, 8e-6, 56.5), (600.0, 1e-5, 56.0), (1000.0, 8e-6, 55.9),
    ]  # fmt: skip
    assert [x.setting["rib.batch"] for x in named(RIB_TABLES, "S1", Experiment()).lines if x.setting] == [1, 5, 10, 15, 20, 25, 30]
    assert printed("rib_tableS1", note="B=1")["mIoU"][0] == 55.3


def test_a_base_of_another_scale_gets_multiples() -> None:
    base = Experiment().replace(**{"rib.margin": 60.0, "rib.lr": 1e-4, "rib.batch": 3})
    assert [x.setting["rib.margin"] for x in named(RIB_TABLES, "5b", base).lines if x.setting] == [30.0, 60.0, 60.0, 60.0, 100.0]
    batches = named(RIB_TABLES, "S1", base)
    assert [s["rib.batch"] for s in batches.settings] == [1, 1, 2, 3, 4] and "multiples" in batches.note
    assert batches.settings[0]["rib.companions"] == "none", "B = 1 is the target alone"


def test_fig5_under_a_constant_rate_has_every_k() -> None:
    base = Experiment().replace(rib=RibConfig.named("paper", steps=4))
    assert [s["rib.steps"] for s in named(RIB_TABLES, "Fig. 5", base).settings] == [1, 2, 3, 4, 1, 2, 3, 4, 8]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"table": "7x"}, "5a, 5b, 5c, S1, fig5"),
        ({}, "nothing is varied"),
        ({"table": "5c", "trials": 5}, "--trials is 5, but the grid has 4"),
        ({"table": "5c", "space": ("rib.tau=0.1,0.2",)}, "own grid"),
        ({"search": "random", "trials": 3}, "search space is empty"),
        ({"search": "random", "trials": 3, "space": ("{}",)}, "search space is empty"),
        ({"search": "random", "space": ("rib.tau=0.1:0.2",)}, "number of trials"),
        ({"search": "random", "trials": 4, "space": ("rib.pooling=gap,gndrp",)}, "the grid has 2"),
        ({"search": "random", "trials": 4, "space": ("rib.tua=0.1:0.2",)}, "rib.tua"),
        ({"search": "random", "trials": 4, "space": ("rib.tau=0.3:0.2",)}, "no range"),
        ({"search": "random", "trials": 4, "space": ("rib.tau=0.3:1.2",)}, "--rib.tau is 1.2"),
        ({"search": "random", "trials": 4, "space": ("rib.pooling=gap,max",)}, "--rib.pooling is 'max'"),
        ({"search": "random", "trials": 4, "space": ("rib.steps=a,b",)}, "no value"),
        ({"search": "random", "trials": 4, "space": ("cam.scales=1,2",)}, "list"),
        ({"search": "random", "trials": 4, "space": ("rib.tau",)}, "no values"),
        ({"search": "random", "trials": 4, "space": ("{rib",)}, "JSON"),
        ({"search": "random", "trials": 2, "space": ("rib.momentum=abc,0.9",)}, "it takes float or none"),
        ({"search": "random", "trials": 2, "space": ("rib.snapshots=0.1:0.9",)}, "no range"),
        ({"space": ('{"rib.tau": []}',)}, "no values for rib.tau"),
        ({"search": "random", "trials": 3, "space": ('{"rib.tau": []}',)}, "no values for rib.tau"),
        ({"search": "random", "trials": 2, "space": ("rib.steps=2.2:2.8",)}, "no range"),
        ({"search": "random", "trials": 2, "space": ("run.actors=1,2",)}, "no trial's result depends on it"),
        ({"search": "random", "trials": 2, "space": ("until=seed,maps",)}, "no trial's result depends on it"),
        ({"search": "random", "trials": 2, "space": ("data.store=a,b",)}, "no trial's result depends on it"),
        ({"search": "random", "trials": 2, "space": ("rib.preset=official,paper",)}, "no trial's result depends on it"),
        ({"search": "random", "trials": 2, "space": ("rib.tau=0.1:0.2", "--rib.tau=0.3,0.4")}, "rib.tau twice"),
        ({"search": "random", "trials": 2, "space": ('{"rib.tau": "0.1:0.2", "rib.tau": [0.3]}',)}, "rib.tau twice"),
        ({"space": ("rib.tau=0.1:0.2",)}, "can't hold the range"),
        ({"search": "optuna", "trials": 4, "space": ("rib.tau=0.1:0.2",)}, "Ray"),
        ({"table": "5c", "stop": "asha"}, "grid"),
        ({"table": "5a", "method": "cam"}, "say --method rib"),
        ({"table": "fig5", "method": "seam"}, "not about seam"),
        ({"search": "random", "trials": 2, "table": "5a", "method": "cam", "space": ("cam.flip=true,false",)}, "say --method rib"),
        (
            {"search": "random", "trials": 2, "until": "maps", "stop": "asha", "space": ("rib.tau=0.1:0.2",), "run.executor": "ray"},
            "no score",
        ),
    ],
    ids=str,
)
def test_bad_input_names_the_remedy(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError) as caught:
        Driver(tiny(tmp_path / "out", **changes), RIB_TABLES)
    assert word in caught.value.text() and caught.value.remedy


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--table", "5c", "--until", "segmentation"], "sets --until to seed in all its trials, and would ignore segmentation"),
        (["--table", "fig5", "--rib.no-snapshots"], "sets --rib.snapshots to True"),
        (["--table=5c", "--baseline=mask"], "leave --baseline out"),
        (["--table", "5c", "--until=seed", "--rib.tau", "0.35", "--rib.lr=0.002", "--data.score-split", "train"], ""),
        (["--table", "5b", "--rib.margin", "1234.5678"], ""),
        (["--search", "random", "--trials", "2", "--space", "rib.tau=0.1:0.2", "--until", "mask"], ""),
    ],
)
def test_a_flag_that_a_table_would_ignore_is_refused(
    tmp_path: Path, flags: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(tiny(tmp_path / "out"), RIB_TABLES, {"rib.steps": 2}, [*flags, "--smoke", "--explain"])
    shown = capsys.readouterr().err
    assert (ended.value.code, word in shown) == (2 if word else 0, True), shown


def test_tables_of_hfpl_refuse_other_splits_and_methods(tmp_path: Path) -> None:
    base = Sweep(name="x", method="seam", addons=("isl",), table="5", out=str(tmp_path))
    for said, changes in {"data.segment_splits": ("train", "val"), "isl.weight": 0.3}.items():
        with pytest.raises(UserError) as caught:
            Driver(base.replace(**{said: changes}), ISL_TABLES, (said,))
        assert caught.value.field == f"--{said}".replace("_", "-") and caught.value.remedy
    Driver(base, ISL_TABLES, ("data.score_split", "isl.samples", "method"))
    with pytest.raises(UserError, match="about seam, not about cam"):
        Driver(base.replace(method="cam"), ISL_TABLES)


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"space": ("isl.weight=0.1,0.5",)}, "--addons isl"),
        ({"space": ("rib.tau=0.1,0.5", "fsl.mu=2,3"), "addons": ("isl",)}, "--addons isl fsl"),
        ({"space": ("rib.tau=0.1:0.5",), "method": "cam", "search": "random", "trials": 3}, "--method rib"),
        ({"space": ("rib.tau=0.1:0.5", "isl.weight=0:1"), "search": "optuna", "trials": 3, "run.executor": "ray"}, "--addons isl"),
        ({"space": ("segmenter.lr=0.1,0.2",)}, "--until segmentation"),
        ({"space": ("rib.tau=0.2,0.4", "fsl.mu=7")}, "--addons fsl"),
    ],
    ids=str,
)
def test_a_setting_that_no_trial_uses_is_refused(tmp_path: Path, changes: dict[str, Any], remedy: str) -> None:
    with pytest.raises(UserError, match="which nothing in these trials uses") as caught:
        run(tiny(tmp_path / "out", **changes), RIB_TABLES)
    assert caught.value.remedy == f"say {remedy}" and not (tmp_path / "out" / "stages").exists()


def test_a_setting_that_some_trials_use_is_none_of_those(tmp_path: Path) -> None:
    """Plain CAMs know no tau: two of these trials are one."""
    driver = Driver(tiny(tmp_path / "out", space=("method=cam,rib", "rib.tau=0.1,0.5")), RIB_TABLES)
    driver.open()
    assert len({t.key for t in driver.plan("cpu")}) == 3
    assert len(driver.left(driver.plan("cpu"))) == 3


def test_a_search_goes_by_one_split_of_the_segmentation(tmp_path: Path) -> None:
    """Score, table and best trial speak of one number: the scored split, or the first segmented one."""
    search = {"search": "random", "trials": 2, "space": ("rib.tau=0.1:0.2",)}

    def split(**changes: Any) -> str:
        return Driver(tiny(tmp_path / "out", **search, **changes), RIB_TABLES).table.split

    assert split(until="segmentation") == "train" == split(until="seed") and split(until="seed", **{"data.score_split": "val"}) == "val"
    assert split(until="segmentation", **{"data.segment_splits": ("val",)}) == "val"
    table = Driver(tiny(tmp_path / "out", until="segmentation", **search), RIB_TABLES).table
    rows = [{"stage": "segmentation", "metric": "mIoU", "split": name, "value": value} for name, value in (("train", 10.0), ("val", 90.0))]
    assert score_of(table, {"rows": rows}) == 10.0


def test_a_trials_counts_are_of_the_split_that_the_search_goes_by(tmp_path: Path) -> None:
    """Else differences would be between two splits, or none."""
    from seedbed.stages import Study
    from seedbed.sweeps.trials import scored_stage

    for splits, scored, expected in ((("train", "val"), "val", "val"), (("val", "train"), "train", "train"), (("val",), "train", "val")):
        changes = {"data.segment_splits": splits, "data.score_split": scored}
        driver = Driver(tiny(tmp_path / "out", until="segmentation", space=("rib.tau=0.1,0.2",), **changes), RIB_TABLES)
        driver.open(dry=True)
        study = Study(driver.plan("cpu")[0].experiment, driver.store, "cpu")
        assert driver.table.split == expected
        assert scored_stage(study, 0) == ["predictions", study.predictions_stage("rib", 0, expected).key]


def test_early_stopping_goes_by_seeds_alone(tmp_path: Path) -> None:
    search = {"search": "random", "trials": 2, "space": ("rib.tau=0.1:0.2",), "stop": "asha", "run.executor": "ray"}
    Driver(tiny(tmp_path / "out", until="seed", **search), RIB_TABLES)
    for until in ("mask", "segmentation"):
        with pytest.raises(UserError, match=f"scored by the {until}") as caught:
            Driver(tiny(tmp_path / "out", until=until, **search), RIB_TABLES)
        assert caught.value.field == "--stop"


def test_a_flag_that_changes_no_trial_is_refused(tmp_path: Path) -> None:
    """Said of an add-on that no trial has, or of what the table sets in each; a base that the table's values are multiples of is used."""

    def opened(table: str, tables: Any, **changes: Any) -> None:
        method = "seam" if tables is ISL_TABLES else "rib"
        Driver(tiny(tmp_path / "out", table=table, method=method, **changes), tables, tuple(changes)).open(dry=True)

    for table, tables, changes in (
        ("5c", RIB_TABLES, {"fsl.mu": 3.0}),
        ("cam", ADDON_TABLES, {"rib.lr": 1e-5}),
        ("5", ISL_TABLES, {"isl.samples": 50}),
    ):
        with pytest.raises(UserError, match="changes none of these trials") as caught:
            opened(table, tables, **changes)
        assert caught.value.field == f"--{next(iter(changes))}"
    opened("5b", RIB_TABLES, **{"rib.margin": 4.0})
    opened("cam", ADDON_TABLES, **{"isl.weight": 0.4})
    opened("5c", RIB_TABLES, **{"rib.winograd": False})  # does not decide what comes out


def test_a_range_of_few_values_ends(tmp_path: Path) -> None:
    narrow = space.read_space(("isl.weight=0.2:0.2000001",), Experiment())
    with pytest.raises(UserError, match="the grid has 1"):
        space.draw(narrow, 5, 0)
    assert len(space.draw(narrow, 5, 0, fewer=True)) == 1


def test_a_table_of_one_method_does_not_ignore_another(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sets --method to cam in all its trials, and would ignore seam"):
        Driver(tiny(tmp_path / "out", method="seam", table="cam"), ADDON_TABLES, ("method",))
    Driver(tiny(tmp_path / "out", method="cam", table="seam"), ADDON_TABLES, ())


def test_trials_are_told_apart_by_name() -> None:
    assert setting_text({"rib.tau": 0.3, "rib.batch": 2}) == "tau 0.3, batch 2"
    assert setting_text({"rib.batch": 2, "classifier.batch": 3, "rib.tau": 0.3}) == "rib.batch 2, classifier.batch 3, tau 0.3"


def test_space_in_words_and_in_json() -> None:
    base = Experiment()
    words = space.read_space(("rib.tau=0.2:0.6", "rib.lr=1e-6:1e-4:log", "rib.pooling=gap,gndrp", "rib.steps=2:5"), base)
    same = {"rib.tau": "0.2:0.6", "rib.lr": "1e-6:1e-4:log", "rib.pooling": ["gap", "gndrp"], "rib.steps": "2:5"}
    assert space.read_space((json.dumps(same),), base) == words
    drawn = space.draw(words, 30, 7)
    assert drawn == space.draw(words, 30, 7) and space.draw(words, 10, 7) == drawn[:10] and space.draw(words, 10, 8) != drawn[:10]
    assert {d["rib.steps"] for d in drawn} == {2, 3, 4, 5} and {d["rib.pooling"] for d in drawn} == {"gap", "gndrp"}
    assert all(0.2 <= d["rib.tau"] <= 0.6 and 1e-6 <= d["rib.lr"] <= 1e-4 for d in drawn)
    assert sum(d["rib.lr"] < 1e-5 for d in drawn) > 8, "a range over decades is drawn by decades"
    assert space.size(space.read_space(("rib.steps=2:5", "rib.pooling=gap,gndrp"), base)) == 8


def test_options_have_the_type_that_the_setting_is_declared_as() -> None:
    """A default of none says nothing of it."""
    base = Experiment()
    words = (
        "rib.momentum=0.9,0.5,none",
        "rib.snapshots=true,false",
        "rib.target_rows=scales,single",
        "refine.saliency=a,b",
        "rib.steps=2,3",
    )
    read = {name: d.options for name, d in space.read_space(words, base).items() if isinstance(d, space.Choice)}
    assert read["rib.momentum"] == (0.9, 0.5, None) and read["rib.snapshots"] == (True, False) and read["refine.saliency"] == ("a", "b")
    assert [type(v) for v in read["rib.steps"]] == [int, int]
    assert space.read_space((json.dumps({"rib.momentum": [0.9, 0.5, None]}),), base)["rib.momentum"] == space.Choice((0.9, 0.5, None))
    assert space.read_space(("rib.momentum=0.1:0.9",), base)["rib.momentum"] == space.Range(0.1, 0.9)


@pytest.mark.parametrize("scale", ["", ":log"])
def test_ranges_of_whole_numbers_yield_whole_numbers(scale: str) -> None:
    drawn = space.draw(space.read_space((f"rib.steps=1.2:3.8{scale}", "rib.tau=0.1:0.9"), Experiment()), 40, 0)
    assert {d["rib.steps"] for d in drawn} == {2, 3} and {type(d["rib.steps"]) for d in drawn} == {int}
    assert {type(d["rib.steps"]) for d in space.draw(space.read_space((f"rib.steps=1:8{scale}",), Experiment()), 8, 0)} == {int}


# --- what is free -------------------------------------------------------------------------------------


def test_what_is_free() -> None:
    assert free_settings(RibConfig()) == ("margin",)
    assert free_settings(RibConfig.named("paper")) == ("steps",)
    assert free_settings(RibConfig(precision="bf16")) == ()
    assert free_settings(RibConfig.named("paper", area_guard=True)) == ()
    base = Experiment()
    settings = named(RIB_TABLES, "5b", base).settings
    shared = share_runs([base.replace(**s) for s in settings])
    assert [source for _, source in shared] == [4, None, 4, None, None]
    assert [e.rib.snapshots for e, _ in shared] == [False, False, False, False, True]
    other = [base.replace(**{"rib.margin": 300.0, "rib.tau": 0.3}), base]
    assert [source for _, source in share_runs(other)] == [None, None], "another tau is another run"


def test_smaller_margins_are_cut_bit_by_bit(reference: Path, tmp_path: Path) -> None:
    """Each of the trials that were cut equals a run of its own: same key, same digest, though it was never run."""
    cut = {m["key"]: m for m in find_stages(reference, "maps") if m["summary"].get("cut_from")}
    assert len(cut) == 2 and len({m["digest"] for m in find_stages(reference, "maps")}) >= 5
    for margin in (2.0, 4.0):
        out = tmp_path / f"own-{margin}"
        run_study(plain(out, **{"rib.margin": margin}))
        own = next(m for m in find_stages(out, "maps") if m["method"] == "rib")
        assert cut[own["key"]]["digest"] == own["digest"] and "cut_from" not in own["summary"]
    ends = {r["ended"] for r in map(_ends, find_stages(reference, "maps")) for r in r}
    assert "margin" in ends


def test_maps_of_a_classifier_with_add_ons_are_cut_too(tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    sweep(out, space=("rib.margin=2,4",), addons=("isl",), **{"data.limit": 6})
    maps = [m for m in find_stages(out, "maps") if m["method"] == "rib+isl"]
    assert [bool(m["summary"].get("cut_from")) for m in maps] == [False, True]


def _ends(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    from seedbed.artefacts import Fragments

    return [{"ended": ended} for (ended,) in Fragments(Path(manifest["folder"])).columns("ended")]


def test_fewer_steps_are_cut_bit_by_bit(tmp_path: Path) -> None:
    paper = {f"rib.{name}": value for name, value in RibConfig.PRESETS["paper"].items() if name not in ("steps", "batch", "lr")}
    changes = {**paper, "rib.lr": 1e-3, "rib.batch": 3, "data.limit": 6}
    result = sweep(tmp_path / "sweep", table="fig5", **changes)
    assert not result.failed and len(result.trials) == 3 + 3 + 1
    cut = {m["key"]: m for m in find_stages(tmp_path / "sweep", "maps") if m["summary"].get("cut_from")}
    assert len(cut) == 5, "GAP of 1 and 2 steps out of 3, GNDRP of 1, 2 and 3 out of 6"
    for steps in (1, 3):
        run_study(plain(tmp_path / str(steps), **changes, **{"rib.steps": steps, "rib.snapshots": True}))
        own = next(m for m in find_stages(tmp_path / str(steps), "maps") if m["method"] == "rib")
        assert cut[own["key"]]["digest"] == own["digest"]


# --- running ------------------------------------------------------------------------------------------


def test_rows_carry_their_setting(reference: Path) -> None:
    rows = [r for r in scores(reference) if r["stage"] == "seed" and r["metric"] == "mIoU"]
    varied = [r["setting"] for r in rows if r["method"] == "rib"]
    assert varied == named(RIB_TABLES, "5b", tiny(reference, **{"rib.margin": 4.0})).settings
    assert {r["method"] for r in rows if "setting" not in r} == {"cam", "whole_picture", "centred_box"}
    assert len({r["value"] for r in rows}) > 3, "the setting changes nothing"
    record = json.loads((reference / "run.json").read_text())
    assert len(record["trials"]) == 5 and record["exit_status"] == 0 and record["name"] == "tiny"


def test_table_report_and_csv(reference: Path) -> None:
    every = list(csv.DictReader((reference / "table_5b.csv").read_text().splitlines()))
    assert [x["label"] for x in every if x["kind"] == "without network"] == ["whole picture", "centered box"]
    lines = [x for x in every if x["kind"] == "trial"]
    assert [float(x["printed"]) for x in lines] == [54.0, 54.9, 56.5, 56.0, 55.9]
    assert all(float(x["low"]) <= float(x["difference"]) <= float(x["high"]) for x in lines if x["difference"])
    assert sum(not x["difference"] for x in lines) == 1, "the paper's own setting is what the others are compared with"
    html = (reference / "report.html").read_text()
    assert html.index('id="sweep"') < html.index('id="scores"'), "the sweep is what the page is about"
    assert "Best of 5 trials: " in html and "cut: the maps were taken out" in html
    assert "Margin m and learning rate lambda" in html and "56.5" in html and (reference / "figures" / "sweep.svg").exists()
    paired = json.loads((reference / "scores.json").read_text())["paired"]
    assert len(paired) == 4 and all(p["pictures"] == 10 for p in paired)


def test_second_call_runs_nothing_and_starts_no_ray(
    reference: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from seedbed.runtime import launch

    def started(*_: Any) -> None:
        raise AssertionError("a cluster was asked for")

    monkeypatch.setattr(launch, "ray_executor", started)
    before = {p: p.stat().st_mtime_ns for p in reference.rglob("*.arrow")}
    values = [r["value"] for r in scores(reference)]
    result = sweep(reference, table="5b", **{"rib.margin": 4.0, "run.executor": "ray"})
    assert not result.computed and [r["value"] for r in scores(reference)] == values
    assert before == {p: p.stat().st_mtime_ns for p in reference.rglob("*.arrow")}
    assert "found" in capsys.readouterr().out


def test_a_trial_of_another_table_is_shared(reference: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(reference, tmp_path / "copy")
    result = sweep(tmp_path / "copy", search="grid", space=("rib.lr=0.001,0.002",), **{"rib.margin": 4.0})
    assert len(result.computed) == 1 and len(result.trials) == 2
    assert [r["label"] for r in csv.DictReader((tmp_path / "copy" / "table_grid.csv").read_text().splitlines())] == [
        "CAM", "lr 0.001", "lr 0.002", "whole picture", "centered box",
    ]  # fmt: skip


def test_a_figure_finds_the_trials_of_a_table(tmp_path: Path) -> None:
    """Fig. 5 names the steps where Table 5(c) does not: the same trials under other settings."""
    out, changes = tmp_path / "out", {"data.limit": 6, "rib.snapshots": True}
    sweep(out, table="5c", **changes)
    result = sweep(out, table="fig5", **changes)
    assert [t.setting for t in result.trials if t.key not in result.computed] == [
        {"rib.pooling": pooling, "rib.steps": TINY["rib.steps"]} for pooling in ("gap", "gndrp")
    ]
    assert all(result.records[t.key]["setting"] == t.setting for t in result.trials)
    shown = json.loads((out / "run.json").read_text())["trials"]
    assert sorted(entry["setting"]["rib.steps"] for entry in shown.values()) == sorted(t.setting["rib.steps"] for t in result.trials)
    steps = {r["setting"]["k"] for r in scores(out) if "k" in (r.get("setting") or {})}
    assert steps >= set(range(TINY["rib.steps"]))


def test_a_failed_trial_is_named_and_tried_again(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    from seedbed.sweeps import trials

    out = tmp_path / "copy"
    shutil.copytree(reference, out)
    works = trials.TrialExecutor.map_images

    def broken(self: Any, *arguments: Any) -> int:
        if self.trial.setting["rib.tau"] == 0.1:
            raise RuntimeError("not this one")
        return works(self, *arguments)

    monkeypatch.setattr(trials.TrialExecutor, "map_images", broken)
    changes = {"space": ("rib.tau=0.1,0.2,0.3",), "rib.margin": 4.0}
    result = sweep(out, **changes)
    assert list(result.failed.values()) == ["RuntimeError: not this one"] and len(result.computed) == 2
    assert "trial failed: tau 0.1: RuntimeError: not this one" in capsys.readouterr().err
    assert json.loads((out / "run.json").read_text())["exit_status"] == 3
    assert "not this one" in (out / "report.html").read_text() and "Traceback" in next((out / "trials").glob("*.failed")).read_text()
    monkeypatch.setattr(trials.TrialExecutor, "map_images", works)
    again = sweep(out, **changes)
    assert not again.failed and len(again.computed) == 1 and not list((out / "trials").glob("*.failed"))


def test_a_trial_that_cannot_work_is_named_before_it_is_run(reference: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(reference, tmp_path / "copy")
    result = sweep(tmp_path / "copy", space=("rib.batch=2,3,500",), **{"rib.margin": 4.0})
    assert len(result.computed) == 1 and "500" in next(iter(result.failed.values()))
    with pytest.raises(UserError, match="500"):
        sweep(tmp_path / "copy", space=("rib.batch=500,600",))


def test_seeds_have_mean_spread_and_paired_interval(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep(out, space=("rib.lr=0.001,0.003",), seeds=2, seeds_vary="rib")
    assert len(find_stages(out, "classifier")) == 1
    rows = [r for r in scores(out) if r["metric"] == "mIoU" and r.get("setting") == {"rib.lr": 0.003}]
    assert {r["seed"] for r in rows} == {0, 1, "mean", "std"}
    line = list(csv.DictReader((out / "table_grid.csv").read_text().splitlines()))[2]
    assert float(line["std"]) >= 0 and float(line["low"]) <= float(line["high"])


def test_explain_writes_nothing(reference: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    explain(tiny(tmp_path / "new", table="5b", **{"rib.margin": 4.0}), RIB_TABLES, lines.append)
    assert not list(tmp_path.rglob("*"))
    assert [x.split()[2] for x in lines if x.startswith("trial")] == ["cut", "runs", "cut", "runs", "runs"]
    lines.clear()
    explain(tiny(reference, table="5b", **{"rib.margin": 4.0}), RIB_TABLES, lines.append)
    assert {x.split()[2] for x in lines if x.startswith("trial")} == {"found"}


def test_a_second_asker_waits_for_the_first(tmp_path: Path) -> None:
    """Two threads ask for one stage: the work is done once, and the second finds it."""
    import threading
    import time

    from seedbed.artefacts import SCORED, Stage

    made = []

    def ask() -> None:
        stage = Stage(tmp_path, "scored", "k", SCORED)
        with stage.alone():
            if stage.manifest is None:
                time.sleep(0.2)
                made.append(1)
                stage.finish(computed=0, seconds=0.0)

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert made == [1] and not (tmp_path / "stages" / "scored" / "k" / ".lock").exists()


def test_paths_are_absolute_for_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").write_bytes(b"")
    found = absolute(Sweep(out="o").replace(**{"data.store": "s", "classifier.weights": "w.pth"}))
    assert (found.out, found.data.store, found.classifier.weights) == (f"{tmp_path}/o", f"{tmp_path}/s", f"{tmp_path}/w.pth")


def test_tables_of_hfpl() -> None:
    """Grids, printed values, stage and split; SEAM's alphas go with the loss."""
    base = Sweep(name="x", method="seam", addons=("isl",), table="5", refine=RefineConfig.named("hfpl", method="affinitynet"))
    made = {name: make(base) for name, make in ISL_TABLES.items()}
    assert {t.stage for t in made.values()} == {"segmentation"}
    assert {name: t.split for name, t in made.items()} == {"fig6": "train", "5": "train", "4": "val", "gate": "val", "6": "val"}
    notes = {name: notes_of(SweepResult(t, [], [], {}, {}))[-2] for name, t in {**made, "5b": RIB_TABLES["5b"](base)}.items()}
    assert notes["4"].endswith("ImageNet weights, PASCAL VOC 2012 val."), "of a segmentation on val nobody chose a threshold"
    assert notes["5"].endswith("PASCAL VOC 2012 train.") and notes["5b"].endswith("PASCAL VOC 2012 train, threshold oracle.")
    five = made["5"]
    assert [line.printed["mIoU"] for line in five.lines] == [(61.6, 0.8), (62.6, 0.6), (63.0, 0.4), (63.0, 0.6), (62.9, 0.7)]
    assert all(line.setting is not None and line.setting["isl.weight"] == 1.0 for line in five.lines)
    four = {line.label: line for line in made["4"].lines}
    assert four["ISL, multinomial"].printed["mIoU"] == (63.0, 0.5) and four["FSL, binomial"].printed["F"] == (43.5, 0.2)
    seam = Experiment(method="seam", refine=RefineConfig.named("hfpl", method="affinitynet"))
    alphas = {label: seam.replace(**(line.setting or {})).refinement.alphas for label, line in four.items()}
    assert alphas == {"ISL, multinomial": (2, 4), "ISL, binomial": (1, 24), "FSL, multinomial": (2, 4), "FSL, binomial": (1, 24)}
    assert {seam.replace(**line.setting).refinement.alphas for line in ISL_TABLES["gate"](seam).lines if line.setting} == {(1, 24)}
    assert [line.printed["J_and_F"][0] for line in made["gate"].lines] == [55.2, 53.8]
    six = {line.label: line for line in made["6"].lines}
    assert [six[name].printed["mIoU"][0] for name in ("SEAM", "SEAM+ISL", "SEAM+FSL", "SEAM+ISL+FSL")] == [63.9, 64.3, 66.9, 66.7]
    assert six["SEAM"].setting is None and six["SEAM"].default and six["SEAM+FSL"].printed == four["FSL, binomial"].printed
    assert {n: seam.replace(**(line.setting or {})).refinement.alphas for n, line in six.items()} == {
        "SEAM": (4, 24),
        "SEAM+ISL": (1, 24),
        "SEAM+FSL": (1, 24),
        "SEAM+ISL+FSL": (1, 24),
    }
    with_fsl = [line.setting for line in made["fig6"].lines if line.setting and "fsl" in line.setting["addons"]]
    both = [seam.replace(**setting).refinement.alphas for setting in with_fsl]
    assert both == [(1, 24)] * 6, "one curve, one refinement"
    said = base.replace(**{"refine.alpha_low": 3.0})
    for name in ("4", "6", "gate", "fig6"):
        rows = [said.replace(**(line.setting or {})).refinement.alphas[0] for line in ISL_TABLES[name](said).lines]
        assert set(rows) == {3.0}, "what is said counts in every row"
    lambdas = [line.setting.get("isl.weight", 0.0) if line.setting else 0.0 for line in made["fig6"].lines]
    assert lambdas == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0] * 2
    for table in made.values():
        for line in table.lines:
            base.replace(**{**table.base, **(line.setting or {})}).check()


def test_every_loss_of_table_4_has_its_own_reference() -> None:
    """Multinomial against binomial: ISL's rows are not compared with FSL's."""
    lines = ISL_TABLES["4"](Sweep(name="x", method="seam", table="4")).lines
    references = reference_lines(SweepResult(PaperTable("4", "4", lines), [], [], {}, {}))
    assert [(line.label, line.group) for line in references] == [("ISL, binomial", "ISL"), ("FSL, binomial", "FSL")]
    assert {line.group for line in lines} == {"ISL", "FSL"}


def test_rows_are_compared_within_their_group(tmp_path: Path) -> None:
    def groups(base: Experiment) -> PaperTable:
        lines = [
            Line(f"lr {lr}", {"rib.lr": lr}, group=g, default=d)
            for lr, g, d in ((1e-3, "a", True), (2e-3, "a", False), (3e-3, "b", True), (4e-3, "b", False))
        ]
        return PaperTable("groups", "groups", tuple(lines))

    run(tiny(tmp_path / "out", table="groups", **{"data.limit": 6}), {"groups": groups})
    paired = json.loads((tmp_path / "out" / "scores.json").read_text())["paired"]
    assert {(d["first"]["label"], d["second"]["label"]) for d in paired} == {("lr 0.001", "lr 0.002"), ("lr 0.003", "lr 0.004")}
    rows = {r["label"]: r["reference"] for r in csv.DictReader((tmp_path / "out" / "table_groups.csv").read_text().splitlines())}
    assert [rows[f"lr 0.00{n}"] for n in (1, 2, 3, 4)] == ["lr 0.001", "lr 0.001", "lr 0.003", "lr 0.003"]


def test_addons_on_a_method_one_table_each() -> None:
    base = ShapesSweep(name="x", method="cam", table="seam")
    for name, make in ADDON_TABLES.items():
        table = make(base)
        shown = [base.replace(**{**table.fixed, **table.base, **(line.setting or {})}).labels[-1] for line in table.lines]
        assert shown == [name, f"{name}+isl", f"{name}+fsl", f"{name}+isl+fsl"]


def test_a_search_shows_its_best_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of many trials the terminal has the best rows, and says how many more there are."""
    from seedbed.report import terminal
    from seedbed.report.result import SweepRow, SweepTable

    rows = [
        SweepRow(label=f"trial {n}", method="rib", values={"mIoU": (90.0 - n, None)}, setting={"rib.tau": n}, state="found")
        for n in range(40)
    ]
    table = SweepTable(name="", title="random search", stage="seed", split="train", metrics=("mIoU",), rows=rows, search=True)
    terminal._print_sweep(table, None, sys.stdout, 100)
    shown = capsys.readouterr().out
    assert "trial 0 " in shown and f"trial {terminal.TRIALS - 1} " in shown and "trial 39" not in shown
    assert f"{40 - terminal.TRIALS} more trials" in shown
