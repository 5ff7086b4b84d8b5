"""Experiment scripts say on purpose what others say too, for each is read alone: what has to be equal in them."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from seedbed.pipeline import ShapesExperiment

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
    """Snapshots apart: a sweep asks for them where a table needs them."""
    assert set(differences(script("shapes_rib"), script("sweep_shapes"), ("rib",))) <= {"rib.snapshots"}


def test_differences_can_be_found() -> None:
    study = script("shapes_rib")
    for name, value in (("shapes.seed", 99), ("data.map_limit", 1), ("classifier.transform.crop", 33), ("cam.scales", (1.0,))):
        assert set(differences(study, study.replace(**{name: value}), FROZEN)) == {name}
