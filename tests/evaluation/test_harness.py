import json
import math

import pytest
import torch

from chatwright.data.records import Demonstration, Document, Message, Part, Prompt
from chatwright.data.render import Renderer
from chatwright.data.rendered import Rendered
from chatwright.data.store import save
from chatwright.errors import ChatwrightError
from chatwright.evaluation import harness
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.models.load import load_model
from chatwright.stages.evaluate import Evaluate


def prompts_of(conversations, score="contains", choices=("a", "狗", "there are three dogs")) -> list[Prompt]:
    """Prompts of two tasks and languages."""
    return [
        Prompt(
            tuple(conversation),
            reference="a",
            choices=choices,
            score=score,
            meta={"task": "ab"[number % 2], "language": ["en", "zh"][number // 3], "split": "test"},
        )
        for number, conversation in enumerate(conversations)
    ]


@pytest.fixture
def engine(assistant, renderer):
    return Engine(assistant, renderer, batch_size=4)


def test_answers_are_those_of_the_engine(engine, conversations):
    sampling = Sampling(max_new_tokens=8, temperature=0)
    rows = harness.ask(engine, prompts_of(conversations), sampling, first_row=10)
    expected = engine.generate(conversations, sampling)
    assert [row["answer"] for row in rows] == [completion.text for (completion,) in expected]
    assert [row["row"] for row in rows] == [10, 11, 12, 13, 14]
    assert rows[3]["question"] == "apple, a red one, and a pear?"
    assert all(row["chance"] == pytest.approx(1 / 3) for row in rows)


def test_the_choice_is_the_most_likely_a_character(engine, assistant, renderer, conversations):
    """Against the log-likelihood of every choice computed alone, by one plain forward pass."""
    prompts = prompts_of(conversations, score="choice", choices=("a", "狗", "Q", "Z!?", "xy", "{", "9"))
    rows = harness.ask(engine, prompts, Sampling())
    for prompt, row in zip(prompts, rows, strict=True):
        rendered = renderer.prompt(prompt.messages)
        scores = []
        for choice in prompt.choices:
            ids = renderer.tokenizer(choice, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = assistant(input_ids=torch.tensor([[*rendered.input_ids, *ids]]), **rendered.media).logits[0]
            logprobs = logits.log_softmax(-1)[len(rendered) - 1 : -1]
            scores.append(logprobs.gather(1, torch.tensor(ids)[:, None]).sum().item() / len(choice))
        assert row["answer"] == prompt.choices[scores.index(max(scores))]
        assert row["finish_reason"] == "choice"
    assert len({row["answer"] for row in rows}) > 1


def test_tally_groups_by_task_language_and_split(engine, conversations):
    rows = harness.ask(engine, prompts_of(conversations), Sampling(max_new_tokens=2, temperature=0))
    for row in rows:
        row["correct"] = row["row"] in (0, 1, 2)
    scores = harness.tally(rows)
    assert scores["a"]["score"] == pytest.approx(2 / 3) and scores["a"]["n"] == 3
    assert scores["b"]["score"] == 0.5
    assert scores["a"]["by_language"]["en"]["score"] == 1 and scores["a"]["by_language"]["zh"]["score"] == 0
    assert scores["a"]["by_split"]["test"]["n"] == 3
    assert scores["a"]["chance"] == pytest.approx(1 / 3)
    assert scores["a"]["low"] < scores["a"]["score"] < scores["a"]["high"]


def test_reading_scores_every_token_once(engine, assistant, renderer):
    """Against plain cross-entropy a document; one is longer than the context, so it is read in pieces."""
    texts = [("en", "How many dogs?"), ("zh", "狗和苹果。"), ("en", "The red apple and the green pear. " * 12)]
    documents = [Document((Part.of_text(text),), {"language": language}) for language, text in texts]
    found = harness.read(engine, documents)
    nats = right = tokens = 0
    for document in documents:
        ids = renderer.document(document).input_ids
        for start in range(0, len(ids), engine.context):
            piece = torch.tensor(ids[start : start + engine.context])
            with torch.no_grad():
                logits = assistant(input_ids=piece[None]).logits[0, :-1]
            nats += torch.nn.functional.cross_entropy(logits, piece[1:], reduction="sum").item()
            right += (logits.argmax(-1) == piece[1:]).sum().item()
            tokens += len(piece) - 1
    assert found["n"] == tokens
    assert found["score"] == pytest.approx(right / tokens)
    assert found["nats_per_token"] == pytest.approx(nats / tokens, rel=1e-5)
    assert found["chance"] == 1 / assistant.config.text_config.vocab_size
    assert found["by_language"]["en"]["n"] + found["by_language"]["zh"]["n"] == tokens


def test_reading_does_not_depend_on_the_batches(assistant, renderer, monkeypatch):
    documents = [Document((Part.of_text("dog " * count),)) for count in (1, 5, 9, 30)]
    together = harness.read(Engine(assistant, renderer, batch_size=64), documents)
    monkeypatch.setattr(harness, "LOGITS", 1)
    alone = harness.read(Engine(assistant, renderer, batch_size=1), documents)
    assert alone["n"] == together["n"]
    assert alone["nats_per_token"] == pytest.approx(together["nats_per_token"], rel=1e-6)


def test_a_bad_row_is_named(engine, conversations):
    prompts = prompts_of(conversations)
    prompts[2] = Prompt(prompts[2].messages, reference=None)
    with pytest.raises(ChatwrightError, match="row 13: a prompt without a reference"):
        harness.ask(engine, prompts, Sampling(), first_row=10)
    prompts[2] = Prompt((Message.of("user", "dog " * 200),), reference="a")
    with pytest.raises(ChatwrightError, match="row 3: the prompt has"):
        harness.ask(engine, prompts, Sampling())


def test_the_stage_writes_scores_and_answers(tmp_path, checkpoint, conversations):
    save(prompts_of(conversations), tmp_path / "test.parquet")
    save([Document((Part.of_text("How many dogs?"),))], tmp_path / "documents.jsonl")
    out = tmp_path / "out"
    out.mkdir()
    stage = Evaluate(str(checkpoint), tmp_path / "test.parquet", tmp_path / "documents.jsonl", max_new_tokens=4)
    stage.run(out)
    scores = json.loads((out / "scores.json").read_text())
    assert list(scores) == ["a", "b", "pretraining"]
    for score in scores.values():
        assert 0 <= score["low"] <= score["score"] <= score["high"] <= 1
        assert score["n"] > 0 and math.isfinite(score["chance"])
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [answer["row"] for answer in answers] == [0, 1, 2, 3, 4]


def test_an_interrupted_evaluation_goes_on(tmp_path, checkpoint, conversations):
    save(prompts_of(conversations), tmp_path / "test.parquet")
    stage = Evaluate(str(checkpoint), tmp_path / "test.parquet", max_new_tokens=4, temperature=1.0, batch_size=1)
    whole, half = tmp_path / "whole", tmp_path / "half"
    whole.mkdir()
    half.mkdir()
    stage.run(whole)
    lines = (whole / "answers.jsonl").read_bytes().splitlines(keepends=True)
    # Killed in the middle of the fourth line; the first is marked to show that it is not asked again.
    first = lines[0].replace(b'"split": "test"', b'"split": "kept"')
    (half / "answers.jsonl").write_bytes(first + lines[1] + lines[2] + lines[3][:20])
    stage.run(half)
    assert (half / "answers.jsonl").read_bytes() == b"".join([first, *lines[1:]])


def test_an_empty_test_is_refused(tmp_path, checkpoint):
    (tmp_path / "test.jsonl").write_text("")
    with pytest.raises(ChatwrightError, match=r"test\.jsonl"):
        Evaluate(str(checkpoint), tmp_path / "test.jsonl").run(tmp_path)


@pytest.mark.parametrize("plain", [False, True])
def test_shots_are_earlier_turns_and_plain_text_is_lines(tmp_path, checkpoint, conversations, plain):
    """Against the engine, asked the same with the turns written out."""
    shown = tmp_path / "shown.parquet"
    turns = [Message.of(role, text) for role, text in zip(("user", "assistant") * 2, "abcd", strict=True)]
    save([Demonstration(tuple(turns), {})] * 3, shown)
    prompts = prompts_of(conversations[:1])
    save(prompts, tmp_path / "prompts.parquet")
    stage = Evaluate(
        str(checkpoint), tmp_path / "prompts.parquet", max_new_tokens=8, plain=plain, shots=2, demonstrations=shown
    )
    stage.run(tmp_path)
    (row,) = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    renderer = Renderer.load(checkpoint)
    question = prompts[0].messages[0].text
    chat = "<|user|>a<|end|><|assistant|>b<|end|>" * 2 + f"<|user|>{question}<|end|><|assistant|>"
    text = f"a b\na b\n{question}" if plain else chat
    ids = renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
    engine = Engine(load_model(checkpoint), renderer)
    ((completion,),) = engine.generate([Rendered(ids, [False] * len(ids))], Sampling(max_new_tokens=8, temperature=0))
    expected = renderer.text(completion.tokens).split("\n")[0] if plain else completion.text
    assert row["answer"] == expected.strip() and row["question"] == question


def test_shots_without_demonstrations_are_refused(tmp_path, checkpoint, conversations):
    save(prompts_of(conversations), tmp_path / "prompts.parquet")
    stage = Evaluate(str(checkpoint), tmp_path / "prompts.parquet", shots=2)
    with pytest.raises(ChatwrightError, match="shots=2"):
        stage.run(tmp_path)
    save([Demonstration((Message.of("user", "a"), Message.of("assistant", "b")), {})], tmp_path / "one.parquet")
    stage.demonstrations = tmp_path / "one.parquet"
    with pytest.raises(ChatwrightError, match="too few for 2 shots"):
        stage.run(tmp_path)
