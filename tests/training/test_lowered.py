"""What computes in bf16 is learned in fp32."""

import torch
from tests.training.test_loop import rows_of

from chatwright.objectives.language.causal import CausalLanguageModel
from chatwright.training.precision import autocast, lowered

CPU = torch.device("cpu")


def gradients(objective, batches, precision):
    objective.zero_grad(set_to_none=True)
    with lowered(objective, precision):
        for batch in batches:
            with autocast(precision, CPU):
                loss = objective.loss(batch)
            loss.total.backward()
    return {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}


def test_weights_are_lowered_and_come_back_to_the_bit(renderer, assistant):
    objective = CausalLanguageModel(assistant, renderer).train()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    seen = []
    layer = assistant.get_decoder().layers[1]
    layer.register_forward_pre_hook(
        lambda layer, inputs: seen.append((layer.mlp.up_proj.weight.dtype, inputs[0].dtype))
    )
    batches = [renderer.collate([row]) for row in rows_of(renderer)]
    found = gradients(objective, batches, "bf16")
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    exact = gradients(objective, batches, "fp32")
    assert found.keys() == exact.keys()
    flat = [torch.cat([one[name].flatten() for name in exact]) for one in (found, exact)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.99


def test_gradients_of_micro_batches_add_up_in_fp32(renderer, assistant):
    objective = CausalLanguageModel(assistant, renderer).train()
    batches = [renderer.collate([row]) for row in rows_of(renderer)]
    each = [gradients(objective, [batch], "bf16") for batch in batches]
    together = gradients(objective, batches, "bf16")
    for name, gradient in together.items():
        assert torch.equal(gradient, sum(one[name] for one in each if name in one)), name
    # Added up in bf16 they would be bf16 numbers.
    assert any(not torch.equal(gradient.bfloat16().float(), gradient) for gradient in together.values())
