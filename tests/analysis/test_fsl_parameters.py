"""The study of mu and sigma: its parts by hand, and the whole on made pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seedbed.addons.fsl import feature_similarity_loss
from seedbed.analysis import fsl_parameters as fsl
from seedbed.analysis.fsl_run import command, explain, run
from seedbed.analysis.fsl_study import PAPER, FslStudy, Pictures
from seedbed.data.shapes import ShapesConfig, make_shapes
from seedbed.types import IGNORE, UserError


def test_single_objects() -> None:
    mask = np.zeros((6, 8), np.uint8)
    mask[1:3, 1:3] = 4
    assert fsl.single_object(mask) == 3
    mask[3, 3] = 4  # across a corner
    assert fsl.single_object(mask) == 3
    mask[3, 4] = IGNORE
    assert fsl.single_object(mask) == 3
    mask[3, 5] = 4  # beyond what is not labelled: another object
    assert fsl.single_object(mask) is None
    mask[3, 5] = 7
    assert fsl.single_object(mask) is None
    assert fsl.single_object(np.zeros((3, 3), np.uint8)) is None


def test_pieces() -> None:
    comb = np.zeros((5, 9), bool)
    comb[:, ::2] = True
    assert fsl.pieces(comb) == 5
    comb[4] = True  # joined by the last row only
    assert fsl.pieces(comb) == 1
    assert fsl.pieces(np.zeros((2, 2), bool)) == 0
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random((12, 13)) < 0.4
        reached = np.zeros_like(mask)
        count = 0
        for start in zip(*np.nonzero(mask), strict=True):
            if reached[start]:
                continue
            count, front = count + 1, [start]
            while front:
                y, x = front.pop()
                if 0 <= y < 12 and 0 <= x < 13 and mask[y, x] and not reached[y, x]:
                    reached[y, x] = True
                    front += [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        assert fsl.pieces(mask) == count


def test_gaussian_scores() -> None:
    mask = np.zeros((7, 9), bool)
    mask[2:5, 3:6] = True
    scores = fsl.gaussian_scores(mask)
    assert float(scores[3, 4]) == 1
    variance = 2 / 3
    assert float(scores[5, 4]) == pytest.approx(2 * np.exp(-4 / (2 * variance)) - 1, rel=1e-5)
    assert float(scores[2, 5]) == pytest.approx(2 * np.exp(-2 / (2 * variance)) - 1, rel=1e-5)


def test_a_step_follows_the_loss() -> None:
    """The first step is the gradient of Eq. (9), times the number of positions, by the scores."""
    colors = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(0))
    scores = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    weights = fsl.pair_weights(colors, [(1.5, 2.0)])[1.5, 2.0]
    leaf = scores.clone().requires_grad_()
    (30 * feature_similarity_loss(leaf.sigmoid()[None, None], colors[None], 1.5, 2.0)).backward()
    assert leaf.grad is not None
    expected = ((scores - 300.0 * leaf.grad) > 0).numpy()
    masks = fsl.optimised(scores, weights, "b", 1, 300.0, [0, 1])
    assert np.array_equal(masks[0], (scores > 0).numpy())
    assert np.array_equal(masks[1], expected)
    assert not np.array_equal(masks[0], masks[1])


def test_maps_over_their_maximum_never_grow_a_mask() -> None:
    colors = torch.rand(3, 8, 9, generator=torch.Generator().manual_seed(2))
    mask = np.zeros((8, 9), bool)
    mask[2:6, 3:7] = True
    masks = fsl.optimised(fsl.gaussian_scores(mask), fsl.pair_weights(colors, [PAPER])[PAPER], "r", 10, 0.5, list(range(11)))
    assert all(not (later & ~masks[0]).any() for later in masks)


def test_means_and_intervals() -> None:
    values, classes = np.array([[1.0], [3.0], [10.0]]), np.array([0, 0, 4])
    assert fsl.class_mean(values, classes) == pytest.approx([6.0])
    low, high = fsl.bootstrap(values, classes, np.random.default_rng(0))
    assert (low[0], high[0]) == pytest.approx((5.5, 6.5))


def test_statements() -> None:
    found = fsl.statements()
    assert found["within sigma"] == pytest.approx(0.39, abs=0.005)
    assert found["within 2 sigma"] == pytest.approx(0.86, abs=0.005)
    assert found["delta"] == pytest.approx(0.076, abs=5e-4)
    assert abs(found["within sigma, grid"] - found["within sigma"]) < 0.01


def test_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_shapes(tmp_path / "shapes", ShapesConfig(train=60, val=4))
    study = FslStudy(
        out=str(tmp_path / "out"), draws=2, mus=(1.0, 2.5), sigmas=(5.0,), steps=6, data=Pictures(store=str(store), split="train")
    )
    found = run(study)
    text = capsys.readouterr().out
    assert "mu" in text
    assert "sigma" in text
    assert found.values.shape == (len(found.subjects), 2, 7, 2)
    assert "data:image/png;base64," in (tmp_path / "out" / "report.html").read_text()
    first = (tmp_path / "out" / "fsl_parameters.json").read_text()
    assert {(c["mu"], c["sigma"]) for c in json.loads(first)["curves"]} == {(1.0, 5.0), (2.5, 5.0)}
    again = run(study)
    assert np.array_equal(again.values, found.values)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["status"] == "FINISHED" and record["stages"][0]["computed"] == 0 and record["git"]


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_shapes(tmp_path / "shapes", ShapesConfig(train=60, val=4))
    study = FslStudy(out=str(tmp_path / "out"), draws=2, mus=(2.5,), sigmas=(5.0,), steps=4, data=Pictures(store=str(store), split="train"))
    fits, calls = fsl.fits, []

    def stopped(*arguments: Any) -> np.ndarray:
        calls.append(arguments[0].id)
        if len(set(calls)) > 3:
            raise KeyboardInterrupt
        return fits(*arguments)

    assert "runs" in explain(study)
    monkeypatch.setattr(fsl, "fits", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(study)
    monkeypatch.setattr(fsl, "fits", fits)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "KILLED"
    assert "goes on" in explain(study) and "3 of" in explain(study)
    found = run(study)
    made = json.loads((tmp_path / "out" / "run.json").read_text())["stages"][0]
    assert made["computed"] == len(found.subjects) - 3 and "found" in explain(study)
    whole = run(study.replace(out=str(tmp_path / "other")))
    assert np.array_equal(whole.values, found.values)
    assert json.loads((tmp_path / "other" / "run.json").read_text())["stages"][0]["digest"] == made["digest"]


def test_command_line() -> None:
    smoke = {"draws": 2, "steps": 5}
    study = command(FslStudy(), smoke, ["--smoke", "--data.store", "x", "--steps", "7", "--mus", "1", "2"])
    assert (study.draws, study.steps, study.mus, study.data.store) == (2, 7, (1.0, 2.0), "x")
    for wrong, field in ((["--sigmas", "0"], "--sigmas"), (["--draws", "0"], "--draws"), (["--lr", "-1"], "--lr"), (["--mus"], "--mus")):
        with pytest.raises(UserError) as error:
            command(FslStudy(), smoke, wrong)
        assert error.value.field == field
    with pytest.raises(UserError) as error:
        run(FslStudy())
    assert error.value.field == "--data.store"
