"""Both add-ons against numbers of the official code. Everything comes from the files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seedbed.addons import isl
from seedbed.addons.fsl import Fsl, FslConfig, colors_at, feature_similarity_loss
from seedbed.addons.isl import Isl, IslConfig
from seedbed.types import Batch, StepOutput

pytestmark = pytest.mark.golden

RTOL = 1e-4
"""Of losses; of gradients 1e-3, and 1e-3 of the largest."""
GUARD = 1e-5


def close(found: Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def output(logits: Tensor, labels: Tensor, **more: Any) -> StepOutput:
    """Of a network with the background as its first channel."""
    pooled = logits[:, 1:].mean((2, 3))
    return StepOutput({"cls": F.multilabel_soft_margin_loss(pooled, labels)}, logits[:, 1:], logits[:, :1], "cls", **more)


def fed(monkeypatch: pytest.MonkeyPatch, positions: np.ndarray) -> None:
    """The official draws in place of ours."""
    monkeypatch.setattr(isl, "drawn_positions", lambda distribution, uniform: torch.from_numpy(positions))


def test_fsl_of_given_judgements(golden: Any) -> None:
    case = golden("isl_fsl")
    x, y = torch.from_numpy(case["small_x"]), torch.from_numpy(case["small_y"]).requires_grad_()
    loss = feature_similarity_loss(y, x, guard=GUARD)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(case["small_loss_f64"]), rel=RTOL)
    assert y.grad is not None
    close(y.grad, case["small_grad_y_f64"])
    rows = [float(feature_similarity_loss(y[i : i + 1].detach(), x[i : i + 1], guard=GUARD)) for i in range(len(y))]
    np.testing.assert_allclose(rows, case["small_loss_per_image"], rtol=RTOL)
    other = y.detach()
    assert float(feature_similarity_loss(other, x, 1.0, 2.0, GUARD)) == pytest.approx(float(case["small_loss_sigma2"]), rel=RTOL)
    assert float(feature_similarity_loss(other, x, 2.5, None, GUARD)) == pytest.approx(float(case["small_loss_nosigma"]), rel=RTOL)


def test_fsl_of_a_large_map(golden: Any) -> None:
    """Here the reach of five sigma ends before the picture does: what is left out costs less than 1e-5 of the loss."""
    case = golden("isl_fsl")
    y, x = torch.from_numpy(case["big_y"]), torch.from_numpy(case["big_x"])
    assert float(feature_similarity_loss(y, x, guard=GUARD)) == pytest.approx(float(case["big_loss_f64"]), rel=1e-5)
    double = float(feature_similarity_loss(y.double(), x.double(), guard=GUARD))
    assert double == pytest.approx(float(case["big_loss_f64"]), rel=1e-5)


def test_fsl_of_a_step(golden: Any) -> None:
    case = golden("isl_fsl")
    labels, images = torch.from_numpy(case["labels"]), torch.from_numpy(case["small_img1"])
    logits = torch.from_numpy(case["small_logits"]).requires_grad_()
    out, addon = output(logits, labels), Fsl()
    close(addon.judgements(out, labels), case["small_y"])
    np.testing.assert_allclose(colors_at(images, logits.shape[2:]), case["small_x"], atol=1e-6)  # type: ignore[arg-type]
    loss = addon(out, Batch(images, labels), 0, 0).losses["fsl"]
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(case["small_loss"]), rel=RTOL)
    assert logits.grad is not None
    close(logits.grad, case["small_grad_logits"])
    paper = float(Fsl(FslConfig.named("paper"))(out, Batch(images, labels), 0, 0).losses["fsl"].detach())
    assert paper != pytest.approx(float(case["small_loss"]), rel=0.05)


def test_isl_draws(golden: Any) -> None:
    case = golden("isl_fsl")
    scores = torch.from_numpy(case["small_logits"])[:, 1:]
    weights = isl.binomial_posterior(scores) + IslConfig().epsilon
    np.testing.assert_allclose(weights, case["isl_probs"], rtol=1e-5)
    positions = torch.from_numpy(case["isl_indices"])
    assert positions.shape[2] == int(case["isl_num_samples"])
    np.testing.assert_array_equal(isl.drawn_scores(scores, positions), case["isl_samples"])
    np.testing.assert_allclose(isl.drawn_scores(weights, positions), case["isl_samples_of_probs"], rtol=1e-5)
    ours = isl.drawn_positions(isl.sampling_distribution(weights), torch.rand(positions.shape, generator=torch.Generator().manual_seed(0)))
    taken = weights.flatten(2).gather(2, ours).mean()
    by_chance = (weights.square().sum((2, 3)) / weights.sum((2, 3))).mean()
    assert float(taken) == pytest.approx(float(by_chance), rel=0.05)


@pytest.mark.parametrize(("weight", "name"), [(0.0, "lambda00"), (0.2, "lambda02"), (1.0, "lambda10")])
def test_isl_of_a_step(golden: Any, weight: float, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = golden("isl_fsl")
    labels = torch.from_numpy(case["labels"])
    logits = torch.from_numpy(case["small_logits"]).requires_grad_()
    enlarged = F.interpolate(logits, tuple(case["isl_up_size"].tolist()), mode="bilinear", align_corners=True)
    pooled = enlarged.mean((2, 3))
    np.testing.assert_allclose(pooled.detach(), case["isl_label1"], rtol=1e-4, atol=1e-5)
    gap = isl.gap_loss(pooled[:, 1:], labels).mean()
    assert float(gap.detach()) == pytest.approx(float(case["isl_loss_gap"]), rel=RTOL)
    out = StepOutput({"cls": gap}, logits[:, 1:], logits[:, :1], "cls", pooled_nc=pooled[:, 1:])
    fed(monkeypatch, case["isl_indices"])
    found = Isl(IslConfig(weight=weight, samples=int(case["isl_num_samples"])))(out, Batch(torch.zeros(0), labels), 0, 0)
    loss = found.losses["cls"]
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(case[f"isl_loss_{name}"]), rel=RTOL)
    assert logits.grad is not None
    close(logits.grad, case[f"isl_grad_logits_{name}"])


def test_both_in_seam(golden: Any) -> None:
    """SEAM's first branch has half of the classification term, and the mean of the map at the size of the picture."""
    case = golden("seam")
    labels, images = torch.from_numpy(case["labels"]), torch.from_numpy(case["img1"])
    logits = torch.from_numpy(case["logits1"]).requires_grad_()
    fsl = Fsl()(output(logits, labels), Batch(images, labels), 0, 0).losses["fsl"]
    assert float(fsl.detach()) == pytest.approx(float(case["hfpl_loss_fs1"]), rel=RTOL)
    weight = float(case["hfpl_lambda"])
    gap, sampled = (torch.tensor(float(case[f"hfpl_loss_{name}"])) for name in ("cls1_gap", "cls_is1"))
    assert float(isl.blended(gap, sampled, weight)) == pytest.approx(float(case["hfpl_loss_cls1"]), rel=RTOL)
    rest = sum(float(case[f"hfpl_loss_{name}"]) for name in ("cls2", "rvmin1", "rvmin2")) / 2
    assert rest + float(isl.blended(gap, sampled, weight)) / 2 == pytest.approx(float(case["hfpl_loss_cls"]), rel=RTOL)
    pooled = torch.from_numpy(case["cam1"])[:, 1:].mean((2, 3))
    assert float(isl.gap_loss(pooled, labels).mean()) == pytest.approx(float(gap), rel=RTOL)
    # The draws of this case are not stored, but with the generator it names they come out of the same weights.
    generator = torch.Generator().manual_seed(int(case["hfpl_manual_seed"]))
    drawn = torch.multinomial((logits[:, 1:].detach().sigmoid() + 1e-5).flatten(2).flatten(0, 1), 10, True, generator=generator)
    positions = drawn.view(*labels.shape, -1)
    ours = isl.multi_sample_loss(isl.drawn_scores(logits[:, 1:], positions), labels).mean()
    if float(ours.detach()) != pytest.approx(float(sampled), rel=RTOL):
        pytest.skip("this torch draws other positions from the same seed")
    (weight / 2 * ours + fsl).backward()
    assert logits.grad is not None
    close(logits.grad, case["hfpl_grad_logits1"])
