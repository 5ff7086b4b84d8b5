"""Experiment scripts: what has to be equal in them, for each is read alone and says what others say too; and every one run with --smoke."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from seedbed.addons import addon_class
from seedbed.methods import method_class
from seedbed.pipeline import Experiment, RefineConfig, ShapesExperiment
from seedbed.study import parse
from seedbed.types import UserError

FOLDER = Path(__file__).resolve().parents[1] / "experiments"
FROZEN = ("shapes", "data", "classifier", "cam", "scoring")
"""Sections that were chosen once for the shapes set (docs/shapes.md); figures of two scripts are compared because these are equal."""


def script(name: str) -> ShapesExperiment:
    """The settings of a script, which is read and not run."""
    said: dict[str, Any] = runpy.run_path(str(FOLDER / f"{name}.py"))
    found: ShapesExperiment = said.get("STUDY") or said["SWEEP"]
    return found


def differences(one: ShapesExperiment, other: ShapesExperiment, sections: tuple[str, ...]) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> both values, where they are not the same."""
    left, right = one.flat(), other.flat()
    names = [name for name in left if name.partition(".")[0] in sections]
    assert {name.partition(".")[0] for name in names} == set(sections)
    return {name: (left[name], right[name]) for name in names if left[name] != right[name]}


@pytest.mark.parametrize("name", ["sweep_shapes", "shapes_hfpl"])
def test_scripts_of_the_shapes_set_have_its_frozen_settings(name: str) -> None:
    assert differences(script("shapes_rib"), script(name), FROZEN) == {}


def test_the_sweep_of_rib_varies_the_rib_of_the_study() -> None:
    """So all their runs are shared where they have one output folder."""
    assert differences(script("shapes_rib"), script("sweep_shapes"), ("rib",)) == {}


def test_differences_can_be_found() -> None:
    study = script("shapes_rib")
    for name, value in (("shapes.seed", 99), ("data.map_limit", 1), ("classifier.transform.crop", 33), ("cam.scales", (1.0,))):
        assert set(differences(study, study.replace(**{name: value}), FROZEN)) == {name}


# --- what a choice decides: voc_hfpl ----------------------------------------------------------------------


def chosen(*arguments: str) -> Experiment:
    said = runpy.run_path(str(FOLDER / "voc_hfpl.py"))
    return parse(said["STUDY"], said["SMOKE"], arguments, said["recipe"])


@pytest.mark.parametrize(
    ("arguments", "alphas"),
    [
        ((), (4, 24)),
        (("--addons", "fsl"), (4, 24)),
        (("--addons", "isl"), (1, 24)),
        (("--addons", "isl", "fsl"), (1, 24)),
        (("--addons", "isl", "--isl.weight", "0"), (4, 24)),
        (("--addons", "isl", "--isl.preset", "multinomial"), (2, 4)),
        (("--addons", "fsl", "--fsl.preset", "multinomial"), (2, 4)),
        (("--addons", "isl", "--refine.alpha-low", "3"), (3, 24)),
        (("--addons", "isl", "--refine.preset", "seam"), (4, 24)),
    ],
    ids=str,
)
def test_alphas_follow_the_add_ons(arguments: tuple[str, ...], alphas: tuple[float, float]) -> None:
    """HFPL, sections 5.1 and 5.5: 4 and 24 of SEAM, 1 and 24 with ISL, 2 and 4 with the multinomial posterior; what is said stands."""
    study = chosen("--method", "seam", "--classifier.weights", "none", *arguments)
    study.check()
    assert study.refinement.method == "affinitynet" and study.refinement.alphas == alphas


def test_networks_of_seam_start_from_one_file() -> None:
    study = chosen("--classifier.weights", "resnet38.params")
    assert study.classifier.backbone == study.refine.affinitynet.backbone == "resnet38"
    assert study.classifier.weights == study.refine.affinitynet.weights == study.segmenter.weights == "resnet38.params"
    other = chosen("--classifier.weights", "resnet38.params", "--segmenter.weights", "later.pth")
    assert (other.refine.affinitynet.weights, other.segmenter.weights) == ("resnet38.params", "later.pth")


def of_sweep(name: str, *arguments: str) -> Experiment:
    said = runpy.run_path(str(FOLDER / f"{name}.py"))
    return parse(said["SWEEP"], {}, arguments, said["recipe"])


@pytest.mark.parametrize(
    "arguments", [("--table", "cam"), ("--table", "(CAM)"), ("--method", "cam", "--space", "isl.weight=0.1,0.2")], ids=str
)
def test_a_sweep_has_the_recipe_of_its_method(arguments: tuple[str, ...]) -> None:
    """That of voc_hfpl, however the table is spelled; and SEAM's for its own."""
    sweep, study = of_sweep("sweep_isl", *arguments), chosen("--method", "cam", "--addons", "isl")
    assert (sweep.method, sweep.isl, sweep.fsl, sweep.classifier.preset) == ("cam", study.isl, study.fsl, study.classifier.preset)
    assert (sweep.fsl.upsample, sweep.isl.scale) == (2, 0.1) and sweep.refine == RefineConfig()
    seam = of_sweep("sweep_isl", "--table", "SEAM", "--classifier.weights", "w.params")
    assert (seam.method, seam.fsl.upsample, seam.segmenter.weights) == ("seam", 1, "w.params")


@pytest.mark.parametrize(("spelled", "epochs"), [("seam", 5), ("SEAM", 5), ("cam", 7)])
def test_seams_table_on_shapes_is_shorter(spelled: str, epochs: int) -> None:
    assert of_sweep("shapes_hfpl", "--table", spelled).classifier.epochs == epochs
    assert of_sweep("shapes_hfpl", "--table", spelled, "--classifier.epochs", "3").classifier.epochs == 3, "what is said stands"


@pytest.mark.parametrize("method", ["cam", "rib"])
def test_cam_and_rib_have_their_own_recipe(method: str) -> None:
    """As IRN trains them, and the add-ons as scaled for SIPE, which has the same rate and maps of the same size."""
    study, plain = chosen("--method", method, "--addons", "isl", "fsl"), Experiment()
    assert (study.classifier, study.refine, study.segmenter, study.scoring) == (
        plain.classifier, plain.refine, plain.segmenter, plain.scoring,
    )  # fmt: skip
    assert (study.isl.scale, study.fsl.weight, study.fsl.upsample) == (0.1, 0.1, 2)
    assert chosen("--method", method, "--isl.preset", "official").isl.scale == 1


@pytest.mark.parametrize(("flag", "known"), [("--method", ("cam", "rib", "seam")), ("--addons", ("isl", "fsl"))])
def test_an_unknown_name_lists_the_known(flag: str, known: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        chosen(flag, "mars")
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "mars" in said and flag in said and all(f"'{name}'" in said for name in known)
    with pytest.raises(UserError) as error:  # and from Python
        method_class("mars") if flag == "--method" else addon_class("mars")
    assert error.value.field == flag and all(name in error.value.remedy for name in known)


# --- every script as a user runs it -------------------------------------------------------------------

COMMANDS = {
    "fsl_parameters": (),
    "shapes_hfpl": ("--table", "cam"),
    "shapes_rib": (),
    "sweep_isl": ("--table", "gate"),
    "sweep_rib": ("--table", "5c"),
    "sweep_shapes": ("--table", "5b"),
    "voc_hfpl": ("--method", "cam", "--addons", "isl", "fsl", "--until", "mask"),
    "voc_rib": (),
}


def test_every_script_is_run() -> None:
    assert set(COMMANDS) == {path.stem for path in FOLDER.glob("*.py")}


@pytest.fixture(scope="module")
def voc(devkit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("voc") / "store"
    script = FOLDER.parent / "datasets" / "voc2012" / "prepare.py"
    subprocess.run([sys.executable, str(script), "--devkit", str(devkit), "--out", str(out)], check=True, capture_output=True)
    return out


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("name", [*COMMANDS])
def test_smoke(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    store = () if "shapes" in name else ("--data.store", str(request.getfixturevalue("voc")))
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--smoke", *COMMANDS[name], *store, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env={**os.environ, "CI": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    if name != "fsl_parameters":  # it has curves, and no rows
        rows = json.loads((tmp_path / "out" / "scores.json").read_text())["rows"]
        assert {"mIoU", "F", "J_and_F"} <= {r["metric"] for r in rows}
