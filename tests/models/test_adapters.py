"""LoRA, DoRA and prompt tuning: only the adapter learns, `peft` opens it, and the saved model says the same."""

import pytest
import torch
from peft import PeftModel
from tests.conftest import picture, spread
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel, Qwen3ForCausalLM

from chatwright.data.records import Message
from chatwright.data.render import Renderer
from chatwright.errors import ChatwrightError
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.models.adapters import METHODS, Adapter, adapt
from chatwright.models.load import load_model
from chatwright.models.outputs import model_inputs, token_logprobs
from chatwright.objectives.language.causal import CausalLanguageModel

TALKS = {
    "text": [Message.of("user", "How many dogs?"), Message.of("assistant", "three")],
    "image": [Message.of("user", "What is in the picture?", picture(1)), Message.of("assistant", "一只狗")],
}


def of(method: str) -> Adapter:
    return Adapter(method, rank=4, alpha=8, tokens=6)


def learn(model, renderer, talks, steps=12):
    """A few steps on some conversations; the losses."""
    objective = CausalLanguageModel(model, renderer).train()
    batch = renderer.collate([renderer.demonstration(talk) for talk in talks])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.03)
    losses = []
    for _ in range(steps):
        loss = objective.loss(batch)
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.total.item())
    return losses


def logits(model, renderer, talk):
    with torch.no_grad():
        return model.eval()(**model_inputs(model, renderer.collate([renderer.demonstration(talk)]))).logits[0]


def same(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def peft_agrees(base, renderer, saved, adapter, talk):
    """`peft`'s model of a base and a saved adapter has the logits of the saved model, for all words of the base."""
    words = len(renderer.tokenizer)
    opened = PeftModel.from_pretrained(base, adapter)
    before = logits(opened, renderer, talk)[:, :words]
    after = logits(load_model(saved), Renderer.load(saved), talk)[:, :words]
    same(before, after)


@pytest.mark.parametrize("kind", TALKS)
@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_alone_learns_and_is_saved_twice(checkpoint, renderer, tmp_path, method, kind):
    model, talk = load_model(checkpoint), TALKS[kind]
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    untouched = logits(model, renderer, talk)
    reader = of(method).prepare(renderer)
    adapted = adapt(model, reader, of(method))
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert 0 < sum(p.numel() for p in learned) < 0.5 * sum(tensor.numel() for tensor in base.values())
    losses = learn(model, reader, [talk])
    assert losses[-1] < 0.7 * losses[0]
    trained = logits(model, reader, talk)
    adapted.finish(tmp_path / "adapter")
    CausalLanguageModel(model, reader).save(tmp_path / "model")
    assert not any(type(module).__module__.startswith(("peft", "chatwright")) for module in model.modules())

    words = len(renderer.tokenizer)
    same(trained[:, :words], logits(load_model(tmp_path), Renderer.load(tmp_path / "model"), talk)[:, :words])
    assert (untouched - trained[-len(untouched) :, :words]).abs().max() > 1e-2
    for name, tensor in load_model(tmp_path).state_dict().items():
        changed = not torch.equal(tensor[: len(base[name])] if tensor.ndim else tensor, base[name])
        linear = ".layers." in name and name.endswith("_proj.weight")
        assert changed == (method != "prompt" and linear), name
    peft_agrees(load_model(checkpoint), renderer, tmp_path / "model", tmp_path / "adapter", talk)


@pytest.mark.parametrize("method", METHODS)
def test_a_disabled_adapter_is_the_model_as_it_was(seeing, conversations, method):
    model, renderer = seeing
    talks = [[*talk, Message.of("assistant", "three dogs")] for talk in conversations]

    def said(reader, side):
        batch = reader.collate([reader.demonstration(talk) for talk in talks], side)
        with torch.no_grad():
            return token_logprobs(model, batch)[0][batch["loss_mask"]]

    before = {side: said(renderer, side) for side in ("left", "right")}
    reader = of(method).prepare(renderer)
    adapted = adapt(model, reader, of(method))
    learn(model, reader, TALKS.values())
    for side, expected in before.items():
        with adapted.disabled():
            same(said(reader, side), expected, 1e-5 if method == "prompt" else 0)
        assert (said(reader, side) - expected).abs().max() > 0.1


def test_a_prompt_speaks_through_answers_and_is_never_said(checkpoint, renderer, conversations, tmp_path):
    question = conversations[1]
    first, wanted = Sampling(1, temperature=0), renderer.answer("dog")[:1]
    model, reader = load_model(checkpoint), of("prompt").prepare(renderer)
    assert Engine(model, renderer).generate([question], first)[0][0].tokens != wanted
    adapted = adapt(model, reader, of("prompt"))
    learn(model, reader, [[*question, Message.of("assistant", "dog")]], steps=80)
    adapted.finish(tmp_path / "adapter")
    CausalLanguageModel(model, reader).save(tmp_path / "model")
    model, opened = load_model(tmp_path), Renderer.load(tmp_path / "model")
    words = len(renderer.tokenizer)
    assert opened.soft_prompt == [words + i for i in range(6)] == model.generation_config.suppress_tokens
    assert Engine(model, opened).generate([question], first)[0][0].tokens == wanted
    # Vectors so long that, were they not excluded, hardly a token would be another.
    with torch.no_grad():
        model.get_input_embeddings().weight[opened.soft_prompt] *= 100
    answers = Engine(model, opened).generate(conversations, Sampling(max_new_tokens=16), n=4)
    assert not {token for some in answers for answer in some for token in answer.tokens} & set(opened.soft_prompt)
    row = opened.prompt(conversations[0])
    batch = {
        name: value for name, value in model_inputs(model, opened.collate([row])).items() if name != "position_ids"
    }
    plain = model.generate(**batch, max_new_tokens=16, do_sample=True)[0, len(row) :]
    assert not set(plain.tolist()) & set(opened.soft_prompt)


def test_a_second_prompt_goes_before_the_first(checkpoint, renderer, tmp_path):
    folder, talk = checkpoint, TALKS["image"]
    for name in ("first", "second"):
        base = Renderer.load(folder)
        model, reader = load_model(folder), of("prompt").prepare(base)
        adapted = adapt(model, reader, of("prompt"))
        learn(model, reader, [talk], steps=3)
        adapted.finish(tmp_path / name / "adapter")
        CausalLanguageModel(model, reader).save(tmp_path / name / "model")
        peft_agrees(load_model(folder), base, tmp_path / name / "model", tmp_path / name / "adapter", talk)
        folder = tmp_path / name / "model"
    ids = Renderer.load(folder).demonstration(talk).input_ids
    words = len(renderer.tokenizer)
    assert ids[:12] == [*range(words + 6, words + 12), *range(words, words + 6)]


def gemma(words):
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=words, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, max_position_embeddings=128, pad_token_id=0,
        )
    )  # fmt: skip


def spare_and_untied(words):
    config = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Qwen3ForCausalLM.config_class(
        vocab_size=words + 3, num_key_value_heads=1, head_dim=16, tie_word_embeddings=False, **config
    )
    return Qwen3ForCausalLM(model)


def gpt2(words):
    return GPT2LMHeadModel(GPT2Config(vocab_size=words, n_embd=32, n_layer=2, n_head=2, n_positions=128))


@pytest.mark.parametrize("method", ["lora", "prompt"])
@pytest.mark.parametrize("make", [gemma, spare_and_untied, gpt2])
def test_other_families(make, method, tokenizer, tmp_path):
    """Scaled embeddings, an embedding with spare rows and a head of its own, and linear layers written transposed."""
    torch.manual_seed(0)
    model, renderer = make(len(tokenizer)), Renderer(tokenizer)
    spread(model)
    model.save_pretrained(tmp_path / "base")
    model, reader = load_model(tmp_path / "base"), of(method).prepare(renderer)
    adapted = adapt(model, reader, of(method))
    losses = learn(model, reader, [TALKS["text"]])
    assert losses[-1] < losses[0]
    adapted.finish(tmp_path / "adapter")
    CausalLanguageModel(model, reader).save(tmp_path / "model")
    peft_agrees(load_model(tmp_path / "base"), renderer, tmp_path / "model", tmp_path / "adapter", TALKS["text"])


def test_unknown_settings_are_named():
    with pytest.raises(ChatwrightError, match="'ia3' is not known; use one of lora, dora, prompt"):
        Adapter("ia3")
    with pytest.raises(ChatwrightError, match="rank 0"):
        Adapter("lora", rank=0)
