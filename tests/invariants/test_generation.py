"""What must hold of every way to generate the same answer."""

import pytest
import torch
from tests.conftest import picture
from transformers import Lfm2Config, Lfm2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from chatwright.data.records import Message
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.models.outputs import model_inputs

TEMPERATURES = [0.7, 1.0, 1.3]
OBLONG = [Message.of("user", "Which?", picture(5).resize((64, 32)), picture(6).resize((32, 64)))]


def by_itself(model, renderer, row):
    """Logits [T, V] of one row, whose positions the model counts itself."""
    batch = renderer.collate([row])
    for name in ("loss_mask", "packing", "position_ids"):
        del batch[name]
    with torch.no_grad():
        return model(**batch, use_cache=False).logits[0]


def teacher_forced(model, renderer, rows, answers, temperature):
    """Log-probabilities of given answers by one forward pass without a cache, right-padded."""
    full = [renderer.answered(row, tokens) for row, tokens in zip(rows, answers, strict=True)]
    batch = renderer.collate(full)
    mask = batch["loss_mask"]
    with torch.no_grad():
        logits = model(**model_inputs(model, batch), use_cache=False).logits.float()
    logits[..., list(renderer.placeholders.values())] = float("-inf")
    logprobs = (logits[:, :-1] / temperature).log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    return [row[keep].tolist() for row, keep in zip(logprobs, mask[:, 1:], strict=True)]


@pytest.mark.parametrize("attention", ["packed", "sdpa"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_fresh_policy_has_ratio_one(temperature, attention, seeing, conversations):
    """|log-ratio| < 1e-5 in float32, for text, one picture and two, in one padded batch with early leavers."""
    model, renderer = seeing
    model.get_decoder().set_attn_implementation(attention)
    sampling = Sampling(max_new_tokens=40, temperature=temperature, stop=("e", "a", "o", "什"))
    # So few rows at once that many enter while others are being written.
    answers = Engine(model, renderer, batch_size=9).generate(conversations, sampling, n=4)
    rows = [renderer.prompt(conversation) for conversation in conversations for _ in range(4)]
    completions = [completion for several in answers for completion in several]
    lengths = {len(completion.tokens) for completion in completions}
    assert len(lengths) > 3, "rows should have left the batch at different times"
    forced = teacher_forced(model, renderer, rows, [c.tokens for c in completions], temperature)
    for completion, expected in zip(completions, forced, strict=True):
        assert completion.logprobs == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, *TEMPERATURES])
@pytest.mark.parametrize("batch_size", [5, 64])
def test_batched_equals_alone(batch_size, temperature, seeing, conversations):
    """Also for sampled answers, and whether or not the other prompts hold pictures."""
    model, renderer = seeing
    sampling = Sampling(max_new_tokens=30, temperature=temperature)
    together = Engine(model, renderer, batch_size=batch_size).generate(conversations, sampling, n=2)
    for conversation, several in zip(conversations, together, strict=True):
        alone = Engine(model, renderer, batch_size=1).generate([conversation], sampling, n=2)[0]
        assert [completion.tokens for completion in alone] == [completion.tokens for completion in several]
        for one, other in zip(alone, several, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_cached_equals_uncached(seeing, conversations):
    """Greedy answers token by token, the whole sequence computed anew for each."""
    model, renderer = seeing
    conversations = [*conversations, OBLONG]
    answers = Engine(model, renderer).generate(conversations, Sampling(max_new_tokens=10, temperature=0))
    for conversation, (completion,) in zip(conversations, answers, strict=True):
        row = renderer.prompt(conversation)
        for written, token in enumerate(completion.tokens):
            logits = by_itself(model, renderer, renderer.answered(row, completion.tokens[:written]))[-1]
            logits[list(renderer.placeholders.values())] = float("-inf")
            assert logits.argmax() == token


def test_greedy_answers_are_those_of_transformers(seeing, conversations):
    """Each prompt read by the processor and answered by `generate`, which leaves its count in some models."""
    model, renderer = seeing
    conversations = [*conversations, OBLONG]
    theirs = []
    for conversation in conversations:
        chat = [{"role": turn.role, "content": [part_of(part) for part in turn.content]} for turn in conversation]
        inputs = renderer.processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        told = model.generate(
            **inputs, max_new_tokens=20, do_sample=False, suppress_tokens=list(renderer.unsaid),
            eos_token_id=list(renderer.stop_ids), pad_token_id=renderer.pad_id,
        )  # fmt: skip
        theirs.append(told[0, inputs["input_ids"].shape[1] :].tolist())
    answers = Engine(model, renderer).generate(conversations, Sampling(max_new_tokens=20, temperature=0))
    assert [completion.tokens for (completion,) in answers] == theirs


def part_of(part):
    return {"type": "text", "text": part.text} if part.type == "text" else {"type": "image", "image": part.image()}


def test_left_padding_changes_nothing(seeing, conversations):
    model, renderer = seeing
    conversations = [*conversations, OBLONG]
    rows = [renderer.prompt(conversation) for conversation in conversations]
    batch = renderer.collate(rows, side="left")
    with torch.no_grad():
        padded = model(**model_inputs(model, batch), use_cache=False).logits[:, -1]
    for row, logits in zip(rows, padded, strict=True):
        assert torch.allclose(logits, by_itself(model, renderer, row)[-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["sliding window", "recurrent"])
def test_layers_of_other_kinds_are_served(kind, renderer, conversations):
    """A model that mixes full attention with another kind, with answers longer than the window."""
    torch.manual_seed(0)
    shared = {
        "vocab_size": len(renderer.tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
    }
    if kind == "recurrent":
        model = Lfm2ForCausalLM(Lfm2Config(layer_types=["conv", "full_attention"], **shared)).eval()
    else:
        layers = ["full_attention", "sliding_attention"]
        window = Qwen3Config(head_dim=8, use_sliding_window=True, sliding_window=8, layer_types=layers, **shared)
        model = Qwen3ForCausalLM(window).eval()
    texts = [conversation for conversation in conversations if not renderer.prompt(conversation).media]
    sampling = Sampling(max_new_tokens=20)
    answers = Engine(model, renderer, batch_size=3).generate(texts, sampling, n=2)
    rows = [renderer.prompt(text) for text in texts for _ in range(2)]
    completions = [completion for several in answers for completion in several]
    forced = teacher_forced(model, renderer, rows, [c.tokens for c in completions], 1.0)
    for completion, expected in zip(completions, forced, strict=True):
        assert completion.logprobs == pytest.approx(expected, abs=1e-5)
