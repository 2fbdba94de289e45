"""Muon against PyTorch's, which takes one matrix after the other."""

import pytest
import torch
from torch import nn

from chatwright.training import muon
from chatwright.training.muon import Muon, orthogonal
from chatwright.training.optimizer import make_optimizers


def test_the_same_steps_as_pytorch_to_the_bit(monkeypatch):
    monkeypatch.setattr(muon, "multiplies_bf16", lambda device: True)
    torch.manual_seed(0)
    shapes = [(24, 24), (12, 24), (24, 24), (64, 24), (24, 64), (64, 24), (24, 24)]
    starts = [torch.randn(shape) for shape in shapes]
    ours, theirs = ([nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    idle = nn.Parameter(torch.ones(24, 24))
    optimizers = [
        Muon([{"params": [idle, *ours]}], 1e-2, 0.01),
        torch.optim.Muon([idle, *theirs], 1e-2, 0.01, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one) * torch.randn(one.shape[1]).exp()
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other, start in zip(ours, theirs, starts, strict=True):
        assert torch.equal(one, other) and not torch.equal(one, start)
    assert torch.equal(idle, torch.ones(24, 24))


def test_the_kernels_of_a_convolution_are_one_matrix():
    torch.manual_seed(0)
    kernels = nn.Parameter(torch.randn(8, 4, 3, 3).contiguous(memory_format=torch.channels_last))
    matrix = nn.Parameter(kernels.detach().flatten(1).clone())
    kernels.grad = torch.randn_like(kernels)
    matrix.grad = kernels.grad.flatten(1)
    for parameter in (kernels, matrix):
        Muon([{"params": [parameter]}], 1e-2).step()
    torch.testing.assert_close(kernels.flatten(1), matrix)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 1, 3))
    model.factor = lambda path: 1.0
    adamw, muon = make_optimizers(model, "muon", 1e-2, 0.1)
    assert [group["params"] for group in muon.param_groups] == [[model[0].weight]]
    assert sum(len(group["params"]) for group in adamw.param_groups) == 5


@pytest.mark.parametrize("bf16", [True, False])
def test_singular_values_come_near_one(monkeypatch, bf16):
    monkeypatch.setattr(muon, "multiplies_bf16", lambda device: bf16)
    torch.manual_seed(0)
    found = orthogonal(torch.randn(2, 24, 64))
    assert found.dtype == (torch.bfloat16 if bf16 else torch.float32)
    values = torch.linalg.svdvals(found.float())
    assert values.min() > 0.6 and values.max() < 1.3
