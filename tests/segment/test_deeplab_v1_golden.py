"""DeepLab-v1 on ResNet-38 against numbers of YudeWang's codebase, through what a run calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from segment_formula import segmenter_state
from torch import Tensor

from seedbed.models.deeplab_v1 import DeepLabV1
from seedbed.segment.losses import segmentation_loss
from seedbed.segment.predict import crf_picture, predict, probabilities, scaled_input
from seedbed.segment.settings import SegmenterConfig
from seedbed.segment.task import SegmentBatch, SegmenterTask

pytestmark = [pytest.mark.golden, pytest.mark.slow]

Case = dict[str, np.ndarray]
LOGITS = {"rtol": 1e-4, "atol": 1e-3}


@pytest.fixture(scope="module")
def case(golden: Any) -> Case:
    return golden("deeplab_v1_resnet38")


def fill(model: DeepLabV1, case: Case) -> DeepLabV1:
    state = segmenter_state(model, int(case["weight_seed"]))
    assert set(state) == {str(n) for n in case["all_names"]}
    model.load_state_dict(state, strict=False)
    for name, first, total in zip(case["weight_check_names"], case["weight_check_first4"], case["weight_check_abs_sum"], strict=True):
        value = model.state_dict()[str(name)]
        np.testing.assert_array_equal(value.flatten()[:4], first)
        np.testing.assert_allclose(value.double().abs().sum(), total, rtol=1e-9)
    return model


@pytest.fixture(scope="module")
def model(case: Case) -> DeepLabV1:
    return fill(DeepLabV1(len(case["infer_low_logits_r0"])), case).use_batch_norm("batch").eval()


@torch.no_grad()
def test_network_at_every_scale(case: Case, model: DeepLabV1) -> None:
    seen: dict[str, Tensor] = {}
    for name, module in (("backbone", model.backbone.bn7), ("bn_fov", model.bn_fov), ("bn_fov2", model.bn_fov2)):
        module.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out[0].clone().relu_()))
    for r, scale in enumerate(case["scales"]):
        image = torch.from_numpy(scaled_input(model, case["infer_image"], float(scale)))
        np.testing.assert_allclose(image, case[f"infer_input_r{r}"], rtol=0, atol=1e-4)
        np.testing.assert_allclose(model(image[None])[0], case[f"infer_low_logits_r{r}"], **LOGITS)
        if r == 0:
            check_features(case, seen)
        np.testing.assert_allclose(model(image.flip(-1)[None])[0], case[f"infer_low_logits_flip_r{r}"], **LOGITS)


def check_features(case: Case, seen: dict[str, Tensor]) -> None:
    for name, x in seen.items():
        assert tuple(x.shape) == tuple(case[f"{name}_shape"])
        np.testing.assert_allclose(x.abs().max(), case[f"{name}_abs_max"], rtol=1e-4)
        np.testing.assert_allclose(x.double().sum(), case[f"{name}_sum"], rtol=1e-4)
        np.testing.assert_allclose(x.double().square().sum(), case[f"{name}_sumsq"], rtol=1e-4)
        sums = case[f"{name}_channel_sum"]
        np.testing.assert_allclose(x.sum((1, 2)), sums, rtol=1e-4, atol=1e-4 * np.abs(sums).max())
        index = np.ix_(*(case[f"{name}_slice_{axis}"] for axis in ("channels", "rows", "cols")))
        np.testing.assert_allclose(x.numpy()[index], case[f"{name}_slice"], **LOGITS)


def settings(case: Case, **changes: Any) -> SegmenterConfig:
    return SegmenterConfig.named("hfpl", weights="imagenet", test_scales=tuple(float(s) for s in case["scales"]), **changes)


def test_inference(case: Case, model: DeepLabV1) -> None:
    rows, columns = case["infer_rows"], case["infer_cols"]
    prob = probabilities(model, case["infer_image"], settings(case)).numpy()
    np.testing.assert_allclose(prob[:, rows][:, :, columns], case["infer_mean_prob_slice"], rtol=0, atol=1e-4)
    with torch.no_grad():
        scores = model(torch.from_numpy(scaled_input(model, case["infer_image"], 1.0))[None])
        full = F.interpolate(scores, case["infer_image"].shape[:2], mode="bilinear", align_corners=model.align_corners)[0].numpy()
    r1 = [float(s) for s in case["scales"]].index(1.0)
    assert r1 >= 0
    np.testing.assert_allclose(full[:, rows][:, :, columns], case["infer_full_logits_r1_slice"], **LOGITS)
    labels = predict(model, case["infer_image"], settings(case, crf="none"))
    assert (labels != case["infer_label_no_crf"]).mean() <= 1e-3
    np.testing.assert_array_equal(crf_picture(case["infer_image"], "yudewang"), case["infer_denorm_image"])
    pytest.importorskip("pydensecrf")
    assert (predict(model, case["infer_image"], settings(case)) != case["infer_label"]).mean() <= 1e-2


# --- training -------------------------------------------------------------------------------------------


class GivenDropout(torch.nn.Module):
    """A dropout with draws of the official run."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.keep: np.ndarray = np.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = torch.from_numpy(self.keep.astype(np.float32))
        return x * (keep if keep.dim() == 4 else keep[:, :, None, None]) / (1 - self.p)

    def give(self, case: Case, k: int, step: int) -> None:
        shape = case[f"dropout_{k}_shape_step{step}"]
        self.keep = np.unpackbits(case[f"dropout_{k}_keep_step{step}"])[: int(np.prod(shape))].reshape(shape)


def make_task(case: Case) -> SegmenterTask:
    config = settings(
        case,
        steps=int(case["train_max_itr"]),
        batch=len(case["train_images"]),
        lr=float(case["train_lr"]),
        weight_decay=float(case["train_weight_decay"]),
        momentum=float(case["train_momentum"]),
        power=float(case["train_power"]),
    )
    return SegmenterTask("", None, (), Path(), config, seed=0, num_classes=len(case["infer_low_logits_r0"]))


def low_scores(model: DeepLabV1, seen: list[Tensor]) -> Any:
    def keep(_: Any, __: Any, scores: Tensor) -> None:
        scores.retain_grad()
        seen.append(scores)

    return model.cls_conv.register_forward_hook(keep)


def test_loss_and_gradients_with_running_statistics(case: Case, model: DeepLabV1) -> None:
    seen: list[Tensor] = []
    handle = low_scores(model, seen)
    images, labels = torch.from_numpy(case["train_images"]), torch.from_numpy(case["train_labels"])
    loss = make_task(case).loss(model, SegmentBatch(images, labels), 0).losses["loss"]
    loss.backward()
    handle.remove()
    np.testing.assert_allclose(float(loss.detach()), float(case["eval_loss"]), rtol=1e-4)
    np.testing.assert_allclose(seen[0].detach(), case["eval_low_logits"], **LOGITS)
    expected = case["eval_low_logits_grad"]
    np.testing.assert_allclose(seen[0].grad, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())  # type: ignore[arg-type]
    full = F.interpolate(seen[0].detach(), labels.shape[-2:], mode="bilinear", align_corners=True).requires_grad_()
    rows, columns = case["full_rows"], case["full_cols"]
    segmentation_loss(full, labels, "plain").backward()
    np.testing.assert_allclose(full.detach()[:, :, rows][..., columns], case["eval_full_logits_slice"], **LOGITS)
    assert full.grad is not None
    np.testing.assert_allclose(
        full.grad[:, :, rows][..., columns], case["eval_full_grad_slice"], rtol=1e-3, atol=1e-3 * float(full.grad.abs().max())
    )
    own = dict(model.named_parameters())
    for name, norm in zip(case["eval_grad_names"], case["eval_grad_norms"], strict=True):
        np.testing.assert_allclose(own[str(name)].grad.double().norm(), norm, rtol=5e-3, atol=1e-9, err_msg=str(name))  # type: ignore[union-attr]
    for k, name in enumerate(case["slice_names"]):
        gradient = own[str(name)].grad
        assert gradient is not None
        part = gradient.flatten()[torch.from_numpy(case[f"slice_{k}_index"])]
        np.testing.assert_allclose(part, case[f"slice_{k}_eval_grad"], rtol=0, atol=5e-3 * float(gradient.abs().max()) + 1e-9)
    model.zero_grad(set_to_none=True)


def test_training_updates(case: Case, model: DeepLabV1) -> None:
    task, batch = make_task(case), SegmentBatch(torch.from_numpy(case["train_images"]), torch.from_numpy(case["train_labels"]))
    assert task.config.batch_norm == "batch"
    model.use_batch_norm("batch").train()
    drops = given_dropouts(case, model)
    optimizer = task.optimizer(model, task.steps)
    for group in optimizer.param_groups:
        group["updates"] = int(case["train_first_itr"])
    check_groups(case, model)
    own, start = dict(model.named_parameters()), {n: t.clone() for n, t in model.state_dict().items()}
    for step in range(1, len(case["train_losses"]) + 1):
        for k, drop in enumerate(drops):
            drop.give(case, k, step)
        seen: list[Tensor] = []
        handle = low_scores(model, seen)
        optimizer.zero_grad()
        loss = task.loss(model, batch, step).losses["loss"]
        loss.backward()
        handle.remove()
        first = step == 1
        np.testing.assert_allclose(
            seen[0].detach(), case[f"train_low_logits_step{step}"], **(LOGITS if first else {"rtol": 0, "atol": 2e-2})
        )
        np.testing.assert_allclose(float(loss.detach()), case["train_losses"][step - 1], rtol=1e-4 if first else 1e-3)
        if first:
            check_gradients(case, own)
        optimizer.step()
        one, ten, twenty = (g["lr"] for g in optimizer.param_groups)
        np.testing.assert_allclose([one, ten, twenty], case["train_lrs_used"][step - 1][[0, 2, 3]], rtol=1e-9)
        check_changes(case, model.state_dict(), start, step)


def given_dropouts(case: Case, model: DeepLabV1) -> list[GivenDropout]:
    drops = []
    for name, p in zip(case["dropout_names"], case["dropout_p"], strict=True):
        parent, _, last = str(name).rpartition(".")
        at = model.get_submodule(parent)
        assert getattr(at, last).p == float(p)
        drop = GivenDropout(float(p)).train()
        setattr(at, last, drop)
        drops.append(drop)
    return drops


def check_groups(case: Case, model: DeepLabV1) -> None:
    groups = model.groups()
    assert not len(case["group1_names"])
    for group, k in zip(groups, (0, 2, 3), strict=True):
        assert set(group.names) == {str(n) for n in case[f"group{k}_names"]}


def check_gradients(case: Case, own: dict[str, torch.nn.Parameter]) -> None:
    assert {name for name, p in own.items() if p.grad is not None} == {str(n) for n in case["grad_names"]}
    for name, norm in zip(case["grad_names"], case["grad_norms"], strict=True):
        np.testing.assert_allclose(own[str(name)].grad.double().norm(), norm, rtol=5e-3, atol=1e-9, err_msg=str(name))  # type: ignore[union-attr]
    for k, name in enumerate(case["slice_names"]):
        gradient = own[str(name)].grad
        assert gradient is not None
        part = gradient.flatten()[torch.from_numpy(case[f"slice_{k}_index"])]
        np.testing.assert_allclose(part, case[f"slice_{k}_grad"], rtol=0, atol=5e-2 * float(gradient.abs().max()) + 1e-9, err_msg=str(name))


def check_changes(case: Case, now: dict[str, Tensor], start: dict[str, Tensor], step: int) -> None:
    share = 5e-2 if step == 1 else 1e-1
    for k, name in enumerate(case["slice_names"]):
        at = torch.from_numpy(case[f"slice_{k}_index"])
        change = now[str(name)].flatten()[at].double() - start[str(name)].flatten()[at].double()
        expected = case[f"slice_{k}_change_step{step}"]
        np.testing.assert_allclose(change, expected, rtol=0, atol=share * np.abs(expected).max() + 1e-7, err_msg=str(name))
    for k, name in enumerate(case["bn_names"]):
        for what in ("running_mean", "running_var"):
            change = (now[f"{name}.{what}"].double() - start[f"{name}.{what}"].double())[:64]
            expected = case[f"bn_{k}_{what}_change_step{step}"]
            np.testing.assert_allclose(change, expected, rtol=0, atol=2e-3 * np.abs(expected).max() + 5e-7, err_msg=f"{name}.{what}")
