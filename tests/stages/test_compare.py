"""compare as a user runs it, on tiny real models."""

import json

import pytest
import torch

from chatwright.data.records import Demonstration, Message, Prompt, answered
from chatwright.data.render import Renderer
from chatwright.data.store import load, save
from chatwright.errors import ChatwrightError
from chatwright.evaluation.findings import Findings
from chatwright.models.heads import RewardModel, score_all
from chatwright.models.load import load_model
from chatwright.stages.base import execute
from chatwright.stages.bestofn import BestOfN
from chatwright.stages.compare import Compare


@pytest.fixture
def prompts(tmp_path, conversations):
    """Twenty; some have pictures, some end with the beginning of the answer."""
    asked = [Prompt(tuple(turns)) for turns in conversations]
    asked += [Prompt((Message.of("user", f"How many {i}?"),)) for i in range(10)]
    asked += [Prompt((Message.of("user", "Write."), Message.of("assistant", f"A {i}"))) for i in "abcde"]
    save(asked, tmp_path / "prompts.parquet")
    return tmp_path / "prompts.parquet"


@pytest.fixture
def other(assistant, renderer, tmp_path, checkpoint):
    """A model that differs a bit from the checkpoint, which is saved already."""
    with torch.no_grad():
        for weight in assistant.model.language_model.layers[0].parameters():
            weight.mul_(1.05)
    assistant.save_pretrained(tmp_path / "other")
    renderer.save(tmp_path / "other")
    return tmp_path / "other"


@pytest.fixture
def shortness(tmp_path):
    script = tmp_path / "short.py"
    script.write_text("def shortness(prompt, text):\n    return -len(text)\n")
    return f"{script}:shortness"


def compare(arms, prompts, judge, **settings):
    arms = {name: str(arm) for name, arm in arms.items()}
    return Compare(arms, prompts, "sft", judge, max_new_tokens=6, chunk=8, **settings)


def lines_of(out):
    return [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]


def test_the_best_of_n_is_preferred_and_a_model_ties_with_itself(checkpoint, prompts, shortness, tmp_path):
    best = BestOfN(str(checkpoint), prompts, "", shortness, n=8, max_new_tokens=6)
    execute(best, tmp_path / "best")
    arms = {"sft": checkpoint, "same": checkpoint, "best": tmp_path / "best" / "demonstrations.parquet"}
    execute(compare(arms, prompts, shortness), tmp_path / "out")
    found = Findings.load(tmp_path / "out")
    numbers = found.numbers
    assert numbers["same"]["score"] == 0.5 and numbers["same"]["ties"] == numbers["same"]["n"] == 20
    assert numbers["same"]["kl"] == pytest.approx(0, abs=1e-4)
    kept = load(tmp_path / "best" / "demonstrations.parquet", Demonstration)
    assert 0 < numbers["best"]["n"] == len(kept) <= 20 and numbers["best"]["score"] > 0.7
    assert numbers["best"]["low"] < numbers["best"]["score"] and numbers["best"]["kl"] > 0
    assert numbers["best"]["mean_score"]["score"] == pytest.approx(-numbers["best"]["characters"])
    texts = {one["row"]: one["answer"] for one in lines_of(tmp_path / "out") if one["arm"] == "best"}
    assert {answered(load(prompts, Prompt)[row].messages, text) for row, text in texts.items()} == {
        one.messages for one in kept
    }
    assert [len(row) for row in found.tables[1].rows] == [4] * len(found.tables[1].rows)
    assert found.charts[0].series[1].y == [numbers["best"]["score"]]


def test_a_reward_model_reads_the_whole_turn(checkpoint, other, prompts, assistant, renderer, tmp_path):
    torch.manual_seed(3)
    RewardModel(assistant).save(tmp_path / "judge")
    renderer.save(tmp_path / "judge")
    execute(compare({"sft": checkpoint, "other": other}, prompts, str(tmp_path / "judge")), tmp_path / "out")
    asked, judge = load(prompts, Prompt), RewardModel.load(tmp_path / "judge")
    for one in lines_of(tmp_path / "out")[::7]:
        turns = answered(asked[one["row"]].messages, one["answer"])
        row = renderer.demonstration(turns)
        if not one["finished"]:
            row.input_ids, row.loss_mask = row.input_ids[:-1], row.loss_mask[:-1]
        assert score_all(judge, renderer, [row])[0] == pytest.approx(one["score"], abs=1e-4)


def test_kl_is_that_of_the_distributions(checkpoint, other, prompts, shortness, tmp_path):
    """Of one token, the mean log-ratio of many samples is the sum over the vocabulary."""
    one = load(prompts, Prompt)[5]
    save([one] * 400, tmp_path / "same.parquet")
    stage = compare({"sft": checkpoint, "other": other}, tmp_path / "same.parquet", shortness)
    stage.max_new_tokens, stage.chunk = 1, 400
    execute(stage, tmp_path / "out")
    renderer = Renderer.load(checkpoint)
    row = renderer.collate([renderer.prompt(one.messages)])
    inputs = {name: row[name] for name in ("input_ids", "attention_mask", "position_ids")}
    with torch.no_grad():
        p, q = (load_model(name)(**inputs).logits[0, -1].float() for name in (other, checkpoint))
    for logits in (p, q):
        logits[sorted(renderer.unsaid)] = float("-inf")
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    said = p.exp() > 0
    exact = float((p.exp() * (p - q))[said].sum())
    spread = float((p.exp() * (p - q - exact) ** 2)[said].sum() ** 0.5)
    assert exact > 0.01
    assert Findings.load(tmp_path / "out").numbers["other"]["kl"] == pytest.approx(exact, abs=4 * spread / 20)


def test_compare_says_what_is_missing(checkpoint, prompts, shortness, tmp_path):
    with pytest.raises(ChatwrightError, match="two arms or more"):
        compare({"sft": checkpoint}, prompts, shortness).run(tmp_path / "out")
    save([Demonstration((Message.of("user", "?"), Message.of("assistant", "!")))], tmp_path / "strange.parquet")
    arms = {"sft": checkpoint, "strange": tmp_path / "strange.parquet"}
    with pytest.raises(ChatwrightError, match=r"strange.parquet: answers none of the prompts"):
        compare(arms, prompts, shortness).run(tmp_path / "out")
