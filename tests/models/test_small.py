"""The small network keeps to the contract of networks."""

from __future__ import annotations

import pytest
import torch

from seedbed.models import build_network


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network("small", 6)


def test_size_and_stride(model) -> None:
    assert sum(p.numel() for p in model.parameters()) == 52_928
    for side, out in ((96, 24), (97, 25), (48, 12), (5, 2)):
        assert model(torch.zeros(1, 3, side, side + 8)).shape == (1, 6, out, -(-(side + 8) // 4))
    assert model.stride == 4 and model.classifier.bias is None


def test_receptive_field(model) -> None:
    model.eval()
    x = torch.randn(1, 3, 96, 96, requires_grad=True)
    model(x)[0, :, 12, 12].sum().backward()
    seen = (x.grad[0].abs().sum(0) > 0).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).max() <= 47


def test_forward_is_suffix_of_prefix_and_parameters_are_told_apart(model) -> None:
    model.eval()
    x = torch.randn(2, 3, 32, 40)
    assert torch.equal(model(x), model.suffix(model.prefix(x)))
    groups = [model.suffix_parameters(), model.classifier_parameters()]
    below = {id(p) for p in model.parameters()} - {id(p) for group in groups for p in group}
    names = {name for name, p in model.named_parameters() if id(p) in below}
    assert names == {"conv1.weight", "bn1.weight", "bn1.bias"}
    model.suffix(model.prefix(x).detach()).sum().backward()
    assert all((p.grad is None) == (id(p) in below) for p in model.parameters())


def test_fixed_statistics_stay_in_training_mode(model) -> None:
    def statistics() -> list[torch.Tensor]:
        return [b.clone() for name, b in model.named_buffers() if "running" in name]

    x = torch.randn(4, 3, 32, 32)
    model.train()
    before = statistics()
    model(x)
    trained = statistics()
    assert not torch.equal(before[0], trained[0])
    model.freeze_statistics(True)
    model.train()
    frozen = model(x)
    assert all(torch.equal(a, b) for a, b in zip(trained, statistics(), strict=True))
    model.eval()
    assert torch.equal(model(x), frozen)
    model.freeze_statistics(False)
    model.train()
    model(x)
    assert not torch.equal(trained[0], statistics()[0])
