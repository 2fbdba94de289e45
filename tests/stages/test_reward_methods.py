"""The reward stage with every method, on text and on pictures, as a user runs it."""

import dataclasses
import json

import numpy as np
import PIL.Image
import pytest
from tests.stages.test_feedback_stages import assert_resumes

from chatwright.data.records import Comparison, Demonstration, Message, Prompt
from chatwright.data.store import load, save
from chatwright.errors import ChatwrightError
from chatwright.models.heads import ProcessRewardModel, RewardModel, score_all
from chatwright.stages.base import execute
from chatwright.stages.reward import Reward
from chatwright.training.loop import Training

QUESTIONS = [f"Is {a} {b}?" for a in ("a dog", "it", "this") for b in ("red", "one", "green", "many")]


@pytest.fixture(params=["text", "image"])
def asked(request):
    """Thirty prompts; of the pictures one half is bright, the other dark."""
    if request.param == "text":
        return [(Message.of("user", f"{question} {i}"),) for i in range(3) for question in QUESTIONS][:30]
    random = np.random.default_rng(0)
    pixels = [random.integers(100 * (i % 2), 100 * (i % 2) + 100, (32, 32, 3), dtype=np.uint8) for i in range(30)]
    return [(Message.of("user", "Is it?", PIL.Image.fromarray(one)),) for one in pixels]


@pytest.fixture
def rated(tmp_path, asked):
    """Comparisons of three answers, good, so-so and bad in turning order, with ratings from 1 to 7."""

    def write(name, chosen):
        worth = {"yes": (0, 7), "dog": (1, 4), "no": (2, 1)}
        records = []
        for i, messages in enumerate(chosen):
            order = [list(worth)[(i + place) % 3] for place in range(3)]
            ranks, ratings = zip(*(worth[answer] for answer in order), strict=True)
            meta = {"ratings": list(ratings)}
            records.append(Comparison(messages, tuple(order), ranks, "p", "ranking", meta))
        save(records, tmp_path / name)
        return tmp_path / name

    return write("taught.parquet", asked[:22]), write("fresh.parquet", asked[22:])


@pytest.fixture
def judged_steps(tmp_path, asked):
    """Answers of one to three steps; "no" is always wrong."""
    random = np.random.default_rng(1)

    def write(name, chosen):
        records = []
        for i, messages in enumerate(chosen):
            said = [("yes", "no", "dog")[random.integers(3)] for _ in range(1 + i % 3)]
            answer = Message.of("assistant", "\n".join(said))
            records.append(Demonstration((*messages, answer), {"steps": [-1 if one == "no" else 1 for one in said]}))
        save(records, tmp_path / name)
        return tmp_path / name

    return write("steps.jsonl", asked[:22]), write("fresh_steps.jsonl", asked[22:])


def stage(checkpoint, files, method, **settings):
    training = Training(learning_rate=3e-3, precision="fp32", log_every=1)
    return Reward(str(checkpoint), *files, method=method, batch_size=4, epochs=8, training=training, **settings)


def scores_of(out):
    return json.loads((out / "scores.json").read_text())


@pytest.mark.parametrize("method", ["margin", "likert"])
def test_ratings_teach_who_is_better(checkpoint, rated, renderer, tmp_path, method):
    out = tmp_path / "reward"
    execute(stage(checkpoint, rated, method), out)
    scores = scores_of(out)
    assert scores["n"] == 24 and scores["accuracy"] > 0.9 and scores["low"] <= scores["accuracy"] <= scores["high"]
    model = RewardModel.load(out)
    assert type(model) is RewardModel
    fresh = load(rated[1], Comparison)
    prompt = renderer.prompt(fresh[0].messages)
    rows = [renderer.answered(prompt, renderer.answer(answer)) for answer in ("yes", "dog", "no")]
    said = score_all(model, renderer, rows)
    assert said[0] > said[1] > said[2]
    if method == "likert":
        # The scores of the stage's own test, turned back, are near the ratings.
        ratings = scores["rating_at_zero"] + scores["rating_per_score"] * said
        assert ratings.tolist() == pytest.approx([7, 4, 1], abs=1.5)
        assert scores["rating_error"] < 1 < scores["rating_error_of_mean"] == pytest.approx(2, abs=0.01)
        assert scores["rating_per_score"] == pytest.approx(6**0.5, rel=1e-3)
        first = [
            renderer.answered(renderer.prompt(c.messages), renderer.answer("yes")) for c in load(rated[0], Comparison)
        ]
        assert score_all(model, renderer, first).mean() == pytest.approx(0, abs=1e-4)


def test_a_wider_margin_sets_scores_further_apart(checkpoint, rated, renderer, tmp_path):
    apart = []
    for scale in (0.0, 2.0):
        out = tmp_path / str(scale)
        execute(stage(checkpoint, rated, "margin", options={"scale": scale}), out)
        prompt = renderer.prompt(load(rated[1], Comparison)[0].messages)
        rows = [renderer.answered(prompt, renderer.answer(answer)) for answer in ("yes", "no")]
        better, worse = score_all(RewardModel.load(out), renderer, rows).tolist()
        apart.append(better - worse)
    assert apart[1] > apart[0] + 1


def test_steps_teach_which_step_is_wrong(checkpoint, judged_steps, renderer, tmp_path):
    out = tmp_path / "reward"
    execute(stage(checkpoint, judged_steps, "process"), out)
    scores = scores_of(out)
    fresh = load(judged_steps[1], Prompt)
    labels = [label for prompt in fresh for label in prompt.meta["steps"]]
    assert scores["n"] == len(labels) and scores["chance"] == labels.count(1) / len(labels)
    assert scores["accuracy"] > 0.9 > scores["chance"]
    assert scores["low"] <= scores["accuracy"] <= scores["high"]
    model = RewardModel.load(out)
    assert isinstance(model, ProcessRewardModel)
    prompt = renderer.prompt(fresh[0].messages)
    rows = [renderer.answered(prompt, renderer.answer(text)) for text in ("yes\ndog\nyes", "yes\nno\nyes")]
    right, wrong = score_all(model, renderer, rows).tolist()
    assert 0 <= wrong < 0.5 < right <= 1
    examples = [json.loads(line) for line in (out / "examples.jsonl").read_text().splitlines()]
    assert all(fresh[example["row"]].reference == example["response"] for example in examples)
    worst = next(example for example in examples if example["end"] == "worst")
    assert "no" not in examples[0]["response"] and "no" in worst["response"]


def test_process_goes_on_where_it_was(checkpoint, judged_steps, tmp_path, monkeypatch):
    assert_resumes(stage(checkpoint, judged_steps, "process", micro_batch=2), tmp_path, monkeypatch, after=5)


def test_the_stage_refuses_what_cannot_work(checkpoint, tmp_path):
    ask = (Message.of("user", "?"),)
    files = tmp_path / "taught.jsonl", tmp_path / "taught.jsonl"
    save([Comparison(ask, ("a", "b"), (0, 1), "p", "pair")], files[0])
    with pytest.raises(ChatwrightError, match="bradley_terry, margin, likert, process"):
        stage(checkpoint, files, "regression").run(tmp_path / "out")
    for method in ("margin", "likert"):
        with pytest.raises(ChatwrightError, match=rf"taught\.jsonl: no comparison has ratings, which {method}"):
            stage(checkpoint, files, method).run(tmp_path / "out")
    with pytest.raises(ChatwrightError, match=r"taught\.jsonl:1: meta\.steps: there is no answer"):
        stage(checkpoint, files, "process").run(tmp_path / "out")
    answer = Message.of("assistant", "a\nb")
    save([Demonstration((*ask, answer), {"steps": [1, 0]})], files[0])
    with pytest.raises(ChatwrightError, match="label right ones 1, wrong ones -1"):
        stage(checkpoint, files, "process").run(tmp_path / "out")
    save([Demonstration((*ask, answer), {"steps": [1, -1]})], files[0])
    with pytest.raises(ChatwrightError, match="nothing to test on within max_length=50"):
        save([Demonstration((*ask, Message.of("assistant", "a\n" * 40)), {"steps": [1] * 40})], tmp_path / "long.jsonl")
        longer = dataclasses.replace(
            stage(checkpoint, files, "process", max_length=50), heldout=tmp_path / "long.jsonl"
        )
        longer.run(tmp_path / "out")
    save([Comparison(ask, ("a", "b"), (0, 1), "p", "pair", {"ratings": [3, 3]})], files[0])
    with pytest.raises(ChatwrightError, match="all 2 ratings are 3"):
        stage(checkpoint, files, "likert").run(tmp_path / "out")
