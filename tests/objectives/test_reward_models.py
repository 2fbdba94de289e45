"""Margins, ratings, steps and ensembles on tiny real models, on text and on pictures alike."""

import copy
import math

import pytest
import torch
from tests.objectives.test_feedback import SPLITS, assert_same, gradients

from chatwright.data import rankings, steps
from chatwright.data.records import Comparison, Prompt
from chatwright.errors import ChatwrightError
from chatwright.models.heads import ProcessRewardModel, RewardEnsemble, RewardModel, load_scorer, score_all
from chatwright.objectives.feedback.bradley_terry import BradleyTerry
from chatwright.objectives.feedback.likert import Likert
from chatwright.objectives.feedback.margin import Margin
from chatwright.objectives.feedback.process import Process

ANSWERS = ["yes", "no\na dog", "\nthree\n\nred\n", "a pear.\na dog.\n狗"]


@pytest.fixture(params=["text", "image"])
def asked(request, conversations):
    """Eight prompts."""
    chosen = [0, 3, 0] if request.param == "text" else [1, 2, 4]
    return [conversations[chosen[i % 3]] for i in range(8)]


@pytest.fixture
def groups(renderer, asked):
    """Three responses to each, judged by one or two, who did not rate everything."""
    records = []
    for i, messages in enumerate(asked):
        responses = tuple(f"{i} {answer}" for answer in ANSWERS[: 2 + i % 3])
        for judge in range(1 + i % 2):
            ranks = tuple((place * (i + judge) + 1) % 3 for place in range(len(responses)))
            ratings = [None if place == i else 1.0 + 2 * (place + judge) for place in range(len(responses))]
            records.append(Comparison(tuple(messages), responses, ranks, f"j{judge}", "ranking", {"ratings": ratings}))
    return rankings.render_all(renderer, records, 1000)


@pytest.fixture
def answers(renderer, asked):
    prompts = [
        Prompt(tuple(messages), ANSWERS[i % 4], meta={"steps": [(-1) ** (i + j) for j in range((1, 2, 2, 3)[i % 4])]})
        for i, messages in enumerate(asked)
    ]
    return steps.render_all(renderer, prompts, 1000)


def batches(collate, renderer, rows, split):
    starts = [sum(split[:i]) for i in range(len(split))]
    return [collate(renderer, rows[start : start + size]) for start, size in zip(starts, split, strict=True)]


@pytest.mark.parametrize("method", ["margin", "likert", "process"])
def test_the_split_of_a_step_changes_nothing(assistant, renderer, groups, answers, method):
    torch.manual_seed(4)
    if method == "process":
        objective, collate, rows = Process(ProcessRewardModel(assistant, renderer), renderer), steps.collate, answers
    else:
        model, collate, rows = RewardModel(assistant), rankings.collate, groups
        ratings = [rating for group in groups for rating in group.rated]
        objective = Margin(model, renderer) if method == "margin" else Likert(model, renderer, ratings)
    reference = gradients(objective, batches(collate, renderer, rows, SPLITS[0]))
    assert max(float(g.abs().max()) for g in reference.values()) > 1e-3
    for split in SPLITS[1:]:
        assert_same(reference, gradients(objective, batches(collate, renderer, rows, split)))


def test_the_margin_loss_by_hand(assistant, renderer, groups):
    objective = Margin(RewardModel(assistant), renderer, scale=0.5)
    batch = rankings.collate(renderer, groups)
    with torch.no_grad():
        scores = score_all(objective.model, renderer, [row for group in groups for row in group.rows]).tolist()
        loss = objective.loss(batch)
    expected, pairs = 0.0, 0
    for group in groups:
        part, scores = scores[: len(group.rows)], scores[len(group.rows) :]
        for ranks, ratings in zip(group.rankings, group.ratings, strict=True):
            for i, better in enumerate(part):
                for j, worse in enumerate(part):
                    if ranks[i] < ranks[j]:
                        margin = max(0.0, 0.5 * (ratings[i] - ratings[j]))
                        margin = 0.0 if math.isnan(ratings[i] + ratings[j]) else margin
                        expected += math.log1p(math.exp(worse - better + margin))
                        pairs += 1
    assert loss.weight == pairs and loss.total == pytest.approx(expected, rel=1e-4)
    with torch.no_grad():
        plain = BradleyTerry(objective.model, renderer).loss(batch)
    assert loss.metrics["accuracy"] == plain.metrics["accuracy"] and loss.total > plain.total


def test_the_likert_loss_by_hand(assistant, renderer, groups):
    given = [rating for group in groups for rating in group.rated]
    objective = Likert(RewardModel(assistant), renderer, given)
    with torch.no_grad():
        scores = score_all(objective.model, renderer, [row for group in groups for row in group.rows]).tolist()
        loss = objective.loss(rankings.collate(renderer, groups))
    mean = sum(given) / len(given)
    deviation = math.sqrt(sum((rating - mean) ** 2 for rating in given) / len(given))
    expected = 0.0
    for group in groups:
        part, scores = scores[: len(group.rows)], scores[len(group.rows) :]
        for ratings in group.ratings:
            for score, rating in zip(part, ratings, strict=True):
                expected += 0.0 if math.isnan(rating) else (score - (rating - mean) / deviation) ** 2
    assert loss.weight == len(given) and loss.total == pytest.approx(expected, rel=1e-4)


def test_ratings_that_are_all_equal_teach_nothing(assistant, renderer):
    with pytest.raises(ChatwrightError, match="all 3 ratings are 4; collect"):
        Likert(RewardModel(assistant), renderer, [4, 4, 4])


# ---- steps


@pytest.mark.parametrize("aggregation", ["min", "product"])
def test_an_answer_scores_what_its_steps_say(assistant, renderer, answers, aggregation):
    torch.manual_seed(5)
    model = ProcessRewardModel(assistant, renderer, aggregation=aggregation)
    rows = [answer.rows[0] for answer in answers]
    for answer, score in zip(answers, score_all(model, renderer, rows).tolist(), strict=True):
        with torch.no_grad():
            logits = model.logits(renderer.collate(answer.rows))[0, answer.ends].tolist()
        steps_right = [1 / (1 + math.exp(-logit)) for logit in logits]
        assert score == pytest.approx(min(steps_right) if aggregation == "min" else math.prod(steps_right), rel=1e-3)


def test_the_probability_of_a_step_does_not_see_the_next_one(assistant, renderer, asked):
    model = ProcessRewardModel(assistant, renderer)
    prompt = renderer.prompt(asked[0])
    rows = [renderer.answered(prompt, renderer.answer(text)) for text in ("one\ntwo", "one\na pear")]
    end = steps.step_ends(renderer, rows[0].input_ids, rows[0].loss_mask)[0]
    with torch.no_grad():
        one, other = (model.logits(renderer.collate([row]))[0, end] for row in rows)
    assert one == pytest.approx(float(other), abs=1e-5)


def test_a_process_reward_model_survives_saving(assistant, renderer, answers, tmp_path):
    model = ProcessRewardModel(assistant, renderer)
    Process(model, renderer).save(tmp_path)
    loaded = RewardModel.load(tmp_path)
    assert isinstance(loaded, ProcessRewardModel)
    rows = [answer.rows[0] for answer in answers]
    assert torch.equal(score_all(loaded.eval(), renderer, rows), score_all(model.eval(), renderer, rows))
    loaded.aggregation = "mean"
    with pytest.raises(ChatwrightError, match="min or product"):
        score_all(loaded, renderer, rows)


# ---- ensembles


@pytest.fixture
def members(assistant):
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(RewardModel(copy.deepcopy(assistant)).eval())
    return models


def test_an_ensemble_scores_by_what_its_members_say(members, renderer, groups):
    rows = [row for group in groups for row in group.rows]
    each = torch.stack([score_all(member, renderer, rows) for member in members])
    mean = each.sum(0) / 3
    variance = ((each - mean) ** 2).sum(0) / 3
    assert variance.min() > 1e-4
    for aggregation, expected in {
        "mean": mean,
        "worst_case": each.sort(0).values[0],
        "uncertainty_weighted": mean - 0.2 * variance,
    }.items():
        ensemble = RewardEnsemble(members, aggregation, penalty=0.2)
        assert torch.allclose(score_all(ensemble, renderer, rows), expected, atol=1e-5)


def test_an_ensemble_is_read_from_the_folders_of_its_members(members, renderer, groups, tmp_path):
    for number, member in enumerate(members):
        BradleyTerry(member, renderer).save(tmp_path / str(number))
    ensemble = load_scorer([str(tmp_path / str(number)) for number in range(3)]).eval()
    rows = groups[0].rows
    assert torch.equal(score_all(ensemble, renderer, rows), score_all(RewardEnsemble(members), renderer, rows))


def test_an_ensemble_that_cannot_work_is_refused(members):
    members[1].backbone.resize_token_embeddings(500)
    with pytest.raises(ChatwrightError, match="vocabularies"):
        RewardEnsemble(members)
    with pytest.raises(ChatwrightError, match="0 reward models"):
        RewardEnsemble([])
    with pytest.raises(ChatwrightError, match="mean, worst_case or uncertainty_weighted"):
        RewardEnsemble(members[:1], "median")
