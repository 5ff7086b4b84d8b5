"""CAM and RIB against numbers of the official code, through `localise` as a run calls it. Everything comes from the files."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from formula import formula_state

from seedbed.methods import rib as rib_module
from seedbed.methods.cam import Cam
from seedbed.methods.maps import CamConfig, high_res, strided_cam
from seedbed.methods.rib import Rib, RibConfig, gndrp
from seedbed.models.resnet import ResNet, plain_unit
from seedbed.types import Maps, Views

pytestmark = pytest.mark.golden

RAW = {"rtol": 1e-4, "atol": 1e-3}
"""Raw and running maps, logits, losses."""
SAVED = {"rtol": 0, "atol": 5e-5}
"""Maps over their maximum, in [0, 1]."""


@pytest.fixture(scope="module")
def network() -> Any:
    built: dict[tuple[int, int], ResNet] = {}

    def get(case: dict[str, np.ndarray]) -> ResNet:
        key = (int(case["weight_seed"]), len(case["label"]))
        if key not in built:
            model = ResNet(50, key[1])
            assert len(formula_state(model, key[0])) == 266
            model.load_state_dict(formula_state(model, key[0]), strict=False)
            built[key] = model.eval()
        state = built[key].state_dict()
        for name, first, total in zip(case["weight_check_names"], case["weight_check_first4"], case["weight_check_abs_sum"], strict=True):
            value = state[str(name)]
            np.testing.assert_array_equal(value.flatten()[:4].numpy(), first)  # also: an earlier test left the weights alone
            np.testing.assert_allclose(value.double().abs().sum(), total, rtol=1e-9)
        return built[key]

    return get


def views_of(case: dict[str, np.ndarray]) -> Views:
    tensors = []
    for i in range(len(case["scales"])):
        view = torch.from_numpy(case[f"input_s{i}"])
        tensors.append(view if view.ndim == 4 else torch.stack([view, view.flip(-1)]))
    height, width = case["image"].shape[:2]
    return Views(str(case["image_id"]), height, width, tuple(float(s) for s in case["scales"]), tensors)


def settings_of(case: dict[str, np.ndarray], **changes: Any) -> RibConfig:
    return RibConfig(
        steps=int(case["K"]),
        lr=float(case["lr"]),
        lr_classifier_factor=float(case["lr_classifier"]) / float(case["lr"]),
        weight_decay=float(case["weight_decay"]),
        momentum=None,
        tau=float(case["score_th"]),
        pooling={"gndp": "gndrp", "gap": "gap"}[str(case["pooling"])],
        margin=float(case["stop_th"]),
        area_level=float(case["explode_th"]),
        area_share=float(case["explode_ratio"]),
        batch=len(case["companions"]),
    ).replace(**changes)


def localise(case: dict[str, np.ndarray], model: ResNet, settings: RibConfig) -> Maps:
    cam = CamConfig(scales=tuple(float(s) for s in case["scales"]))
    batch = (torch.from_numpy(case["companions"]), torch.from_numpy(case["companion_labels"]))
    return Rib(settings, cam).localise(model, views_of(case), case["label"], itertools.repeat(batch))


def test_cam(golden: Any, network: Any) -> None:
    case = golden("cam_resnet50")
    model, views = network(case), views_of(case)
    with torch.no_grad():
        x = views.tensors[0]
        stages = [model._blocks(torch.nn.functional.max_pool2d(model.bn1(model.conv1(x)).relu(), 3, 2, 1), ("layer1",), plain_unit)]
        for layer in ("layer2", "layer3", "layer4"):
            stages.append(model._blocks(stages[-1], (layer,), plain_unit))
    np.testing.assert_allclose([[s.double().mean(), s.abs().max()] for s in stages], case["stage_mean_absmax"], rtol=1e-4)
    every_class = Cam().localise(model, views, np.ones_like(case["label"]), None)
    for i, sums in enumerate(every_class.sums):
        np.testing.assert_allclose(sums, case[f"cam_s{i}"], **RAW)
    maps = Cam().localise(model, views, case["label"], None)
    np.testing.assert_array_equal(maps.classes, case["keys"])
    np.testing.assert_allclose(strided_cam(maps), case["strided_cam"], **SAVED)
    np.testing.assert_allclose(high_res(maps), case["high_res"], **SAVED)


@pytest.mark.parametrize("name", ["rib_resnet50_gndrp", "rib_resnet50_gap", "rib_momentum", "rib_stop", "rib_explode"])
def test_rib(golden: Any, network: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = golden(name)
    seen: list[torch.Tensor] = []
    plain_loss = rib_module.rib_loss

    def watched(logits: torch.Tensor, labels: torch.Tensor, margin: float | None = None) -> torch.Tensor:
        seen.append(logits.detach().clone())
        return plain_loss(logits, labels, margin)

    monkeypatch.setattr(rib_module, "rib_loss", watched)
    maps = localise(case, network(case), settings_of(case, last_step="full", snapshots=True))
    updates = int(case["optimizer_steps"])
    assert maps.steps == int(case["steps_run"])
    assert maps.ended == {"rib_stop": "margin", "rib_explode": "area"}.get(name, "steps")
    assert bool(case["stopped"]) == (maps.ended != "steps")
    assert len(maps.log["loss"]) == updates
    np.testing.assert_allclose(maps.log["area_ratio"], case["area_ratio"], atol=1e-6)
    np.testing.assert_allclose(maps.log["target_loss"], case["target_loss"], **RAW)
    np.testing.assert_allclose(maps.log["loss"], case["loss"], **RAW)
    np.testing.assert_allclose(torch.cat(seen).numpy(), case["logits"].reshape(-1, case["logits"].shape[-1]), **RAW)
    np.testing.assert_array_equal(maps.classes, case["keys"])
    for i in range(len(case["scales"])):
        running = np.cumsum([step[i] for step in maps.snapshots or []], axis=0)
        np.testing.assert_allclose(running, case[f"acc_cam_s{i}"][:, case["keys"]], **RAW)
        np.testing.assert_allclose(maps.sums[i], running[-1], rtol=1e-6)
    np.testing.assert_allclose(strided_cam(maps), case["strided_cam"], **SAVED)
    np.testing.assert_allclose(high_res(maps), case["high_res"], **SAVED)


def test_default_run_gives_the_same_maps(golden: Any, network: Any) -> None:
    """Without the useless last step, which the other tests compute for the sake of its logged numbers."""
    case = golden("rib_resnet50_gndrp")
    maps = localise(case, network(case), settings_of(case))
    np.testing.assert_allclose(high_res(maps), case["high_res"], **SAVED)
    np.testing.assert_allclose(maps.log["loss"], case["loss"][:-1], **RAW)


def test_rib_stops_at_a_large_negative_sum_too(golden: Any, network: Any) -> None:
    case = golden("rib_stop")
    maps = localise(case, network(case), settings_of(case, margin=float(case["neg_stop_th"])))
    assert (maps.steps, maps.ended) == (int(case["neg_steps_run"]), "margin")
    np.testing.assert_allclose(maps.log["target_loss"], case["neg_target_loss"], **RAW)
    np.testing.assert_allclose(strided_cam(maps), case["neg_strided_cam"], **SAVED)
    np.testing.assert_allclose(high_res(maps), case["neg_high_res"], **SAVED)


@pytest.mark.parametrize("name", ["shared", "perrow"])
@pytest.mark.parametrize("tau", [0.3, 0.4, 0.5])
def test_gndrp(golden: Any, name: str, tau: float) -> None:
    case = golden("gndrp")
    x = torch.from_numpy(case[f"{name}_x"]).requires_grad_()
    value = gndrp(x, torch.from_numpy(case[f"{name}_labels"]), tau)
    (value * torch.from_numpy(case[f"{name}_upstream"])).sum().backward()
    assert x.grad is not None
    tag = f"{name}_tau{round(tau * 10):02d}"
    np.testing.assert_allclose(value.detach(), case[f"{tag}_value"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(x.grad, case[f"{tag}_grad"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(x.detach().mean((2, 3)), case[f"{name}_gap_value"], atol=1e-5, rtol=0)


def test_gndrp_of_a_negative_map(golden: Any) -> None:
    case = golden("gndrp")
    x = torch.from_numpy(case["neg_x"]).requires_grad_()
    labels = torch.zeros(x.shape[:2])
    labels[:, case["neg_valid_cat"]] = 1
    value = gndrp(x, labels, 0.4)
    value.sum().backward()
    np.testing.assert_allclose(value.detach(), case["neg_value"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(x.grad, case["neg_grad"], atol=1e-5, rtol=0)  # type: ignore[arg-type]
