"""rl with tools and environments as a user runs it, on tiny real models."""

import json
from pathlib import Path

import pytest
import torch
from tests.stages.test_feedback_stages import assert_resumes
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as vocabularies
from transformers import PreTrainedTokenizerFast

from chatwright.data.records import Message, Prompt
from chatwright.data.render import Renderer
from chatwright.data.store import save
from chatwright.errors import ChatwrightError
from chatwright.feedback.environments import Tools
from chatwright.models import build
from chatwright.models.outputs import token_logprobs
from chatwright.stages.base import execute
from chatwright.stages.rl import RL
from chatwright.training.loop import Training

HERE = Path(__file__)
CALL = '<tool_call>{"name": "weigh", "arguments": {"what": "dog"}}</tool_call>'
TELLING = "{% if tools %}<|system|>{{ tools[0]['function']['name'] }} by <tool_call><|end|>{% endif %}"


def weigh(what: str) -> int:
    """Weigh something.

    Args:
        what: its name.
    """
    return 3 * len(what)


def right(prompt, text):
    """A verifier: what the scales say and nothing else."""
    return float(text == "9")


def short(prompt, text):
    return -float(len(text))


def more(prompt, turns):
    """An environment that never has enough."""
    return Message.of("user", "more?")


@pytest.fixture(scope="module")
def caller(tmp_path_factory) -> Path:
    """A model that one time says it does not know, and the other time calls a tool and repeats what that says."""
    vocabulary = Tokenizer(vocabularies.BPE())
    vocabulary.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocabulary.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=build.SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    vocabulary.train_from_iterator([CALL] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary,
        pad_token=build.PAD,
        eos_token=build.END_OF_TEXT,
        chat_template=TELLING + build.CHAT_TEMPLATE,
    )
    renderer = Renderer(tokenizer)
    told = renderer.with_tools(Tools([weigh]).schemas)
    asked = Message.of("user", "dog?")
    looked = [asked, Message.of("assistant", CALL), Message.of("tool", "9"), Message.of("assistant", "9")]
    batch = renderer.collate(
        [told.demonstration(looked), *(told.demonstration([asked, Message.of("assistant", word)]) for word in "?!")]
    )
    torch.manual_seed(0)
    model = build.decoder(tokenizer, width=48, depth=2, heads=4, length=128)
    learned = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(120):
        loss = -token_logprobs(model, batch)[0].sum() / batch["loss_mask"].sum()
        learned.zero_grad()
        loss.backward()
        learned.step()
    folder = tmp_path_factory.mktemp("caller")
    model.save_pretrained(folder)
    renderer.save(folder)
    save([Prompt((asked,))] * 8, folder / "prompts.jsonl")
    return folder


def rl(model, **settings):
    given = {
        "model": str(model), "prompts": model / "prompts.jsonl",
        "verifier": f"{HERE}:right", "tools": f"{HERE}:weigh", "method": "grpo", "iterations": 8, "rollouts": 64,
        "minibatches": 2, "max_new_tokens": 60,
        "training": Training(learning_rate=1e-3, precision="fp32", decay="constant", log_every=1),
    }  # fmt: skip
    return RL(**{**given, **settings})


def lines_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_policy_learns_to_call_a_tool_instead_of_guessing(caller, tmp_path):
    execute(rl(caller), tmp_path / "out")
    lines = lines_of(tmp_path / "out")
    for name in ("verifier", "turns"):
        before, after = (sum(line[name] for line in part) / 4 for part in (lines[:4], lines[-4:]))
        assert after > before + 0.3, lines
    assert all(line["fresh_log_ratio"] < 1e-5 for line in lines)


@pytest.mark.parametrize("method", ["ppo", "dapo"])
def test_a_round_of_several_turns_goes_on_where_it_was(talker, renderer, conversations, tmp_path, monkeypatch, method):
    """With pictures in the prompts; dapo also asks other prompts."""
    checkpoint, prompts = tmp_path / "talker", tmp_path / "prompts.parquet"
    talker.save_pretrained(checkpoint)
    renderer.save(checkpoint)
    save([Prompt(tuple(turns)) for turns in conversations * 2], prompts)
    stage = rl(
        checkpoint, prompts=prompts, verifier=f"{HERE}:short", tools="", environment=f"{HERE}:more", method=method,
        iterations=2, rollouts=16, epochs=2, turns=3, micro_batch=8,
    )  # fmt: skip
    assert_resumes(stage, tmp_path, monkeypatch, after=3)
    lines = lines_of(tmp_path / "cut")
    assert len(lines) == 8 and lines[0]["turns"] > 1.2
    assert all(line["fresh_log_ratio"] < 1e-5 for line in lines)


def test_what_cannot_be_an_environment(caller, tmp_path):
    for match, settings in {
        "tools are an environment": {"environment": f"{HERE}:more"},
        "turns=1": {"turns": 1},
        "own name": {"tools": [f"{HERE}:weigh"] * 2},
        "no function add": {"tools": f"{HERE}:add"},
        "weigh.py": {"tools": str(tmp_path / "weigh.py:weigh")},
        "short.*docstring": {"tools": f"{HERE}:short"},
        "role tool or user": {"tools": "", "environment": f"{HERE}:short"},
    }.items():
        with pytest.raises(ChatwrightError, match=match):
            rl(caller, **settings).run(tmp_path / "out")


def test_turns_are_reported_only_where_there_is_an_environment(caller, tmp_path):
    execute(rl(caller, tools="", iterations=1, max_new_tokens=4), tmp_path / "out")
    assert all("turns" not in line for line in lines_of(tmp_path / "out"))
