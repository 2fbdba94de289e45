"""Activation checkpointing: the same gradients from less memory, and no linear layer twice where it is selective."""

import pytest
import torch
from tests.training.test_loop import rows_of, train
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from chatwright.errors import ChatwrightError
from chatwright.objectives.language.causal import CausalLanguageModel
from chatwright.training.activations import checkpointed


def gradients(objective, batch, setting):
    """The gradients, the bytes that the forward pass leaves for the backward pass, and the products of both."""
    left = 0

    def count(tensor):
        nonlocal left
        left += tensor.nbytes
        return tensor

    objective.zero_grad()
    with checkpointed(objective, setting), FlopCounterMode(display=False) as flops:
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = objective.loss(batch).total
        loss.backward()
    linear = sum(flops.get_flop_counts()["Global"].get(one, 0) for one in (torch.ops.aten.mm, torch.ops.aten.addmm))
    return {name: p.grad.clone() for name, p in objective.named_parameters()}, left, linear


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_it_changes_no_gradient(renderer, assistant, precision):
    objective = CausalLanguageModel(assistant, renderer).train()
    batch = renderer.collate(rows_of(renderer))
    objective.loss(batch)  # the first one also looks at the head
    with torch.autocast("cpu", precision, precision == torch.bfloat16, cache_enabled=False):
        found = {setting: gradients(objective, batch, setting) for setting in ("none", "selective", "full")}
    plain, stored, products = found["none"]
    for setting in ("selective", "full"):
        for name, gradient in found[setting][0].items():
            assert torch.equal(gradient, plain[name]), name
    assert found["full"][1] < 0.5 * stored
    assert found["selective"][2] == products < found["full"][2]


def test_a_training_with_it_ends_in_the_same_weights(renderer, assistant, tmp_path):
    begun = {name: value.clone() for name, value in assistant.state_dict().items()}
    lines = {}
    for setting in ("none", "selective"):
        assistant.load_state_dict(begun)
        lines[setting] = train(
            renderer, assistant, tmp_path / setting, precision="bf16", activation_checkpointing=setting
        )
        lines[setting].append({name: value.clone() for name, value in assistant.state_dict().items()})
        assert not any(getattr(layer, "gradient_checkpointing", False) for layer in assistant.modules())
    *plain, weights = lines["none"]
    *course, found = lines["selective"]
    assert course == plain
    assert all(torch.equal(value, found[name]) for name, value in weights.items())


def test_what_cannot_be_checkpointed_is_named(renderer, assistant, tmp_path):
    with pytest.raises(ChatwrightError, match="activation_checkpointing 'some' is not known"):
        train(renderer, assistant, tmp_path, activation_checkpointing="some")
    decoder = assistant.get_decoder()
    decoder.layers = nn.ModuleList(nn.Identity() for _ in decoder.layers)
    with pytest.raises(ChatwrightError, match="Identity layers cannot be checkpointed"):
        train(renderer, assistant, tmp_path, activation_checkpointing="full")
