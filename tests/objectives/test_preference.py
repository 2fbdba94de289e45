"""Learning directly from preferences: every method on text and on pictures, by hand and by its gradient."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatwright.errors import ChatwrightError
from chatwright.models.outputs import model_inputs
from chatwright.objectives.feedback.kto import good_and_bad
from chatwright.objectives.feedback.mathematics import preferring
from chatwright.objectives.feedback.methods import OFFLINE, ONLINE, make
from chatwright.objectives.feedback.preference import Responses
from chatwright.objectives.feedback.rollouts import rendered

PAIRWISE = [name for name in OFFLINE if name != "kto"]


@pytest.fixture(params=["text", "image"])
def prompts(request, conversations, renderer):
    chosen = [0, 3, 0] if request.param == "text" else [1, 2, 4]
    return [renderer.prompt(conversations[i]) for i in chosen]


def batch_of(renderer, prompts, groups, seed=0):
    """Three answers of different lengths to each of the prompts named by ``groups``, and one from elsewhere."""
    rows, ranks, elsewhere = [], [], []
    for group in groups:
        generator = torch.Generator().manual_seed(seed + group)
        for length in (1, 3, 2, 4):
            tokens = torch.randint(10, 200, (length,), generator=generator).tolist()
            (rows if length < 4 else elsewhere).append(renderer.answered(prompts[group % len(prompts)], tokens))
        ranks += torch.randperm(3, generator=generator).tolist()
    batch = renderer.collate([*rows, *elsewhere])
    batch["comparison.ranks"] = torch.tensor([*ranks, *[0.5] * len(elsewhere)])
    batch["comparison.groups"] = torch.tensor([g for g in groups for _ in range(3)] + [-1] * len(elsewhere))
    return batch


def reference_of(batch):
    """Made-up log-probabilities that depend on the row alone, however it is batched."""
    said = batch["input_ids"] * batch["loss_mask"]
    return -(said.sum(1) % 17).float() - 3


def with_reference(batch):
    return {**batch, "reference.logprobs": reference_of(batch)}


@pytest.mark.parametrize("name", PAIRWISE)
def test_a_step_by_hand(assistant, renderer, prompts, name):
    """The sum over all ordered pairs, from log-probabilities that transformers alone computes."""
    batch = with_reference(batch_of(renderer, prompts, [0, 1]))
    loss = make(OFFLINE, name, {}, assistant, renderer).loss(batch)
    inputs = model_inputs(assistant, rendered(batch))
    with torch.no_grad():
        logits = assistant(**inputs).logits[:, :-1]
    logits[..., list(renderer.placeholders.values())] = float("-inf")
    every = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    mask = batch["loss_mask"][:, 1:]
    logprobs, lengths = torch.where(mask, every, 0).sum(1).tolist(), mask.sum(1).tolist()
    reference = batch["reference.logprobs"].tolist()
    ranks, groups = batch["comparison.ranks"].tolist(), batch["comparison.groups"].tolist()

    def softplus(x):
        return max(x, 0) + math.log1p(math.exp(-abs(x)))

    def pair(i, j):
        ratio = [logprobs[k] - reference[k] for k in (i, j)]
        mean = [logprobs[k] / lengths[k] for k in (i, j)]
        odds = [m - math.log(1 - math.exp(m)) for m in mean]
        dpo = 0.1 * (ratio[0] - ratio[1])
        return {
            "dpo": softplus(-dpo),
            "conservative_dpo": 0.9 * softplus(-dpo) + 0.1 * softplus(dpo),
            "ipo": (ratio[0] / lengths[i] - ratio[1] / lengths[j] - 5) ** 2,
            "simpo": softplus(-(2 * mean[0] - 2 * mean[1] - 1)),
            "orpo": -mean[0] + 0.1 * softplus(-(odds[0] - odds[1])),
        }[name]

    pairs = [(i, j) for i in range(6) for j in range(6) if groups[i] == groups[j] and ranks[i] < ranks[j]]
    assert loss.weight == len(pairs) == 6
    assert loss.total.item() == pytest.approx(sum(pair(i, j) for i, j in pairs), rel=1e-4)


def test_kto_by_hand(assistant, renderer, prompts):
    batch = with_reference(batch_of(renderer, prompts, [0, 1]))
    objective = make(OFFLINE, "kto", {"good": 1.5, "bad": 0.5}, assistant, renderer)
    rewards = (objective.rewards(objective.responses(batch)) / 0.1).tolist()
    moved = max(0.0, sum(rewards[6:]) / 2)

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    expected = sum(
        {0: 1.5 * (1 - sigmoid(0.1 * (r - moved))), 1: 0, 2: 0.5 * (1 - sigmoid(0.1 * (moved - r)))}[int(rank)]
        for r, rank in zip(rewards[:6], batch["comparison.ranks"].tolist(), strict=False)
    )
    loss = objective.loss(batch)
    assert loss.total.item() == pytest.approx(expected, rel=1e-4)
    assert loss.weight == 4


@pytest.mark.parametrize("name", PAIRWISE)
def test_the_split_of_a_step_changes_nothing(assistant, renderer, prompts, name):
    objective = make(OFFLINE, name, {}, assistant, renderer)

    def gradient(parts):
        objective.zero_grad()
        losses = [objective.loss(with_reference(batch_of(renderer, prompts, part))) for part in parts]
        sum(loss.total for loss in losses).backward()
        weight = sum(int(loss.weight) for loss in losses)
        return {n: p.grad / weight for n, p in objective.named_parameters() if p.grad is not None}

    whole, parts = gradient([[0, 1, 2, 3]]), gradient([[0], [1, 2], [3]])
    scale = max(float(g.abs().max()) for g in whole.values())
    for key in whole:
        torch.testing.assert_close(whole[key], parts[key], rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("name", OFFLINE)
def test_learning_parts_the_better_from_the_worse(assistant, renderer, prompts, name):
    objective = make(OFFLINE, name, {}, assistant, renderer)
    batch = batch_of(renderer, prompts, [0, 1, 2])
    with torch.no_grad():
        batch["reference.logprobs"] = objective.responses(with_reference(batch)).logprobs
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    seen = []
    for _ in range(25):
        loss = objective.loss(batch)
        (loss.total / loss.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
        metrics = {key: float(total / weight) for key, (total, weight) in loss.metrics.items()}
        seen.append((loss.total.item(), metrics["accuracy"], metrics["reward_better"] - metrics["reward_worse"]))
    assert seen[-1][0] < 0.9 * seen[0][0]
    assert seen[-1][1] > 0.9
    assert seen[-1][2] > seen[0][2]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 2)), min_size=1, max_size=8))
def test_who_is_good_and_who_is_bad(rows):
    ranks, groups = (torch.tensor(values) for values in zip(*rows, strict=True))
    good, bad = good_and_bad(ranks, groups)
    for i, (rank, group) in enumerate(rows):
        others = [r for r, g in rows if g == group]
        middle = 0.5 if len(others) == 1 else sum(others) / len(others)
        assert good[i] == (group != -1 and rank < middle - 1e-9)
        assert bad[i] == (group != -1 and rank > middle + 1e-9)


def test_several_judges_count_as_often_as_they_judge():
    ranks = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]])
    counts = preferring(ranks, torch.tensor([0, 0, 0]))
    assert counts.tolist() == [[0, 1, 2], [1, 0, 2], [0, 0, 0]]


def test_rewards_of_certainty_are_finite(assistant, renderer):
    said = Responses(torch.tensor([0.0, -1e-9]), torch.zeros(2), torch.tensor([3, 1]))
    assert torch.isfinite(make(OFFLINE, "orpo", {}, assistant, renderer).rewards(said)).all()


def test_unknown_names_say_what_there_is(assistant, renderer):
    with pytest.raises(ChatwrightError, match=r"'dpoo'.*dpo, conservative_dpo"):
        make(OFFLINE, "dpoo", {}, assistant, renderer)
    with pytest.raises(ChatwrightError, match=r"dpo has no option 'betta'; it has beta"):
        make(OFFLINE, "dpo", {"betta": 1.0}, assistant, renderer)
    with pytest.raises(ChatwrightError, match=r"grpo has no option 'gae_lambda'; it has clip, clip_high"):
        make(ONLINE, "grpo", {"gae_lambda": 1.0}, assistant, renderer, 1.0, 0.0)
