"""The loop: one loss however a batch is split, among micro-batches or processes."""

import json

import pytest
import torch
from tests.conftest import picture

from chatwright.data.batches import Batches
from chatwright.data.records import Message
from chatwright.errors import ChatwrightError
from chatwright.objectives.language.causal import CausalLanguageModel
from chatwright.training.loop import Training, fit

SENTENCES = ["Three dogs.", "狗", "There is a red apple and a green pear.", "no", "一只狗", "a pear", "two", "图片"]


def rows_of(renderer):
    return [
        renderer.demonstration(
            [Message.of("user", "What is it?", *([picture(i)] if i % 2 else [])), Message.of("assistant", text)]
        )
        for i, text in enumerate(SENTENCES)
    ]


def gradients(objective, batches):
    objective.zero_grad()
    total = weight = 0
    for batch in batches:
        loss = objective.loss(batch)
        loss.total.backward()
        total, weight = total + loss.total.detach(), weight + loss.weight
    return total / weight, {n: p.grad / weight for n, p in objective.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("micro", [4, 2, 1])
def test_splitting_a_batch_changes_nothing(renderer, assistant, micro):
    assistant.double()
    rows = rows_of(renderer)
    for row in rows:
        row.media = {name: value.double() for name, value in row.media.items()}
    objective = CausalLanguageModel(assistant, renderer)
    whole, expected = gradients(objective, [renderer.collate(rows)])
    split, found = gradients(objective, [renderer.collate(rows[i : i + micro]) for i in range(0, 8, micro)])
    assert abs(whole - split) < 1e-6
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)


def train(renderer, model, out, micro=0, **changes):
    torch.manual_seed(0)
    rows = rows_of(renderer)
    loader = Batches(rows, renderer.collate, 8, changes.pop("steps", 6), 0, micro)
    objective = CausalLanguageModel(model, renderer)
    settings = Training(**{"learning_rate": 1e-2, "precision": "fp32", "log_every": 1, **changes})
    fit(objective, loader, settings, out, "sft")
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_training_learns_and_writes_its_course(renderer, assistant, tmp_path):
    lines = train(renderer, assistant, tmp_path, steps=30)
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert [line["step"] for line in lines] == list(range(1, 31))


def test_what_is_done_again_is_told_once_and_in_its_place(renderer, assistant, tmp_path):
    """A stage of two trainings, cut off in the second: the first left no checkpoint, and runs again."""
    start = {name: value.clone() for name, value in assistant.state_dict().items()}
    first = train(renderer, assistant, tmp_path, steps=2)
    log = tmp_path / "metrics.jsonl"
    log.write_text(log.read_text() + '{"stage": "other", "step": 1}\n{"stage": "oth')
    assistant.load_state_dict(start)
    assert train(renderer, assistant, tmp_path, steps=3)[:3] == [*first, {"stage": "other", "step": 1}]
    assert [line["step"] for line in map(json.loads, log.read_text().splitlines())] == [1, 2, 1, 3]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_accumulation_gives_the_same_weights(renderer, assistant, tmp_path, optimizer):
    start = {name: value.clone() for name, value in assistant.state_dict().items()}
    train(renderer, assistant, tmp_path / "whole", steps=3, optimizer=optimizer, learning_rate=1e-3)
    whole = {name: value.clone() for name, value in assistant.state_dict().items()}
    assistant.load_state_dict(start)
    train(renderer, assistant, tmp_path / "split", micro=2, steps=3, optimizer=optimizer, learning_rate=1e-3)
    for name, value in assistant.state_dict().items():
        torch.testing.assert_close(value, whole[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_eye_learns_at_its_own_rate_and_keeps_its_statistics(renderer, assistant, tmp_path, optimizer):
    start = {name: value.clone() for name, value in assistant.state_dict().items()}
    moved = []
    for eye_rate in (1.0, 0.01):
        assistant.load_state_dict(start)
        loader = Batches(rows_of(renderer), renderer.collate, 8, 1, 0)
        settings = Training(learning_rate=1e-3, optimizer=optimizer, precision="fp32")
        fit(CausalLanguageModel(assistant, renderer, eye_rate), loader, settings, tmp_path / str(eye_rate), "sft")
        change = {name: (value - start[name]).abs().max() for name, value in assistant.state_dict().items()}
        assert all(change[name] == 0 for name in change if "running" in name)
        moved.append({name: change[name] for name in change if ".convolution.weight" in name})
    assert moved[0] and all(0 < moved[1][name] < 0.02 * moved[0][name] for name in moved[0])


def test_the_projector_learns_at_its_own_rate_or_stays(renderer, assistant, tmp_path):
    start = {name: value.clone() for name, value in assistant.state_dict().items()}
    moved = []
    for rate in (1.0, 0.01, 0.0):
        assistant.load_state_dict(start)
        loader = Batches(rows_of(renderer), renderer.collate, 8, 1, 0)
        settings = Training(learning_rate=1e-3, precision="fp32")
        fit(CausalLanguageModel(assistant, renderer, 1.0, rate), loader, settings, tmp_path / str(rate), "sft")
        change = {name: float((value - start[name]).abs().max()) for name, value in assistant.state_dict().items()}
        assert change["model.language_model.layers.0.mlp.up_proj.weight"] > 0
        moved.append(max(change[name] for name in change if "projector" in name and name.endswith("weight")))
    assistant.requires_grad_(True)
    assert 0 < moved[1] < 0.02 * moved[0] and moved[2] == 0


def test_a_rate_for_a_projector_that_is_not_there_is_refused(renderer, language_model):
    with pytest.raises(ChatwrightError, match="leave projector_rate at 1"):
        CausalLanguageModel(language_model, renderer, projector_rate=0.0)


def test_a_loss_that_explodes_is_an_error_with_a_remedy(renderer, assistant, tmp_path):
    with pytest.raises(ChatwrightError, match="lower learning_rate"):
        train(renderer, assistant, tmp_path, steps=20, learning_rate=1e20, clip=1e20, warmup=0.0)


def test_a_step_without_supervised_tokens_is_refused(renderer, assistant, tmp_path):
    rows = rows_of(renderer)
    for row in rows:
        row.loss_mask = [False] * len(row)
    loader = Batches(rows, renderer.collate, 8, 2, 0)
    with pytest.raises(ChatwrightError, match="step 1 has nothing to learn from"):
        fit(CausalLanguageModel(assistant, renderer), loader, Training(precision="fp32"), tmp_path, "sft")


def test_too_few_rows_for_a_batch_are_refused(renderer):
    with pytest.raises(ChatwrightError, match="8 rows do not fill one batch of 9"):
        Batches(rows_of(renderer), renderer.collate, 9, 2, 0)
