"""The networks: names and shapes, what is trained, and passes with folded batch norms."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from seedbed.models import build_network
from seedbed.models.passes import Folded, Plain, borrowed_weights, many_passes
from seedbed.models.resnet import BatchNorm, ResNet
from seedbed.types import UserError


@pytest.fixture(scope="module")
def model() -> ResNet:
    """A ResNet-18 whose batch norms do something."""
    torch.manual_seed(0)
    network = ResNet(18, 4)
    for module in network.modules():
        if isinstance(module, BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return network.freeze_statistics()


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_names_and_shapes_are_torchvisions(depth: int) -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        theirs = getattr(models, f"resnet{depth}")().state_dict()
        ours = build_network(f"resnet{depth}", 20).state_dict()
    assert ours.pop("classifier.weight").shape == (20, theirs["fc.weight"].shape[1], 1, 1)
    assert {n: v.shape for n, v in ours.items()} == {n: v.shape for n, v in theirs.items() if not n.startswith("fc.")}


def test_the_trunk_is_torchvisions_but_for_one_stride() -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    ours, theirs = ResNet(50, 3).eval(), models.resnet50().eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    theirs.layer4[0].conv2.stride = theirs.layer4[0].downsample[0].stride = (1, 1)
    x = torch.randn(1, 3, 65, 81)
    with torch.no_grad():
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        y = ours.classifier(theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(y)))))
        torch.testing.assert_close(ours(x), y)
    assert y.shape == (1, 3, -(-65 // ours.stride), -(-81 // ours.stride))


def test_fixed_statistics_hold_in_training_mode(model: ResNet) -> None:
    model.train()
    before = {n: b.clone() for n, b in model.named_buffers()}
    one, two = torch.randn(2, 3, 40, 40), torch.randn(2, 3, 40, 40)
    together = model(torch.cat([one, two]))
    torch.testing.assert_close(together[:2], model(one))  # no picture sees another through the statistics
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    free = ResNet(18, 4).train()
    mean = free.bn1.running_mean.clone()  # type: ignore[union-attr]
    free(one)
    assert not torch.equal(free.bn1.running_mean, mean)  # type: ignore[arg-type]


def test_nothing_below_stage3_is_trained(model: ResNet) -> None:
    try:
        model.train_from("stage3")(torch.randn(1, 3, 32, 32)).sum().backward()
        trained = {n for n, p in model.named_parameters() if p.grad is not None}
        assert {n.split(".")[0] for n in trained} == {"layer3", "layer4", "classifier"}
        assert {id(p) for n, p in model.named_parameters() if n in trained} == {
            id(p) for p in model.suffix_parameters() + model.classifier_parameters()
        }
        model.train_from("all")(torch.randn(1, 3, 32, 32)).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
    finally:
        model.zero_grad()


@pytest.mark.parametrize(("trained", "channels_last"), [("stage3", True), ("all", False), ("all", True)])
def test_folded_passes_equal_plain_ones(model: ResNet, trained: str, channels_last: bool) -> None:
    """Scores and, over two passes of different sizes, gradients; again after an update."""
    batches = [torch.randn(2, 3, 48, 40), torch.randn(1, 3, 33, 64)]
    results = []
    for kind in (partial(Folded, fast=False), Plain):
        with borrowed_weights(model, trained) as (body, head):  # type: ignore[arg-type]
            passes, seen = kind(model, channels_last), []
            for _ in range(2):
                for p in body + head:
                    p.grad = None
                for x in batches:
                    with torch.set_grad_enabled(trained == "all"):
                        features = passes.prefix(x)
                    scores = passes.suffix(features)
                    scores.square().mean().backward()
                    seen.append(scores.detach())
                passes.pull_back()
                seen += [p.grad.clone() for p in body + head]  # type: ignore[union-attr]
                with torch.no_grad():
                    for p in body + head:
                        p.sub_(p.grad, alpha=1e-2)  # type: ignore[arg-type]
                passes.refold()
            results.append(seen)
    for folded, plain in zip(*results, strict=True):
        torch.testing.assert_close(folded, plain, rtol=2e-3, atol=2e-4 * float(plain.abs().max()) + 1e-6)


def test_folding_is_for_networks_that_it_knows(model: ResNet) -> None:
    assert isinstance(many_passes(model), Folded)
    assert isinstance(many_passes(build_network("small", 3)), Plain)


def test_borrowed_weights_come_back(model: ResNet) -> None:
    before = {n: (p, p.data_ptr(), p.detach().clone(), p.requires_grad) for n, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match="on purpose"), borrowed_weights(model, "stage3") as (body, head):
        for p in body + head:
            p.data.fill_(torch.nan)
            p.grad = torch.ones_like(p)
        raise RuntimeError("on purpose")
    for name, (p, address, value, trainable) in before.items():
        assert (p.data_ptr(), p.requires_grad, p.grad) == (address, trainable, None), name
        assert torch.equal(p, value), name


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(UserError, match="resnet51") as error:
        build_network("resnet51", 2)
    assert "resnet50" in error.value.remedy
