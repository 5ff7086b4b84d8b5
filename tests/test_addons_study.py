"""Add-ons and SEAM on their way through a study: keys, digests, labels, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from whole_study import digests, whole

from seedbed.artefacts.records import weights_from
from seedbed.pipeline import classifier_task
from seedbed.study import run
from seedbed.types import UserError

SHORT: dict[str, Any] = {"until": "seed", "classifier.epochs": 4}


def study(out: Path, **changes: Any) -> Any:
    return whole(out, **{**SHORT, **changes})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain")
    run(study(out))
    return out


def methods(out: Path) -> set[str]:
    return {r["method"] for r in json.loads((out / "scores.json").read_text())["rows"] if r["stage"] == "seed"}


@pytest.mark.parametrize("addon", ["isl", "fsl"])
def test_no_weight_changes_no_bit(plain: Path, tmp_path: Path, addon: str) -> None:
    run(study(tmp_path / "nothing", addons=(addon,), **{f"{addon}.weight": 0.0}))
    run(study(tmp_path / "something", addons=(addon,)))
    assert digests(tmp_path / "nothing")["maps"] == digests(plain)["maps"] != digests(tmp_path / "something")["maps"]
    assert f"cam+{addon}" in methods(tmp_path / "something") and "cam" not in methods(tmp_path / "something")


def test_rib_starts_from_a_classifier_with_addons(plain: Path, tmp_path: Path) -> None:
    changes = {
        "method": "rib",
        "rib.steps": 2,
        "rib.batch": 2,
        "rib.lr": 1e-3,
        "rib.margin": 60.0,
        "rib.companions": "random",
        "rib.loss_scales": (1.0,),
    }
    run(study(tmp_path, addons=("fsl", "isl"), **changes))
    assert {"cam+isl+fsl", "rib+isl+fsl"} <= methods(tmp_path), "named in the order in which they are applied"
    assert digests(tmp_path)["classifier"] != digests(plain)["classifier"]


def test_keys_without_addons_know_nothing_of_them(plain: Path, tmp_path: Path) -> None:
    """Another setting of an add-on that is not asked for finds every stage."""
    again = study(plain).replace(**{"isl.samples": 3, "fsl.mu": 1.0, "seam.second_scale": 0.5})
    assert all(s.computed == 0 for s in run(again).stages)


def test_seam_with_both_to_the_segmenter(tmp_path: Path) -> None:
    chosen = {
        "until": "segmentation",
        "refine.method": "affinitynet",
        "classifier.epochs": 2,
        "segmenter.steps": 4,
        "segmenter.retrain": "no",
    }
    result = run(whole(tmp_path, method="seam", addons=("isl", "fsl"), **chosen))
    assert {"seed", "mask", "segmentation"} <= {r["stage"] for r in result.rows if r["method"] == "seam+isl+fsl"}
    log = (next((tmp_path / "stages" / "classifier").iterdir()) / "log.jsonl").read_text()
    assert '"fsl"' in log and '"cls"' in log and '"ecr"' in log


def test_learned_parameters_are_trained_and_kept_with_the_weights(tmp_path: Path) -> None:
    run(study(tmp_path, addons=("fsl",), **{"fsl.learned": True}))
    weights = weights_from(next((tmp_path / "stages" / "classifier").iterdir()))
    assert float(weights["added.fsl.mu"]) > 2.5, "the gradient of mu is always negative (Jonnarth et al. 2024, Sec. 4.3)"
    assert "added.fsl.sigma" in weights and methods(tmp_path) >= {"cam+fsl"}


def test_a_draw_is_the_pictures_own(plain: Path) -> None:
    """Two workers draw what one would: each picture from a generator of its own."""
    from seedbed.data import open_store

    e = study(plain, addons=("isl",))
    task = classifier_task(e, open_store(next((plain / "data").iterdir())), 0)
    task.open()
    model = task.build().eval()
    whole_batch = task.batch(0, 0, 1)
    halves = [task.batch(0, rank, 2) for rank in (0, 1)]
    sizes = [len(h.ids) for h in halves]
    parts = [float(task.loss(model, h, 0).losses["bce"]) for h in halves]
    mean = sum(n * p for n, p in zip(sizes, parts, strict=True)) / sum(sizes)
    assert float(task.loss(model, whole_batch, 0).losses["bce"]) == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"addons": ("isl", "isl")}, "--addons"),
        ({"addons": ("isl",), "isl.weight": 1.5}, "--isl.weight"),
        ({"addons": ("isl",), "isl.samples": 0}, "--isl.samples"),
        ({"addons": ("fsl",), "fsl.sigma": 0.0}, "--fsl.sigma"),
        ({"addons": ("isl",), "isl.posterior": "multinomial"}, "--isl.posterior"),
        ({"addons": ("fsl",), "fsl.gate": "a", "method": "rib"}, "--fsl.gate"),
        ({"method": "nonsense"}, "--method"),
        ({"addons": ("nonsense",)}, "--addons"),
    ],
)
def test_what_can_not_be_is_said_first(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        run(study(tmp_path, **changes))
    assert caught.value.field == field and not (tmp_path / "stages").exists()
