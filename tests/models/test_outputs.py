"""Hidden states and log-probabilities: without padding as with it, some rows at a time as all at once."""

import pytest
import torch
import torch.nn.functional as F
from tests.conftest import picture
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
)

from chatwright.data.records import Message
from chatwright.models import attention, outputs
from chatwright.models.attention import CONTAINERS, DECODERS, packs, use_packing

SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "sliding_window": None,
}
QUESTION = "What is in the picture, and how many are there?"


def batch_of(renderer, *answers, pictures=()):
    """Two questions, the first with some pictures, each with all answers."""
    prompts = [
        renderer.prompt([Message.of("user", QUESTION, *pictures)]),
        renderer.prompt([Message.of("user", "How many dogs?")]),
    ]
    tokens = [renderer.tokenizer(answer)["input_ids"] for answer in answers]
    return renderer.collate([renderer.answered(prompt, one) for prompt in prompts for one in tokens])


def both_ways(model, batch):
    """The hidden states of real tokens and gradients of a sum of them, packed and padded.

    Not of their squares: behind the last norm those add up to nearly the same whatever the model.
    """
    assert "packing" in batch
    for inputs in (batch, {name: value for name, value in batch.items() if name != "packing"}):
        model.zero_grad()
        states = outputs.hidden_states(model, inputs, batch["attention_mask"].bool())
        factors = torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
        (states * factors).sum().backward()
        yield states.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_both_ways(model, batch):
    (packed, ours), (padded, theirs) = both_ways(model, batch)
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-5)
    assert ours.keys() == theirs.keys() and ours
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4 * float(theirs[name].abs().max()))


@pytest.mark.parametrize("short", [256, 8])
@pytest.mark.parametrize("kind", DECODERS)
def test_packed_is_padded(kind, short, renderer, monkeypatch):
    monkeypatch.setattr(attention, "SHORT", short)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES))
    model.resize_token_embeddings(len(renderer.tokenizer))
    use_packing(model)
    batch = batch_of(renderer, "a red apple and a green pear", "dog", "There are three dogs.")
    assert len(batch["packing"].tokens) < 0.6 * batch["attention_mask"].sum()
    check_both_ways(model, batch)
    # Rows of one length, where nothing is moved.
    batch = renderer.collate([renderer.prompt([Message.of("user", word)]) for word in ("dog", "dog")])
    assert batch["packing"].regular
    check_both_ways(model, batch)


def test_packed_is_padded_with_pictures(assistant, renderer):
    assert assistant.config.model_type in CONTAINERS
    batch = batch_of(renderer, "a red apple", "two dogs and a green pear", "狗", pictures=[picture(1), picture(2)])
    seen = []
    hook = assistant.model.vision_tower.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs.get("pixel_values", args[0] if args else ()))), with_kwargs=True
    )
    check_both_ways(assistant, batch)
    hook.remove()
    assert seen == [2, 6]  # the pictures of a prompt are looked at once for all its answers


@pytest.mark.parametrize(
    ("kind", "whole"),
    [(LlavaConfig, LlavaForConditionalGeneration), (LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration)],
)
def test_other_containers(kind, whole, renderer):
    torch.manual_seed(0)
    seeing = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower = AutoConfig.for_model("clip_vision_model", image_size=32, patch_size=16, **seeing)
    words = SIZES | {"vocab_size": len(renderer.tokenizer)}
    config = kind(vision_config=tower, text_config=AutoConfig.for_model("qwen2", **words), image_token_id=300)
    config.image_token_index = 300
    model = whole(config)
    use_packing(model)
    assert packs(model.config) and config.model_type in CONTAINERS
    check_both_ways(model, batch_of(renderer, "a red apple", "two dogs"))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("mistral", {"sliding_window": 8}),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("gpt2", {}),
    ],
)
def test_what_does_not_attend_so_is_left_padded(kind, changes):
    changes = changes | ({"use_sliding_window": True, "sliding_window": 8} if kind == "qwen3" else {})
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **(SIZES | changes if kind != "gpt2" else {"n_layer": 1, "n_embd": 8, "n_head": 2}))
    )
    before = model.config._attn_implementation
    use_packing(model)
    assert model.config._attn_implementation == before != attention.PACKED


@pytest.fixture
def few_rows(monkeypatch):
    """So few rows at a time that all take several."""
    monkeypatch.setattr(outputs, "LOGITS", 3 * 320)


@pytest.mark.parametrize("autocast", [False, True])
def test_cross_entropy(autocast, language_model, renderer, few_rows):
    batch = batch_of(renderer, "a red apple and a green pear", "dog")
    targets = batch["input_ids"][:, 1:][batch["loss_mask"][:, 1:]]
    kept = []
    for compute in (
        lambda: outputs.cross_entropy(language_model, batch),
        lambda: plain(language_model, batch, targets),
    ):
        language_model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            total, right = compute()
        (total * 0.5).backward()
        kept.append((total.detach(), right, {n: p.grad.clone() for n, p in language_model.named_parameters()}))
    (ours, hits, gradients), (theirs, expected, wanted) = kept
    tolerance = 2e-2 if autocast else 1e-5
    assert hits == expected
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=0)
    for name in wanted:
        scale = float(wanted[name].abs().max())
        torch.testing.assert_close(gradients[name], wanted[name], rtol=0, atol=tolerance * scale)
    with torch.no_grad():
        assert not outputs.cross_entropy(language_model, batch)[0].requires_grad


def plain(model, batch, targets):
    logits = outputs.answer_logits(model, batch).float()
    return F.cross_entropy(logits, targets, reduction="sum"), (logits.argmax(-1) == targets).sum()


def test_log_probabilities(language_model, renderer, few_rows):
    batch = batch_of(renderer, "a red apple and a green pear", "dog")
    excluded, temperature = [3, 5], 0.7
    logprobs, entropies = outputs.token_logprobs(language_model, batch, temperature, excluded)
    factors = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(0))
    (logprobs * factors).sum().backward()
    ours = {name: p.grad.clone() for name, p in language_model.named_parameters()}
    language_model.zero_grad()
    logits = language_model(**outputs.model_inputs(language_model, batch)).logits[:, :-1] / temperature
    logits[..., excluded] = float("-inf")
    every = logits.log_softmax(-1)
    mask = batch["loss_mask"][:, 1:]
    chosen = torch.where(mask, every.gather(-1, batch["input_ids"][:, 1:, None])[..., 0], 0.0)
    (chosen * factors[:, 1:]).sum().backward()
    torch.testing.assert_close(logprobs[:, 1:], chosen, rtol=1e-5, atol=1e-5)
    entropy = torch.where(mask, torch.special.entr(every.exp()).sum(-1), 0.0)
    torch.testing.assert_close(entropies[:, 1:], entropy.detach(), rtol=1e-4, atol=1e-5)
    for name, p in language_model.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, rtol=0, atol=1e-5 * float(p.grad.abs().max()))


def test_losses_and_states_are_those_of_transformers(seeing):
    """Of rows with pictures of several shapes and without; `transformers` finds the positions itself."""
    model, renderer = seeing
    shapes = [[(32, 32), (64, 32)], [(32, 64)], []]
    shown = [[picture(seed).resize(shape) for seed, shape in enumerate(some)] for some in shapes]
    answers = ["Three dogs.", "狗", "There is a red apple."]
    rows = [
        renderer.demonstration([Message.of("user", QUESTION, *pictures), Message.of("assistant", answer)])
        for pictures, answer in zip(shown, answers, strict=True)
    ]
    batch = renderer.collate(rows)
    plain = {name: value for name, value in batch.items() if name not in ("loss_mask", "packing", "position_ids")}
    labels = batch["input_ids"].masked_fill(~batch["loss_mask"], -100)
    with torch.no_grad():
        theirs = model(**plain, labels=labels, output_hidden_states=True, use_cache=False)
        loss, _ = outputs.cross_entropy(model, batch)
        states = outputs.hidden_states(model, batch)
        logprobs, _ = outputs.token_logprobs(model, batch)
    assert float(loss / batch["loss_mask"].sum()) == pytest.approx(float(theirs.loss), abs=1e-5)
    assert float(-logprobs.sum()) == pytest.approx(float(loss), abs=1e-3)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(states[real], theirs.hidden_states[-1][real], rtol=1e-4, atol=1e-4)


def test_positions_leave_and_take_no_traces(seeing):
    """Some models remember how they counted the batch before."""
    model, renderer = seeing
    asked = [renderer.prompt([Message.of("user", QUESTION, *some)]) for some in ([picture(1).resize((64, 32))], [])]
    batches = [renderer.collate(rows, side) for side in ("left", "right") for rows in (asked, asked[1:])]
    with torch.no_grad():
        before = [outputs.hidden_states(model, batch) for batch in batches]
        model.base_model.rope_deltas = torch.full((2, 1), 7)
        for batch, states in zip(batches, before, strict=True):
            assert torch.equal(outputs.hidden_states(model, batch), states)
    assert torch.equal(model.base_model.rope_deltas, torch.full((2, 1), 7))
