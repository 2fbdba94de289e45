"""Weights laid out for decoding."""

import pytest
import torch

from chatwright.errors import ChatwrightError
from chatwright.generation import weights
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.generation.weights import _Int8, _Prepared, prepared

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


@pytest.mark.parametrize("bias", [False, True])
def test_eight_bits_compute_nearly_the_same_and_every_row_alone(bias, monkeypatch):
    monkeypatch.setattr(weights, "WORTH", 0)
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 48, bias).bfloat16()
    rows = (torch.randn(5, 3, 64) * torch.tensor([1, 10, 0.1, 1, 0])[:, None, None]).bfloat16()
    model = torch.nn.Sequential(linear)
    with torch.no_grad():
        exact = linear(rows).float()
        with prepared(model, rows=4, int8=True):
            assert isinstance(model[0], _Int8)
            found = model(rows)
            assert all(torch.equal(model(row), several) for row, several in zip(rows, found, strict=True))
    assert found.dtype is torch.bfloat16 and model[0] is linear
    error = (found.float() - exact).norm(dim=-1) / (
        rows.float().norm(dim=-1) * linear.weight.float().norm() / 48**0.5 + 1e-9
    )
    assert error.max() < 0.02


def test_answers_of_eight_bits_do_not_depend_on_the_batch(language_model, renderer, conversations, monkeypatch):
    monkeypatch.setattr(weights, "WORTH", 0)
    engine = Engine(language_model.bfloat16(), renderer, int8=True)
    texts = conversations[:1] + conversations[3:4]
    together = engine.generate(texts, Sampling(max_new_tokens=8, temperature=0))
    assert together == [engine.generate([text], Sampling(max_new_tokens=8, temperature=0))[0] for text in texts]


def test_large_layers_alone_are_of_eight_bits():
    layers = torch.nn.Sequential(torch.nn.Linear(64, weights.WORTH // 64), torch.nn.Linear(64, 64)).bfloat16()
    with prepared(layers, rows=1, int8=True):
        assert [type(layer) for layer in layers] == [_Int8, _Prepared]


def test_eight_bits_want_a_model_that_computes_in_bfloat16(language_model, renderer):
    with pytest.raises(ChatwrightError, match="8-bit weights need a CPU"):
        Engine(language_model, renderer, int8=True)
