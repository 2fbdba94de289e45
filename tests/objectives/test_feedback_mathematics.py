"""Every formula against a slow, obvious reference or a closed form."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatwright.objectives.feedback import mathematics as maths


def random_case(seed, rows=3, length=7):
    """Rewards, values and a mask with holes, at least one True in every row."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, rows, length, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, length, generator=generator) < 0.6
    mask[:, int(torch.randint(length, (), generator=generator))] = True
    return rewards, values, mask


seeds = st.integers(0, 2**31)


@settings(max_examples=50, deadline=None)
@given(seeds, st.floats(0.5, 1), st.floats(0, 1))
def test_gae_is_the_weighted_sum_of_temporal_differences(seed, gamma, lam):
    rewards, values, mask = random_case(seed)
    advantages, returns = maths.gae(rewards, values, mask, gamma, lam)
    for row in range(len(mask)):
        places = [t for t in range(mask.shape[1]) if mask[row, t]]
        r, v = [float(rewards[row, t]) for t in places], [float(values[row, t]) for t in places] + [0.0]
        for i, t in enumerate(places):
            expected = sum((gamma * lam) ** (j - i) * (r[j] + gamma * v[j + 1] - v[j]) for j in range(i, len(places)))
            assert advantages[row, t] == pytest.approx(expected, abs=1e-9)
            assert returns[row, t] == pytest.approx(expected + v[i], abs=1e-9)
    assert (advantages[~mask] == 0).all() and (returns[~mask] == 0).all()


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_gae_with_lambda_one_gives_the_reward_still_to_come(seed):
    rewards, values, mask = random_case(seed)
    _, returns = maths.gae(rewards, values, mask, gamma=1.0, lam=1.0)
    still_to_come = torch.where(mask, rewards, 0.0).flip(1).cumsum(1).flip(1)
    assert torch.allclose(returns[mask], still_to_come[mask])


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_gae_ignores_padding_on_either_side(seed):
    rewards, values, mask = random_case(seed)
    alone, _ = maths.gae(rewards, values, mask, 0.99, 0.95)

    def pad(tensor):
        junk = torch.full((len(tensor), 2), 7, dtype=tensor.dtype)
        return torch.cat([junk, tensor, junk], 1)

    empty = torch.zeros(len(mask), 2, dtype=torch.bool)
    padded, _ = maths.gae(pad(rewards), pad(values), torch.cat([empty, mask, empty], 1), 0.99, 0.95)
    assert torch.equal(padded[:, 2:-2], alone)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_whitening_is_global_over_the_mask_and_keeps_the_mean_of_rewards(seed):
    values, _, mask = random_case(seed, rows=5, length=9)
    shifted, kept = maths.whiten(values, mask), maths.whiten(values, mask, shift_mean=False)
    assert shifted[mask].mean() == pytest.approx(0, abs=1e-9)
    assert shifted[mask].std(correction=0) == pytest.approx(1, abs=1e-4)
    assert kept[mask].mean() == pytest.approx(float(values[mask].mean()), abs=1e-9)
    assert (shifted[~mask] == 0).all()
    junk = torch.where(mask, values, 1e6)
    assert torch.equal(maths.whiten(junk, mask), shifted)


def test_both_kl_estimators_average_to_the_kl_of_two_categoricals():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    exact = (p * (p / q).log()).sum()
    assert torch.allclose((p * maths.kl_k1(p.log(), q.log())).sum(), exact)
    assert torch.allclose((p * maths.kl_k3(p.log(), q.log())).sum(), exact)


@settings(max_examples=50, deadline=None)
@given(st.floats(-5, 0), st.floats(-5, 0))
def test_k3_is_never_negative_and_zero_when_equal(p, q):
    p, q = torch.tensor(p, dtype=torch.float64), torch.tensor(q, dtype=torch.float64)
    assert maths.kl_k3(p, q) >= 0
    assert maths.kl_k3(p, p) == 0


def test_the_score_is_paid_once_on_the_last_token_and_kl_on_each():
    mask = torch.tensor([[False, True, True, False], [False, True, False, False]])
    kl = torch.ones(2, 4)
    rewards = maths.token_rewards(torch.tensor([2.0, 3.0]), kl, mask, kl_coefficient=0.1)
    assert torch.allclose(rewards, torch.tensor([[0, -0.1, 1.9, 0], [0, 2.9, 0, 0]]))


def test_last_true_finds_the_last_token_with_padding_on_either_side():
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)
    assert maths.last_true(mask).tolist() == [1, 3, 0]


@settings(max_examples=50, deadline=None)
@given(seeds, st.floats(0.05, 0.5))
def test_the_clipped_policy_loss_token_by_token(seed, clip):
    logprobs, advantages, mask = random_case(seed)
    old = logprobs - torch.randn(logprobs.shape, dtype=torch.float64) * 0.3
    loss, clipped = maths.clipped_policy_loss(logprobs, old, advantages, mask.float(), clip, clip)
    expected, count = 0.0, 0
    for lp, o, a, m in zip(*(x.flatten().tolist() for x in (logprobs, old, advantages, mask)), strict=True):
        if m:
            ratio = math.exp(lp - o)
            bounded = min(max(ratio, 1 - clip), 1 + clip)
            expected -= min(ratio * a, bounded * a)
            count += bounded * a < ratio * a
    assert loss == pytest.approx(expected, abs=1e-9)
    assert clipped == count


def test_the_gradient_of_a_fresh_policy_is_the_policy_gradient_and_a_clipped_token_has_none():
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    advantages, mask = torch.tensor([[3.0, -4.0]]), torch.ones(1, 2, dtype=torch.bool)
    maths.clipped_policy_loss(logprobs, logprobs.detach(), advantages, mask.float(), 0.2, 0.2)[0].backward()
    assert torch.allclose(logprobs.grad, -advantages)

    logprobs.grad = None
    old = logprobs.detach() - torch.tensor([[0.5, -0.5]])  # both have moved far in the direction of their advantage
    loss, clipped = maths.clipped_policy_loss(logprobs, old, advantages, mask.float(), 0.2, 0.2)
    loss.backward()
    assert clipped == 2
    assert torch.equal(logprobs.grad, torch.zeros(1, 2))


@settings(max_examples=50, deadline=None)
@given(seeds, st.floats(0.05, 0.5))
def test_the_clipped_value_loss_token_by_token(seed, clip):
    values, returns, mask = random_case(seed)
    old = values + torch.randn(values.shape, dtype=torch.float64) * 0.3
    loss, _ = maths.clipped_value_loss(values, old, returns, mask, clip)
    expected = 0.0
    for v, o, r, m in zip(*(x.flatten().tolist() for x in (values, old, returns, mask)), strict=True):
        if m:
            kept = o + min(max(v - o, -clip), clip)
            expected += 0.5 * max((v - r) ** 2, (kept - r) ** 2)
    assert loss == pytest.approx(expected, abs=1e-9)


def test_explained_variance_of_a_perfect_a_constant_and_an_opposite_guess():
    returns, mask = torch.randn(4, 5), torch.rand(4, 5) < 0.7
    assert maths.explained_variance(returns, returns, mask) == pytest.approx(1)
    assert maths.explained_variance(torch.zeros(4, 5), returns, mask) == pytest.approx(0, abs=1e-5)
    assert maths.explained_variance(-returns, returns, mask) == pytest.approx(-3, abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_bradley_terry_is_the_sum_over_untied_pairs_of_one_prompt(data):
    count = data.draw(st.integers(1, 10))
    numbers = st.lists(st.integers(0, 3), min_size=count, max_size=count)
    ranks, groups, scores = data.draw(numbers), data.draw(numbers), data.draw(numbers)
    expected, pairs, right = 0.0, 0, 0.0
    for i in range(count):
        for j in range(count):
            if groups[i] == groups[j] and ranks[i] < ranks[j]:
                expected += math.log1p(math.exp(scores[j] - scores[i]))
                pairs += 1
                right += 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
    result = maths.bradley_terry(torch.tensor(scores, dtype=torch.float64), torch.tensor(ranks), torch.tensor(groups))
    assert [float(x) for x in result] == pytest.approx([expected, pairs, right])


def test_bradley_terry_adds_up_the_pairs_of_several_judges():
    scores, ranks, groups = torch.randn(8), torch.randint(3, (8, 3)), torch.tensor([0] * 4 + [1] * 4)
    together = torch.stack(maths.bradley_terry(scores, ranks, groups))
    alone = [torch.stack(maths.bradley_terry(scores, ranks[:, judge], groups)) for judge in range(3)]
    assert torch.allclose(together, sum(alone))


def test_bradley_terry_does_not_care_about_a_constant_added_to_all_scores_of_a_prompt():
    scores, ranks, groups = torch.randn(8), torch.tensor([0, 1, 2, 3] * 2), torch.tensor([0] * 4 + [1] * 4)
    moved = scores + torch.tensor([5.0] * 4 + [-3.0] * 4)
    assert torch.allclose(
        maths.bradley_terry(scores, ranks, groups)[0], maths.bradley_terry(moved, ranks, groups)[0], atol=1e-5
    )


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_margin_is_what_the_same_judge_rated_the_better_higher(data):
    count, judges = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    numbers = st.lists(st.integers(0, 3), min_size=count, max_size=count)
    scores, groups = data.draw(numbers), data.draw(numbers)
    ranks = [data.draw(numbers) for _ in range(judges)]
    rating = st.one_of(st.just(math.nan), st.floats(-5, 5))
    ratings = [data.draw(st.lists(rating, min_size=count, max_size=count)) for _ in range(judges)]
    expected = 0.0
    for given_ranks, given_ratings in zip(ranks, ratings, strict=True):
        for i in range(count):
            for j in range(count):
                if groups[i] == groups[j] and given_ranks[i] < given_ranks[j]:
                    apart = given_ratings[i] - given_ratings[j]
                    margin = 0.0 if math.isnan(apart) else max(0.0, 0.5 * apart)
                    expected += math.log1p(math.exp(-(scores[i] - scores[j] - margin)))
    result = maths.bradley_terry_with_margin(
        torch.tensor(scores, dtype=torch.float64),
        torch.tensor(ranks).T,
        torch.tensor(groups),
        torch.tensor(ratings, dtype=torch.float64).T,
        0.5,
    )
    assert float(result) == pytest.approx(expected)


def test_without_ratings_the_margin_is_none_and_with_them_the_loss_is_larger():
    scores, ranks, groups = torch.randn(8), torch.arange(8) % 4, torch.tensor([0] * 4 + [1] * 4)
    plain, pairs, _ = maths.bradley_terry(scores, ranks, groups)
    unrated = torch.full((8,), math.nan)
    assert torch.allclose(maths.bradley_terry_with_margin(scores, ranks, groups, unrated, 1.0), plain)
    assert maths.bradley_terry_with_margin(scores, ranks, groups, -ranks.float(), 1.0) > plain + 0.1 * pairs


def test_the_squared_error_is_summed_over_every_rating_there_is():
    scores = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    ratings = torch.tensor([[1.0, 3.0], [math.nan, 0.0], [math.nan, math.nan]])
    total, count = maths.squared_error(scores, ratings)
    assert total == 0 + 4 + 4 and count == 3
    total.backward()
    assert scores.grad.tolist() == [-4, 4, 0]  # a response that nobody rated is not moved


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_the_cross_entropy_of_steps_one_by_one(seed):
    logits, _, ends = random_case(seed)
    right = torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    total, correct = maths.step_cross_entropy(logits, ends, right)
    expected, agreed = 0.0, 0
    for logit, end, label in zip(*(x.flatten().tolist() for x in (logits, ends, right)), strict=True):
        if end:
            probability = 1 / (1 + math.exp(-logit))
            expected -= math.log(probability if label else 1 - probability)
            agreed += (probability > 0.5) == label
    assert total == pytest.approx(expected, abs=1e-9) and correct == agreed
