"""annotate, reward and rl as a user runs them, on tiny real models."""

import json
import math
import os
import signal

import pytest
import torch
import yaml

from chatwright.data.records import Comparison, Demonstration, Document, Message, Part, Prompt
from chatwright.data.store import load, save
from chatwright.errors import ChatwrightError
from chatwright.models.adapters import Adapter
from chatwright.models.heads import RewardModel, score_all
from chatwright.models.load import load_model
from chatwright.objectives.feedback.methods import OFFLINE
from chatwright.stages.annotate import Annotate
from chatwright.stages.base import execute
from chatwright.stages.bestofn import BestOfN
from chatwright.stages.prefer import Prefer
from chatwright.stages.reward import Reward
from chatwright.stages.rl import RL
from chatwright.training.loop import Training
from chatwright.training.progress import Bar

COLOURS = ["red", "green", "blue", "white", "black", "pink"]


@pytest.fixture
def prompts(tmp_path, conversations):
    """Forty, with references; some have pictures."""
    path = tmp_path / "prompts.parquet"
    texts = [f"How many {a} and {b}?" for a in COLOURS for b in COLOURS]
    records = [Prompt((Message.of("user", text),), text[-6:]) for text in texts]
    save([*records, *(Prompt(tuple(turns), "a dog") for turns in conversations)], path)
    return path


@pytest.fixture
def judge(assistant, renderer, tmp_path):
    """A reward model that learned nothing."""
    torch.manual_seed(3)
    folder = tmp_path / "judge"
    RewardModel(assistant).save(folder)
    renderer.save(folder)
    return folder


def files(folder):
    """Everything that a stage wrote but how long it took."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("DONE", "card.md")
    }


def interrupt(monkeypatch, after):
    """Press Ctrl-C at the ``after``-th sign of progress from now."""
    advance, seen = Bar.advance, []

    def advance_and_interrupt(bar, steps=1, **values):
        advance(bar, steps, **values)
        seen.append(steps)
        if len(seen) == after:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Bar, "advance", advance_and_interrupt)


def assert_resumes(stage, tmp_path, monkeypatch, after):
    execute(stage, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        with pytest.raises(KeyboardInterrupt):
            execute(stage, tmp_path / "cut")
    assert not (tmp_path / "cut" / "DONE").exists()
    execute(stage, tmp_path / "cut")
    whole, cut = files(tmp_path / "whole"), files(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert [name for name in whole if whole[name] != cut[name]] == []


# ---- annotate


def annotate(checkpoint, prompts, **settings):
    return Annotate(str(checkpoint), prompts, max_new_tokens=6, heldout=0.4, chunk=8, **settings)


def test_annotators_rank_different_responses_and_agree_as_asked(checkpoint, tmp_path):
    out, prompts = tmp_path / "annotate", tmp_path / "many.parquet"
    texts = [f"{a} {b} {c}" for a in COLOURS for b in COLOURS for c in COLOURS]
    save([Prompt((Message.of("user", text),), text[::-1]) for text in texts], prompts)
    execute(annotate(checkpoint, prompts), out)
    taught, fresh = load(out / "comparisons.parquet", Comparison), load(out / "comparisons_heldout.parquet", Comparison)
    assert all(len(set(c.responses)) == len(c.responses) >= 2 for c in taught)
    assert {c.annotator for c in taught} == {f"simulated-{i}" for i in range(1, 6)}
    assert not {c.messages for c in taught} & {c.messages for c in fresh}
    assert all(
        len({c.annotator for c in taught if c.messages == prompt}) == 3 for prompt in {c.messages for c in taught}
    )
    report = json.loads((out / "agreement.json").read_text())
    assert report["comparisons"] == len(taught) and report["comparisons_heldout"] == len(fresh) == 5 * 86
    assert report["n"] > 3000
    assert report["agreement"] == pytest.approx(0.73, abs=0.03)
    assert 0.73 < report["ceiling"] < 0.9


def test_a_gold_reward_model_plays_the_annotators(checkpoint, judge, renderer, tmp_path):
    """Whatever their prompts lack: annotators who never err rank as the reward model does."""
    out, bare = tmp_path / "annotate", tmp_path / "bare.jsonl"
    save([Prompt((Message.of("user", f"How many {colour}?"),)) for colour in COLOURS], bare)
    execute(annotate(checkpoint, bare, judge=str(judge), agreement=1, judges=1), out)
    gold = RewardModel.load(judge)
    for comparison in load(out / "comparisons.parquet", Comparison):
        asked = renderer.prompt(comparison.messages)
        ends = comparison.meta["finished"]
        said = [renderer.answer(text, end) for text, end in zip(comparison.responses, ends, strict=True)]
        scores = score_all(gold, renderer, [renderer.answered(asked, tokens) for tokens in said])
        assert comparison.ranks == tuple(scores.argsort(descending=True).argsort().tolist())
    report = json.loads((out / "agreement.json").read_text())
    assert report["agreement"] == report["ceiling"] == 1 and report["noise"] == 0


def test_annotate_says_what_it_cannot_judge(checkpoint, tmp_path):
    bare = tmp_path / "bare.jsonl"
    save([Prompt((Message.of("user", f"How many {colour}?"),)) for colour in COLOURS], bare)
    with pytest.raises(ChatwrightError, match="reference"):
        annotate(checkpoint, bare).run(tmp_path / "out")
    with pytest.raises(ChatwrightError, match="at least 2"):
        annotate(checkpoint, bare, responses=1).run(tmp_path / "out")


# ---- reward


def preferences(path, texts, good="yes", bad="no"):
    """People prefer yes to no; half of them are shown no first."""
    save(
        [
            Comparison(
                (Message.of("user", text),),
                (good, bad)[:: 1 if i % 2 else -1],
                (0, 1)[:: 1 if i % 2 else -1],
                "p",
                "pair",
            )
            for i, text in enumerate(texts)
        ],
        path,
    )
    return path


@pytest.fixture
def reward_stage(checkpoint, tmp_path):
    texts = [f"Is it {a}, not {b}?" for a in COLOURS for b in COLOURS]
    answers = tmp_path / "answers.parquet"
    save([Demonstration((Message.of("user", t), Message.of("assistant", "yes"))) for t in texts[:10]], answers)
    return Reward(
        str(checkpoint),
        preferences(tmp_path / "taught.parquet", texts[:28]),
        preferences(tmp_path / "fresh.parquet", texts[28:]),
        answers,
        batch_size=4,
        epochs=3,
        training=Training(learning_rate=3e-3, precision="fp32", log_every=1),
    )


def test_a_reward_model_learns_an_obvious_preference(reward_stage, renderer, tmp_path):
    out = tmp_path / "reward"
    execute(reward_stage, out)
    scores = json.loads((out / "scores.json").read_text())
    assert scores["accuracy"] == 1 and scores["n"] == 8 and scores["low"] == scores["high"] == 1
    assert scores["agreement_ceiling"] is None  # nobody judged twice
    model = RewardModel.load(out)
    demonstrations = load(reward_stage.demonstrations, Prompt)
    rows = [renderer.answered(renderer.prompt(d.messages), renderer.answer("yes")) for d in demonstrations]
    assert score_all(model, renderer, rows).mean() == pytest.approx(0, abs=1e-4)
    examples = [json.loads(line) for line in (out / "examples.jsonl").read_text().splitlines()]
    assert {e["response"] for e in examples if e["end"] == "best"} == {"yes", "no"}  # 8 of each, 10 shown
    assert examples[0]["response"] == "yes" and examples[0]["score"] > examples[-1]["score"]
    load_model(out)  # the checkpoint opens as a plain model too


def test_a_reward_model_can_learn_from_the_first_prompts_alone(reward_stage, tmp_path):
    reward_stage.limit = 8
    execute(reward_stage, tmp_path / "out")
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3 * 8 / 4  # epochs, prompts, prompts in a step


def test_comparisons_of_only_ties_are_refused(reward_stage, tmp_path):
    save([Comparison((Message.of("user", "?"),), ("a", "b"), (0, 0), "p", "pair")], reward_stage.comparisons)
    with pytest.raises(ChatwrightError, match="prefers"):
        reward_stage.run(tmp_path / "out")


# ---- rl


def rl(checkpoint, judge, prompts, **settings):
    return RL(
        str(checkpoint),
        prompts,
        judge if isinstance(judge, list) else str(judge),
        iterations=3,
        rollouts=16,
        minibatches=2,
        epochs=2,
        max_new_tokens=6,
        training=Training(learning_rate=1e-3, precision="fp32", decay="constant", log_every=1),
        **settings,
    )


@pytest.mark.parametrize("mixed", [False, True])
def test_rl_goes_on_in_the_middle_of_a_round(checkpoint, judge, prompts, tmp_path, monkeypatch, mixed):
    documents = tmp_path / "documents.parquet"
    save([Document((Part.of_text(f"one {colour} dog"),)) for colour in COLOURS], documents)
    mix = {"pretraining": documents, "pretraining_batch": 4} if mixed else {}
    assert_resumes(rl(checkpoint, judge, prompts, micro_batch=4, **mix), tmp_path, monkeypatch, after=6)
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert all(line["fresh_log_ratio"] < 1e-5 for line in lines)
    assert any(abs(line["kl_from_rollout"]) > 1e-5 for line in lines)
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-4) and lines[-1]["kl_k3"] > 1e-4
    assert ("pretraining_loss" in lines[0]) == mixed


def test_rl_refuses_what_cannot_work(checkpoint, judge, prompts, tmp_path):
    with pytest.raises(ChatwrightError, match="reward model"):
        rl(checkpoint, checkpoint, prompts).run(tmp_path / "out")
    with pytest.raises(ChatwrightError, match="temperature"):
        rl(checkpoint, judge, prompts, temperature=0).run(tmp_path / "out")
    stage = rl(checkpoint, judge, prompts)
    stage.minibatches = 3
    with pytest.raises(ChatwrightError, match="minibatches"):
        stage.run(tmp_path / "out")


def shortness(prompt, text):
    """A verifier as users write it."""
    return -float(len(text))


def test_a_verifier_is_paid_for_beside_the_reward_model(checkpoint, judge, prompts, tmp_path):
    script = tmp_path / "mine.py"
    script.write_text("def shortness(prompt, text):\n    return -len(text)\n")
    stage = rl(checkpoint, judge, prompts, verifier=f"{script}:shortness", gold=f"{__name__}:shortness", responses=2)
    execute(stage, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert yaml.safe_load((tmp_path / "out" / "settings.yaml").read_text())["inputs"][
        "verifier"
    ]  # edited, it runs again
    for line in lines:
        assert line["verifier"] == line["gold"] < 0
        assert line["score"] == pytest.approx(line["reward_model"] + line["verifier"] - line["unfinished"], abs=1e-4)
        assert "explained_variance" in line


def test_the_lowest_of_several_reward_models_counts(checkpoint, assistant, renderer, judge, prompts, tmp_path):
    torch.manual_seed(4)
    folder = tmp_path / "other"
    RewardModel(assistant).save(folder)
    renderer.save(folder)
    scores = {}
    for name, reward in {"one": str(judge), "other": str(folder), "both": [str(judge), str(folder)]}.items():
        stage = rl(checkpoint, reward, prompts, method="reinforce_pp")
        stage.iterations = stage.epochs = 1
        execute(stage, tmp_path / "rl" / name)
        lines = (tmp_path / "rl" / name / "metrics.jsonl").read_text().splitlines()
        scores[name] = json.loads(lines[0])["reward_model"]
    assert scores["both"] < min(scores["one"], scores["other"]) + 1e-6
    assert "inputs" in (tmp_path / "rl" / "both" / "settings.yaml").read_text()
    assert "reward.1" in (tmp_path / "rl" / "both" / "settings.yaml").read_text()


def test_rl_ends_when_gold_no_longer_rises(checkpoint, judge, prompts, tmp_path):
    script = tmp_path / "gold.py"
    script.write_text("calls = []\ndef falling(prompt, text):\n    calls.append(text)\n    return -len(calls)\n")
    stage = rl(checkpoint, judge, prompts, gold=f"{script}:falling", patience=1)
    execute(stage, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 4  # one round of two epochs of two minibatches; three were allowed
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()


def test_dapo_asks_other_prompts_where_all_responses_are_worth_the_same(checkpoint, prompts, tmp_path):
    script = tmp_path / "mostly.py"
    script.write_text("def one(prompt, text):\n    return float(len(prompt.messages[0].text) % 2 and len(text) % 2)\n")
    equal = {}
    for method in ("dapo", "grpo"):
        stage = rl(checkpoint, "", prompts, method=method, verifier=f"{script}:one", responses=4, unfinished_penalty=0)
        execute(stage, tmp_path / method)
        lines = [json.loads(line) for line in (tmp_path / method / "metrics.jsonl").read_text().splitlines()]
        equal[method] = sum(line["equal_scores"] for line in lines) / len(lines)
    assert equal["dapo"] < 0.5 * equal["grpo"]


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_an_adapter_is_kept_near_to_its_own_base(checkpoint, judge, prompts, tmp_path, method):
    stage = rl(checkpoint, judge, prompts, method=method, adapter=Adapter("lora", dropout=0.0))
    stage.training.learning_rate = 1e-2
    execute(stage, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["kl_k3"] == pytest.approx(0, abs=1e-4) and lines[-1]["kl_k3"] > 1e-3
    assert all(line["fresh_log_ratio"] < 1e-5 for line in lines)
    base, learned = load_model(checkpoint), load_model(tmp_path / "out")
    changed = {name for name, p in base.named_parameters() if not torch.equal(p, learned.get_parameter(name))}
    assert changed and all("layers" in name and name.endswith("proj.weight") for name in changed)
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").exists()


def test_a_prompt_is_learned_by_reinforcement_and_judged_with(checkpoint, prompts, tmp_path):
    """A policy that learns nothing but its soft prompt; its reward model is fitted on what it says, prompt and all."""
    script = tmp_path / "length.py"
    script.write_text("def short(prompt, text):\n    return -len(text) / 10\n")
    adapter = Adapter("prompt", tokens=4)
    stage = rl(checkpoint, "", prompts, method="rloo", verifier=f"{script}:short", responses=4, adapter=adapter)
    stage.training.learning_rate = 1e-2
    execute(stage, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["fresh_log_ratio"] < 1e-5 for line in lines) and lines[-1]["kl_k3"] != lines[0]["kl_k3"]
    comparisons = tmp_path / "comparisons.parquet"
    said = [Comparison(prompt.messages, ("yes", "no"), (0, 1), "p", "pair") for prompt in load(prompts, Prompt)]
    save(said, comparisons)
    execute(Reward(str(tmp_path / "out"), comparisons, comparisons, batch_size=8), tmp_path / "reward")
    again = rl(tmp_path / "out", tmp_path / "reward", prompts, method="rloo", responses=4)
    execute(again, tmp_path / "again")
    assert (tmp_path / "again" / "DONE").exists()


def test_rl_says_what_is_missing(checkpoint, judge, prompts, tmp_path):
    for match, settings in {
        "ppoo.*ppo, grpo": {"method": "ppoo"},
        "responses=2 or more": {"method": "grpo", "responses": 1},
        "micro_batch=6 would split": {"method": "grpo", "responses": 4, "micro_batch": 6},
        "no function nothing": {"verifier": "chatwright.data.truth:nothing"},
        "file.py:function": {"verifier": str(tmp_path / "missing.py:score")},
        "no option 'beta'": {"options": {"beta": 0.1}},
        "name a judge as gold": {"patience": 2},
    }.items():
        with pytest.raises(ChatwrightError, match=match):
            rl(checkpoint, judge, prompts, **settings).run(tmp_path / "out")
    with pytest.raises(ChatwrightError, match="reward model or a verifier"):
        rl(checkpoint, "", prompts).run(tmp_path / "out")


# ---- prefer


def prefer(checkpoint, tmp_path, **settings):
    texts = [f"Is it {a}, not {b}?" for a in COLOURS for b in COLOURS]
    return Prefer(
        str(checkpoint),
        preferences(tmp_path / "taught.parquet", texts[:28]),
        preferences(tmp_path / "fresh.parquet", texts[28:]),
        batch_size=4,
        epochs=4,
        training=Training(learning_rate=3e-3, precision="fp32", log_every=1),
        **settings,
    )


@pytest.mark.parametrize("method", OFFLINE)
def test_preferences_are_learned_without_a_reward_model(checkpoint, renderer, tmp_path, method):
    execute(prefer(checkpoint, tmp_path, method=method), tmp_path / "out")
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["accuracy"] == 1 and scores["n"] == (16 if method == "kto" else 8)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    if OFFLINE[method].has_reference:  # the policy begins as its reference
        assert lines[0]["reward_better"] == pytest.approx(0, abs=1e-5)
    load_model(tmp_path / "out")


@pytest.mark.parametrize("adapter", ["lora", "prompt"])
def test_an_adapter_learns_preferences_beside_its_own_base(checkpoint, tmp_path, adapter):
    stage = prefer(checkpoint, tmp_path, adapter=Adapter(adapter, tokens=4))
    stage.training.learning_rate = 3e-2
    execute(stage, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    first = lines[0]["reward_better"]  # a prompt differs from its base from the start, low rank does not
    assert abs(first) > 1e-3 if adapter == "prompt" else first == pytest.approx(0, abs=1e-5)
    assert lines[-1]["accuracy"] > 0.9 and lines[-1]["margin"] > lines[0]["margin"]
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").exists()
    load_model(tmp_path / "out")


def test_prefer_reads_pictures_and_goes_on_where_it_was(checkpoint, conversations, tmp_path, monkeypatch):
    path = tmp_path / "pictures.parquet"
    save([Comparison(tuple(turns), ("a dog", "no", "two"), (0, 2, 1), "p", "ranking") for turns in conversations], path)
    stage = prefer(checkpoint, tmp_path, method="kto")
    stage.comparisons, stage.heldout, stage.micro_batch = path, None, 2
    assert_resumes(stage, tmp_path, monkeypatch, after=3)


def test_single_responses_with_a_label_are_for_kto(checkpoint, tmp_path):
    path = tmp_path / "labels.jsonl"
    rows = [{"prompt": f"Is it {c}?", "completion": a, "label": a == "yes"} for c in COLOURS for a in ("yes", "no")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = prefer(checkpoint, tmp_path, method="kto")
    stage.comparisons, stage.heldout = path, path
    execute(stage, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == {"accuracy": 1, "n": 12, "chance": 0.5}
    stage.method = "dpo"
    with pytest.raises(ChatwrightError, match=r"labels.jsonl.*use method kto"):
        stage.run(tmp_path / "out2")


# ---- best of n


def test_the_best_of_n_is_kept_and_can_be_learned(checkpoint, prompts, tmp_path, monkeypatch):
    script = tmp_path / "short.py"
    script.write_text("def shortness(prompt, text):\n    return -len(text)\n")
    script.write_text(script.read_text() + "def length(prompt, text):\n    return len(text)\n")
    judges = {"verifier": f"{script}:shortness", "gold": f"{script}:length"}
    stage = BestOfN(str(checkpoint), prompts, **judges, n=4, max_new_tokens=6, chunk=8)
    assert_resumes(stage, tmp_path, monkeypatch, after=2)
    scores = json.loads((tmp_path / "cut" / "scores.json").read_text())
    best = list(scores["best_of"].values())
    assert len(best) == 4 and best == sorted(best) and best[0] < best[3]
    assert list(scores["gold"].values()) == [-score for score in best]
    assert scores["deviation"]["gold"] == pytest.approx(scores["deviation"]["score"]) != 0
    assert list(scores["kl"]) == ["1", "2", "3", "4"] and scores["kl"]["1"] == pytest.approx(0, abs=1e-9)
    assert all(0 < scores["kl"][str(k)] <= math.log(k) - (k - 1) / k + 1e-6 for k in (2, 3, 4))
    kept = load(tmp_path / "cut" / "demonstrations.parquet", Demonstration)
    assert 0 < len(kept) == scores["kept"] <= scores["prompts"] == 41
    assert all(len(row.messages[-1].text) == -row.meta["score"] for row in kept)
    assert {row.messages[:-1] for row in kept} <= {prompt.messages for prompt in load(prompts, Prompt)}


def test_best_of_n_says_what_is_missing(checkpoint, judge, prompts, tmp_path):
    for match, settings in {
        "reward model or a verifier": {},
        "n=1": {"reward": str(judge), "n": 1},
        "least=1000": {"reward": str(judge), "least": 1000.0, "limit": 3, "max_new_tokens": 3},
    }.items():
        with pytest.raises(ChatwrightError, match=match):
            execute(BestOfN(str(checkpoint), prompts, **settings), tmp_path / "out")
