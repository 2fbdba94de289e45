"""Weights laid out for decoding."""

import pytest
import torch

from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.generation.weights import _Prepared, prepared

if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
    pytest.skip("this processor multiplies no bfloat16", allow_module_level=True)


def test_prepared_weights_compute_the_same_and_go_again(language_model):
    model = language_model.bfloat16()
    ids = torch.arange(40).view(4, 10)
    layers = [module for module in model.modules() if type(module) is torch.nn.Linear]
    with torch.no_grad():
        plain = model(input_ids=ids).logits.float()
        with prepared(model, rows=4):
            assert sum(isinstance(module, _Prepared) for module in model.modules()) == len(layers)
            assert all(type(module) is not torch.nn.Linear for module in model.modules())
            torch.testing.assert_close(model(input_ids=ids).logits.float(), plain, rtol=2e-2, atol=0.1)
    assert [module for module in model.modules() if type(module) is torch.nn.Linear] == layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoding_prepares_bfloat16_alone(dtype, language_model, renderer, conversations):
    engine = Engine(language_model.to(dtype), renderer)
    with engine.decoder():
        found = [isinstance(module, _Prepared) for module in language_model.modules()]
    assert any(found) == (dtype == torch.bfloat16)
    texts = conversations[:1] + conversations[3:4]
    first, second = (engine.generate(texts, Sampling(max_new_tokens=8, temperature=0)) for _ in range(2))
    assert first == second
