"""DeepLab-v2's network, inference and training update against numbers of deeplab-pytorch, through what a run calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_formula import segmenter_state
from torch import Tensor

from seedbed.models.deeplab import DeepLabV2, shrunk
from seedbed.segment import task as task_module
from seedbed.segment.augment import MEAN_BGR, network_input
from seedbed.segment.losses import segmentation_loss
from seedbed.segment.predict import predict, probabilities
from seedbed.segment.settings import SegmenterConfig
from seedbed.segment.task import SegmentBatch, SegmenterTask, reduced_labels

pytestmark = pytest.mark.golden

Case = dict[str, np.ndarray]
LOGITS = {"rtol": 1e-4, "atol": 1e-3}


@pytest.fixture(scope="module")
def case(golden: Any) -> Case:
    return golden("deeplab_v2")


def build(case: Case) -> DeepLabV2:
    model = DeepLabV2(
        int(case["n_classes"]),
        blocks=[int(b) for b in case["n_blocks"]],
        rates=[int(r) for r in case["atrous_rates"]],
        scales=[float(s) for s in case["msc_scales"]],
    )
    state = segmenter_state(model, int(case["weight_seed"]))
    assert set(state) == {str(n) for n in case["all_names"]}
    model.load_state_dict(state, strict=False)
    for name, first, total in zip(case["weight_check_names"], case["weight_check_first4"], case["weight_check_abs_sum"], strict=True):
        value = model.state_dict()[str(name)]
        np.testing.assert_array_equal(value.flatten()[:4], first)
        np.testing.assert_allclose(value.double().abs().sum(), total, rtol=1e-9)
    return model.use_batch_norm("fixed")


@pytest.fixture(scope="module")
def model(case: Case) -> Iterator[DeepLabV2]:
    yield build(case).eval()


def suffix(scale: float) -> str:
    return f"s{round(scale * 100):03d}"


@torch.no_grad()
def test_network(case: Case, model: DeepLabV2) -> None:
    np.testing.assert_allclose(MEAN_BGR, case["mean_bgr"])
    image = network_input(case["infer_image"], "bgr")
    np.testing.assert_allclose(image.sum(dtype=np.float64), case["infer_input_sum"], rtol=1e-6)
    np.testing.assert_allclose(image.sum((1, 2), dtype=np.float64), case["infer_input_channel_sum"], rtol=1e-6)
    x = images = torch.from_numpy(image)[None]
    for name in ("layer1", "layer2", "layer3", "layer4", "layer5"):
        x = model.base.get_submodule(name)(x)
        assert tuple(x.shape[1:]) == tuple(case[f"{name}_shape"])
        largest = float(case[f"{name}_abs_max"])
        np.testing.assert_allclose(x.abs().max(), largest, rtol=1e-4)
        np.testing.assert_allclose(x.double().sum(), case[f"{name}_sum"], rtol=1e-4)
        np.testing.assert_allclose(x.double().square().sum(), case[f"{name}_sumsq"], rtol=1e-4)
        sums = case[f"{name}_channel_sum"]
        np.testing.assert_allclose(x[0].sum((1, 2)), sums, rtol=1e-4, atol=1e-4 * np.abs(sums).max())
        index = np.ix_(*(case[f"{name}_slice_{axis}"] for axis in ("channels", "rows", "cols")))
        np.testing.assert_allclose(x[0].numpy()[index], case[f"{name}_slice"], **LOGITS)
    for scale in model.scales:
        small, name = shrunk(images, scale), f"infer_scaled_input_{suffix(scale)}"
        assert tuple(small.shape) == tuple(case[f"{name}_shape"])
        np.testing.assert_allclose(small[0, :, small.shape[2] // 2], case[f"{name}_row"], rtol=0, atol=5e-3)
        np.testing.assert_allclose(small[0, :, :, small.shape[3] // 2], case[f"{name}_col"], rtol=0, atol=5e-3)
    outputs = model.outputs(images)
    for scale, scores in zip((1.0, *model.scales), outputs, strict=False):
        np.testing.assert_allclose(scores[0], case[f"infer_logits_{suffix(scale)}"], **LOGITS)
    np.testing.assert_allclose(outputs[-1][0], case["infer_logits_max"], **LOGITS)
    np.testing.assert_array_equal(model(images), outputs[-1])


def test_inference(case: Case, model: DeepLabV2) -> None:
    config = SegmenterConfig(crf="none")
    prob = probabilities(model, case["infer_image"], config).numpy()
    np.testing.assert_allclose(prob[:, case["infer_prob_rows"]][:, :, case["infer_prob_cols"]], case["infer_prob_slice"], rtol=0, atol=1e-4)
    labels = predict(model, case["infer_image"], config)
    assert labels.dtype == np.uint8 and (labels != case["infer_label"]).mean() <= 1e-3


class Made(torch.nn.Module):
    """A network that says what it was given."""

    input, align_corners, resizing = "bgr", False, "linear"

    def __init__(self, scores: np.ndarray) -> None:
        super().__init__()
        self.scores = torch.nn.Parameter(torch.from_numpy(scores)[None])

    def forward(self, images: Tensor) -> Tensor:
        return self.scores


def test_inference_with_crf(case: Case) -> None:
    pytest.importorskip("pydensecrf")
    made: Any = Made(case["crf_logits"])
    before = predict(made, case["infer_image"], SegmenterConfig(crf="none"))
    assert (before != case["crf_label_before"]).mean() <= 1e-3
    after = predict(made, case["infer_image"], SegmenterConfig(crf="deeplab"))
    assert (after == case["crf_label_demo"]).mean() >= 0.99


# --- training -------------------------------------------------------------------------------------------


def make_task(case: Case) -> SegmenterTask:
    config = SegmenterConfig.named(
        "deeplab",
        steps=int(case["train_iter_max"]),
        batch=int(case["batch_size"]) * int(case["iter_size"]),
        accumulate=int(case["iter_size"]),
        lr=float(case["train_lr"]),
        lr_hold=int(case["train_lr_decay"]),
        weight_decay=float(case["train_weight_decay"]),
        momentum=float(case["train_momentum"]),
        power=float(case["train_poly_power"]),
    )
    return SegmenterTask("", None, (), Path(), config, seed=0, num_classes=int(case["n_classes"]))


def whole_batch(case: Case) -> SegmentBatch:
    order = case["sub_batches"].ravel()
    return SegmentBatch(torch.from_numpy(case["train_images"][order]), torch.from_numpy(case["train_labels"][order]))


def test_outputs_and_their_gradients(case: Case) -> None:
    model = build(case).train()
    assert {m.training for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {bool(f) for f in case["bn_training_flags"]}
    for b, rows in enumerate(case["sub_batches"]):
        images, labels = torch.from_numpy(case["train_images"][rows]), torch.from_numpy(case["train_labels"][rows])
        base: list[Tensor] = []

        def keep(_: Any, __: Any, scores: Tensor, base: list[Tensor] = base) -> None:
            scores.retain_grad()
            base.append(scores)

        handle = model.base.register_forward_hook(keep)
        outputs = model.outputs(images)
        handle.remove()
        names = [*(suffix(s) for s in (1.0, *model.scales)), "max"]
        losses = []
        for name, scores in zip(names, outputs, strict=True):
            np.testing.assert_allclose(scores.detach(), case[f"train_logits_b{b}_{name}"], **LOGITS)
            reduced = reduced_labels(labels, scores.shape[-2:])
            np.testing.assert_array_equal(reduced, case[f"train_resized_labels_b{b}_{name}"])
            leaf = scores.detach().requires_grad_()
            loss = segmentation_loss(leaf, reduced, "plain")
            loss.backward()
            close(leaf.grad, case[f"train_leaf_grad_b{b}_{name}"])
            losses.append(float(loss.detach()))
        np.testing.assert_allclose(losses, case[f"train_output_losses_b{b}"], rtol=1e-4)
        total = task_module.sum_over_outputs(model, images, labels, "plain") / int(case["iter_size"])
        np.testing.assert_allclose(float(total.detach()), case[f"train_iter_loss_b{b}"], rtol=1e-4)
        parts = [segmentation_loss(s, reduced_labels(labels, s.shape[-2:]), "plain") for s in outputs]
        (torch.stack(parts).sum() / int(case["iter_size"])).backward()
        for name, scores in zip(names[:-1], base, strict=True):
            close(scores.grad, case[f"train_base_grad_b{b}_{name}"])


def close(found: Any, expected: np.ndarray, share: float = 1e-3) -> None:
    np.testing.assert_allclose(found, expected, rtol=share, atol=share * np.abs(expected).max())


@pytest.mark.slow
def test_training_updates(case: Case) -> None:
    """Iterations of the task's own loss and optimizer, the sub-batches accumulated."""
    task, model, batch = make_task(case), build(case).train(), whole_batch(case)
    optimizer = task.optimizer(model, task.steps)
    groups = model.groups()
    for group, name in zip(groups, ("group_1x_names", "group_10x_names", "group_20x_names"), strict=True):
        assert set(group.names) == {str(n) for n in case[name]}
    own = dict(model.named_parameters())
    slices = [(str(n), torch.from_numpy(case[f"slice_{k}_index"])) for k, n in enumerate(case["slice_names"])]
    start = {name: own[name].detach().flatten()[at].double() for name, at in slices}
    for iteration in range(len(case["train_losses"])):
        optimizer.zero_grad()
        loss = task.loss(model, batch, iteration).losses["loss"]
        loss.backward()
        np.testing.assert_allclose(float(loss.detach()), case["train_losses"][iteration], rtol=1e-4)
        if iteration == 0:
            check_gradients(case, own, slices)
        optimizer.step()
        np.testing.assert_allclose([g["lr"] for g in optimizer.param_groups], case["train_lrs_used"][iteration], rtol=1e-9)
        for k, (name, at) in enumerate(slices):
            change = own[name].detach().flatten()[at].double() - start[name]
            expected = case[f"slice_{k}_change_step{iteration + 1}"]
            np.testing.assert_allclose(change, expected, rtol=0, atol=1e-2 * np.abs(expected).max() + 1e-7, err_msg=name)


def check_gradients(case: Case, own: dict[str, torch.nn.Parameter], slices: list[tuple[str, Tensor]]) -> None:
    assert {name for name, p in own.items() if p.grad is not None} == {str(n) for n in case["grad_names"]}
    for name, norm in zip(case["grad_names"], case["grad_norms"], strict=True):
        gradient = own[str(name)].grad
        assert gradient is not None
        np.testing.assert_allclose(gradient.double().norm(), norm, rtol=5e-3, atol=1e-9, err_msg=str(name))
    for k, (name, at) in enumerate(slices):
        gradient = own[name].grad
        assert gradient is not None
        np.testing.assert_allclose(
            gradient.flatten()[at], case[f"slice_{k}_grad"], rtol=0, atol=5e-3 * float(gradient.abs().max()) + 1e-9, err_msg=name
        )
