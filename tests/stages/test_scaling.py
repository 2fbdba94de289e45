"""Preference over size as a recipe measures it, on tiny real models and on answers whose worth is known."""

import json
import random

import pytest

from chatwright.data import instruct, scenes
from chatwright.data.questions import ask, ask_word
from chatwright.data.records import Prompt
from chatwright.data.store import load, save
from chatwright.errors import ChatwrightError
from chatwright.evaluation import metrics
from chatwright.evaluation.findings import Findings
from chatwright.models import build
from chatwright.models.load import load_model
from chatwright.stages.base import execute
from chatwright.stages.evaluate import Evaluate
from chatwright.stages.scaling import Scaling

POOL = [concept for concept in scenes.trained() if concept.category == "animal"]


@pytest.fixture(scope="session")
def questions(tmp_path_factory):
    """Twelve questions about described scenes, and two that are answered by choice."""
    rng = random.Random(0)
    records = []
    for _ in range(12):
        scene = scenes.compose(rng, POOL, "single")
        question = ask("naming", scene, rng, "en", POOL)
        records.append(instruct.as_prompt(question, "test", scene, instruct.described))
    for word in (("dog", "狗"), ("cat", "猫")):
        asked = instruct.as_prompt(ask_word(*word, rng, "en"), "test")
        records.append(Prompt(asked.messages, asked.reference, (asked.reference, "apple"), "choice", asked.meta))
    path = tmp_path_factory.mktemp("questions") / "heldout.parquet"
    save(records, path)
    return path


@pytest.fixture
def models(tokenizer, tmp_path):
    """Two text models, the second larger."""
    folders = []
    for width in (16, 32):
        folder = tmp_path / f"model_{width}"
        build.decoder(tokenizer, width, 1, 2, 128).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders.append(folder)
    return folders


def evaluated(model, questions, out, say=None):
    """An evaluate stage's folder; where ``say`` makes an answer of a prompt, that is put in place of the model's."""
    execute(Evaluate(str(model), questions, max_new_tokens=2), out)
    if say:
        prompts = load(questions, Prompt)
        rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
        for row, prompt in zip(rows, prompts, strict=True):
            row["answer"] = say(prompt)
            row["correct"] = metrics.correct(prompt, row["answer"])
        (out / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def bare(prompt):
    return prompt.meta["answers"]["bare"]


def detailed(prompt):
    return prompt.meta["answers"]["detailed"]


def wrong(prompt):
    return "It is a helicopter."


def test_the_judge_orders_methods_and_sizes(questions, models, tmp_path):
    said = {"sft_0": wrong, "sft_1": bare, "ppo_0": detailed, "ppo_1": detailed}
    folders = {name: evaluated(models[int(name[-1])], questions, tmp_path / name, say) for name, say in said.items()}
    stage = Scaling(
        questions,
        folders["sft_1"],
        {"sft": [folders["sft_0"], folders["sft_1"]], "ppo": [folders["ppo_0"], folders["ppo_1"]]},
        ["ppo_0_vs_sft_1", "sft_0_vs_ppo_0", "ppo_0_vs_ppo_1"],
        ["translation"],
    )
    stage.run(tmp_path)
    found = Findings.load(tmp_path)
    preferred = {f"{method}.{size}": found.numbers[method][size]["score"] for method in ("sft", "ppo") for size in "01"}
    assert preferred == {"sft.0": 0, "sft.1": 0.5, "ppo.0": 1, "ppo.1": 1}
    assert found.numbers["sft"]["0"]["n"] == 12  # the choices are not counted
    assert {pair: one["score"] for pair, one in found.numbers["pairs"].items()} == {
        "ppo_0_vs_sft_1": 1, "sft_0_vs_ppo_0": 0, "ppo_0_vs_ppo_1": 0.5,
    }  # fmt: skip
    small, large = (found.numbers["ppo"][size]["parameters"] for size in "01")
    assert small == load_model(models[0]).num_parameters() < large
    assert [found.numbers["sft"][size]["right"]["score"] for size in "01"] == [0, 1]
    preference, right, tax = found.charts
    assert right.series[0].y == [0, 1]
    assert [series.label for series in preference.series] == ["sft", "ppo"] and preference.log_x
    assert preference.series[1].x == [small, large] and preference.series[1].y == [1, 1]
    scores = json.loads((folders["ppo_1"] / "scores.json").read_text())
    assert tax.series[1].y[1] == scores["translation"]["score"]
    *_, answers = found.tables
    assert answers.columns == ["question", "ppo_0", "sft_1", "sft_0", "ppo_1"]
    assert "It is a helicopter." in {row[3] for row in answers.rows}


def test_scaling_says_what_it_cannot_compare(questions, models, tmp_path):
    folder = evaluated(models[0], questions, tmp_path / "sft_0")
    for match, settings in {
        "sft_0_vs_ppo_0": {"lines": {"sft": [folder]}, "pairs": ["sft_0_vs_ppo_0"]},
        "'ppo' names no folder": {"lines": {"ppo": []}},
        "'pretraining'": {"lines": {"sft": [folder]}, "tax_tasks": ["pretraining"]},
    }.items():
        with pytest.raises(ChatwrightError, match=match):
            Scaling(questions, folder, **settings).run(tmp_path)
