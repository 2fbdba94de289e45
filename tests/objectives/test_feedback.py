"""The objectives of feedback on tiny real models, on text and on pictures alike."""

import copy
import math

import pytest
import torch

from chatwright.data.records import Document, Part
from chatwright.models.heads import RewardModel, ScalarHead
from chatwright.objectives.feedback.bradley_terry import BradleyTerry
from chatwright.objectives.feedback.ppo import PPO
from chatwright.objectives.feedback.rollouts import Rollouts

SPLITS = [[8], [4, 4], [1] * 8]


@pytest.fixture(params=["text", "image"])
def prompts(request, conversations, renderer):
    chosen = [0, 3, 0] if request.param == "text" else [1, 2, 4]
    return [renderer.prompt(conversations[i]) for i in chosen]


@pytest.fixture
def critic(assistant):
    torch.manual_seed(2)
    return RewardModel(copy.deepcopy(assistant))


def gradients(objective, batches):
    """What the loop does: add up, divide once."""
    objective.zero_grad()
    losses = [objective.loss(batch) for batch in batches]
    sum(loss.total for loss in losses).backward()
    weight = sum(int(loss.weight) for loss in losses)
    return {name: p.grad / weight for name, p in objective.named_parameters() if p.grad is not None}


def assert_same(one, other):
    assert one.keys() == other.keys()
    scale = max(float(g.abs().max()) for g in one.values())
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6 * scale, msg=name)


# ---- reward model


def comparison_batch(renderer, prompts, groups, seed=0):
    """Four answers of different lengths to each of the prompts named by ``groups``, all judged."""
    rows, ranks = [], []
    for group in groups:
        generator = torch.Generator().manual_seed(seed + group)
        for length in (1, 3, 2, 4):
            tokens = torch.randint(10, 200, (length,), generator=generator).tolist()
            rows.append(renderer.answered(prompts[group % len(prompts)], tokens))
        ranks += torch.randint(3, (4,), generator=generator).tolist()
    batch = renderer.collate(rows)
    batch["comparison.ranks"] = torch.tensor(ranks)
    batch["comparison.groups"] = torch.tensor([g for g in groups for _ in range(4)])
    return batch


def test_the_reward_loss_is_the_sum_over_all_pairs_by_hand(assistant, renderer, prompts):
    objective = BradleyTerry(RewardModel(assistant), renderer)
    batch = comparison_batch(renderer, prompts, range(3))
    with torch.no_grad():
        scores = objective.model.scores(batch).tolist()
        loss = objective.loss(batch)
    ranks, groups = batch["comparison.ranks"].tolist(), batch["comparison.groups"].tolist()
    pairs = [(i, j) for i in range(12) for j in range(12) if groups[i] == groups[j] and ranks[i] < ranks[j]]
    assert loss.weight == len(pairs)
    assert loss.total == pytest.approx(sum(math.log1p(math.exp(scores[j] - scores[i])) for i, j in pairs), rel=1e-4)


def test_a_score_depends_on_its_row_alone_and_is_read_at_its_last_token(assistant, renderer, prompts):
    model = RewardModel(assistant)
    rows = [renderer.answered(prompt, [20 + i] * (1 + i)) for i, prompt in enumerate(prompts)]
    with torch.no_grad():
        right, left = (model.scores(renderer.collate(rows, side)) for side in ("right", "left"))
        alone = torch.cat([model.scores(renderer.collate([row])) for row in rows])
    assert torch.allclose(right, left, atol=1e-5) and torch.allclose(right, alone, atol=1e-5)
    assert len(set(alone.tolist())) == 3


def test_values_are_of_the_state_before_each_token(assistant, renderer, prompts):
    model = RewardModel(assistant)
    long = renderer.answered(prompts[0], [20, 21, 22])
    other = renderer.answered(prompts[0], [20, 21, 99])
    with torch.no_grad():
        one, two = model.values(renderer.collate([long])), model.values(renderer.collate([other]))
        score = model.scores(renderer.collate([renderer.answered(prompts[0], [20, 21])]))
    assert torch.allclose(one, two, atol=1e-6)  # the last token is not seen by its own value
    assert torch.allclose(one[:, -1], score, atol=1e-5)


def test_the_split_of_a_reward_step_changes_nothing(assistant, renderer, prompts):
    objective = BradleyTerry(RewardModel(assistant), renderer)
    reference = gradients(objective, [comparison_batch(renderer, prompts, range(8))])
    for split in SPLITS[1:]:
        starts = [sum(split[:i]) for i in range(len(split))]
        batches = [
            comparison_batch(renderer, prompts, range(start, start + size))
            for start, size in zip(starts, split, strict=True)
        ]
        assert_same(reference, gradients(objective, batches))


def test_a_reward_model_survives_saving(assistant, renderer, prompts, tmp_path):
    model = RewardModel(assistant)
    torch.nn.init.constant_(model.head.bias, 0.7)
    BradleyTerry(model, renderer).save(tmp_path)
    batch = renderer.collate([renderer.answered(prompts[0], [20, 21])])
    with torch.no_grad():
        assert torch.equal(RewardModel.load(tmp_path).eval().scores(batch), model.eval().scores(batch))


def test_the_head_begins_small():
    torch.manual_seed(0)
    head = ScalarHead(4095)
    assert head.weight.std().item() == pytest.approx(1 / 64, rel=0.05)
    assert head.bias.item() == 0


# ---- PPO


def rollouts(renderer, prompts, rows=8, seed=0):
    """Rendered responses of different lengths and made-up rollouts about them."""
    generator = torch.Generator().manual_seed(seed)
    made = Rollouts.empty(rows, 6, 1)
    made.lengths[:] = torch.randint(1, 7, (rows,), generator=generator)
    made.mask[:] = torch.arange(6) < made.lengths[:, None]
    made.tokens[:] = torch.randint(10, 200, (rows, 6), generator=generator)
    for name, shift in (("logprobs", -5.9), ("values", 0), ("advantages", 0), ("returns", 0)):
        getattr(made, name)[:] = (torch.randn(rows, 6, generator=generator) * 0.3 + shift) * made.mask
    made.metrics[:, 0] = torch.arange(rows)
    answered = [
        renderer.answered(prompts[i % len(prompts)], made.tokens[i, : made.lengths[i]].tolist()) for i in range(rows)
    ]
    return made, answered


def ppo_batches(renderer, made, answered, split):
    starts = [sum(split[:i]) for i in range(len(split))]
    return [
        made.attach(renderer.collate(answered[start : start + size]), range(start, start + size), ["score"])
        for start, size in zip(starts, split, strict=True)
    ]


def text_batches(renderer, split, tokens):
    documents = [Document((Part.of_text("one two three red green " * (1 + i)),)) for i in range(4)]
    rows = [renderer.document(document) for document in documents]
    seen = sum(sum(row.loss_mask[1:]) for row in rows)
    size = len(rows) // split
    batches = [renderer.collate(rows[i : i + size]) for i in range(0, len(rows), size)]
    return [{**batch, "pretraining.scale": torch.tensor(tokens / seen)} for batch in batches]


@pytest.mark.parametrize("pretraining", [0.0, 0.5])
def test_the_split_of_a_ppo_step_changes_nothing(assistant, critic, renderer, prompts, pretraining):
    made, answered = rollouts(renderer, prompts)
    objective = PPO(assistant, renderer, 1.0, pretraining, critic)
    tokens = int(made.lengths.sum())
    results = [
        gradients(
            objective,
            ppo_batches(renderer, made, answered, split)
            + (text_batches(renderer, 4 // parts, tokens) if pretraining else []),
        )
        for split, parts in zip(SPLITS, (4, 2, 1), strict=True)
    ]
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


def test_pretraining_adds_exactly_its_own_mean_gradient(assistant, critic, renderer, prompts):
    made, answered = rollouts(renderer, prompts)
    step = ppo_batches(renderer, made, answered, [8])
    texts = text_batches(renderer, 2, int(made.lengths.sum()))
    alone = gradients(PPO(assistant, renderer, 1.0, 0.0, critic), step)
    mixed = gradients(PPO(assistant, renderer, 1.0, 0.5, critic), step + texts)

    whole = text_batches(renderer, 1, 1)[0]
    assistant.zero_grad()
    labels = whole["input_ids"].masked_fill(~whole["loss_mask"], -100)
    assistant(
        input_ids=whole["input_ids"],
        attention_mask=whole["attention_mask"],
        position_ids=whole["position_ids"],
        labels=labels,
    ).loss.backward()
    for name, parameter in assistant.named_parameters():
        if parameter.grad is not None and f"policy.{name}" in mixed:
            before = alone.get(f"policy.{name}", torch.zeros(()))
            torch.testing.assert_close(mixed[f"policy.{name}"] - before, 0.5 * parameter.grad, rtol=1e-3, atol=1e-5)


def test_the_loss_is_policy_and_value_over_the_response_tokens(assistant, critic, renderer, prompts):
    made, answered = rollouts(renderer, prompts)
    objective = PPO(assistant, renderer, 1.0, 0.0, critic)
    loss = objective.loss(ppo_batches(renderer, made, answered, [8])[0])
    assert loss.weight == made.lengths.sum()
    assert loss.total.item() == pytest.approx(
        float(loss.metrics["policy_loss"][0] + 0.1 * loss.metrics["value_loss"][0]), rel=1e-5
    )
    assert loss.metrics["score"] == (28, 8)  # 0 + 1 + ... + 7
    assert not any(total.requires_grad for total, _ in loss.metrics.values())


def test_dropout_and_batch_statistics_stay_off(assistant, critic, renderer):
    objective = PPO(assistant, renderer, 1.0, 0.0, critic)
    objective.train()
    assert not any(module.training for module in objective.modules())
