"""The numbers that a model answers in."""

import pytest
import torch

from chatwright.errors import ChatwrightError
from chatwright.generation.engine import Engine
from chatwright.generation.reading import read
from chatwright.generation.sampling import Sampling
from chatwright.models.precision import cast, dtype_of

CPU = torch.device("cpu")


def test_precision_is_what_was_asked_for_or_what_is_faster():
    assert [dtype_of(name, CPU, 4) for name in ("fp32", "bf16", "int8")] == [
        torch.float32,
        torch.bfloat16,
        torch.bfloat16,
    ]
    assert dtype_of("auto", CPU, 4) in (torch.float32, torch.bfloat16)
    assert dtype_of("auto", torch.device("cuda"), 4) is torch.bfloat16
    with pytest.raises(ChatwrightError, match="precision 'fp4' is not known"):
        dtype_of("fp4", CPU, 4)


def test_half_precision_says_almost_the_same_of_texts_and_pictures(assistant, renderer, conversations):
    prompts = [renderer.prompt(turns) for turns in conversations]
    whole = read(Engine(assistant, renderer), prompts)
    half = Engine(assistant.to(torch.bfloat16), renderer)
    for exact, rounded in zip(whole, read(half, prompts), strict=True):
        assert rounded.logprobs[1:] == pytest.approx(exact.logprobs[1:], rel=0.1, abs=0.5)
    assert all(answers[0].tokens for answers in half.generate(prompts, Sampling(8, 0)))


def test_a_cast_model_is_itself_again(language_model):
    before = {name: (parameter, parameter.data_ptr()) for name, parameter in language_model.named_parameters()}
    with pytest.raises(ZeroDivisionError), cast(language_model, torch.bfloat16):
        assert {parameter.dtype for parameter in language_model.parameters()} == {torch.bfloat16}
        assert all(buffer.dtype == torch.float32 for buffer in language_model.buffers())
        assert language_model(input_ids=torch.arange(5)[None]).logits.dtype == torch.bfloat16
        raise ZeroDivisionError
    assert {name: (p, p.data_ptr()) for name, p in language_model.named_parameters()} == before
