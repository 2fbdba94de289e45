"""The mathematics of learning from feedback: pure functions of tensors that know no model and no modality.

Everything about tokens is [B, T]: B responses, T positions of prompt and response together. ``mask`` [B, T] (bool) is
True at the response's tokens. Entry t of any such tensor belongs to token t: its log-probability given what precedes
it, the value of the state *before* it, the reward for having said it. Losses are sums over the mask; whoever adds them
up over micro-batches and processes divides once.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def preferring(ranks: Tensor, groups: Tensor) -> Tensor:
    """[N, N]: how many judges prefer the response of the row to that of the column.

    Args:
        ranks: [N], 0 the best, or [N, J] by J judges; equal ranks prefer neither.
        groups: [N], the same number for the same prompt; responses to different prompts are not compared.
    """
    ranks = ranks.reshape(len(ranks), -1)
    return (ranks[:, None] < ranks[None, :]).sum(-1) * (groups[:, None] == groups[None, :])


def bradley_terry(scores: Tensor, ranks: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-log sigmoid(better - worse), summed over all pairs of responses to the same prompt that are not tied.

    Bradley & Terry 1952; all pairs of one prompt at once as in InstructGPT (Ouyang et al. 2022, section 3.5), so that a
    prompt with K responses costs K forward passes and not K(K-1).

    Args:
        scores: [N] of the responses. ranks: [N], 0 the best, or [N, J] by J judges, whose pairs are added up.
        groups: [N], the same number for the same prompt.

    Returns:
        Scalars: the summed loss, the number of pairs, the number of pairs that the scores order as the ranks do
        (equal scores count one half).
    """
    judges = preferring(ranks, groups)
    margins = scores[:, None] - scores[None, :]
    right = (margins > 0) + 0.5 * (margins == 0)
    return (judges * -F.logsigmoid(margins)).sum(), judges.sum(), (judges * right).sum().detach()


def bradley_terry_with_margin(scores: Tensor, ranks: Tensor, groups: Tensor, ratings: Tensor, scale: float) -> Tensor:
    """-log sigmoid(better - worse - margin), summed over the pairs of `bradley_terry`.

    Touvron et al. 2023, "Llama 2", section 3.2.2. The margin is ``scale`` times how much higher the same judge rated
    the better response: never negative, and 0 where a number is missing.

    Args:
        scores, ranks, groups: as for `bradley_terry`. ratings: shaped as ``ranks``, nan where there is none.
    """
    ranks, ratings = ranks.reshape(len(ranks), -1), ratings.reshape(len(ranks), -1)
    preferring = (ranks[:, None] < ranks[None, :]) & (groups[:, None] == groups[None, :])[..., None]  # [N, N, judges]
    margins = (scale * (ratings[:, None] - ratings[None, :])).nan_to_num(nan=0.0).clamp_min(0)
    apart = (scores[:, None] - scores[None, :])[..., None] - margins
    return (preferring * -F.logsigmoid(apart)).sum()


def squared_error(scores: Tensor, ratings: Tensor) -> tuple[Tensor, Tensor]:
    """(score - rating)^2, summed over all ratings.

    Args:
        scores: [N]. ratings: [N, J] by J judges, nan where there is none.

    Returns:
        Scalars: the summed error, the number of ratings.
    """
    given = ~ratings.isnan()
    errors = scores[:, None] - ratings.nan_to_num()
    return (errors[given] ** 2).sum(), given.sum()


def step_cross_entropy(logits: Tensor, ends: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of the steps' labels, summed over the steps.

    Args:
        logits: [B, T], the log-odds that the step which ends at a token is right. ends: [B, T] (bool), where one does.
        right: [B, T] (bool), whether it is.

    Returns:
        Scalars: the summed loss, the number of steps whose more likely label is the given one.
    """
    chosen, labels = logits[ends], right[ends]
    total = F.binary_cross_entropy_with_logits(chosen, labels.to(chosen.dtype), reduction="sum")
    return total, ((chosen > 0) == labels).sum()


def kl_k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """log p - log q at tokens drawn from p: unbiased for KL(p || q), either sign. Schulman 2020, "Approximating KL"."""
    return logprobs - reference


def kl_k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """q/p - 1 - log(q/p) at tokens drawn from p: unbiased for KL(p || q) and never negative. Schulman 2020."""
    return torch.expm1(reference - logprobs) - (reference - logprobs)


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coefficient: float) -> Tensor:
    """The reward of every token: its KL penalty, and the response's score once, on its last token.

    Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences".

    Args:
        scores: [B]. kl: [B, T]. mask: [B, T], with at least one True in every row.

    Returns:
        [B, T], zero outside the mask.
    """
    rewards = torch.where(mask, -kl_coefficient * kl, 0.0)
    rows = torch.arange(len(mask), device=mask.device)
    rewards[rows, last_true(mask)] += scores
    return rewards


def last_true(mask: Tensor) -> Tensor:
    """[B, T] -> [B]: the position of the last True of every row, wherever the padding is."""
    return mask.shape[1] - 1 - mask.int().flip(1).argmax(1)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016) over the masked tokens, which need not be contiguous.

    A_t = d_t + gamma lam A_t', d_t = r_t + gamma V_t' - V_t, where t' is the next masked token; after the last one the
    episode is over and both are 0.

    Returns:
        advantages and returns (advantages + values), [B, T], zero outside the mask.
    """
    advantages = torch.zeros_like(rewards)
    next_advantage = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(here, delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(here, values[:, t], next_value)
        advantages[:, t] = torch.where(here, next_advantage, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def group_advantages(scores: Tensor, responses: int, scaled: bool = True) -> Tensor:
    """How much better each response is than the mean of those to its prompt (Shao et al. 2024, section 4.1.2).

    Args:
        scores: [N], those to one prompt together, ``responses`` of them. scaled: divide by their standard deviation
            (of a sample, N - 1; 1e-4 is added to it, which keeps equal scores at 0).

    Returns:
        [N].
    """
    groups = scores.view(-1, responses)
    centred = groups - groups.mean(1, keepdim=True)
    if scaled:
        centred = centred / (groups.std(1, keepdim=True) + 1e-4)
    return centred.flatten()


def leave_one_out(scores: Tensor, responses: int) -> Tensor:
    """How much better each response is than the mean of the others to its prompt (Kool et al. 2019), [N] -> [N]."""
    groups = scores.view(-1, responses)
    return ((groups - groups.mean(1, keepdim=True)) * responses / (responses - 1)).flatten()


def overlong_penalty(lengths: Tensor, longest: int, part: float) -> Tensor:
    """0 to 1, growing linearly over the last ``part`` of the length allowed (Yu et al. 2025); [N]."""
    free = longest * (1 - part)
    return ((lengths - free) / max(longest - free, 1e-9)).clamp(0, 1)


def best_of_n_kl(n: int, logprobs: Tensor) -> Tensor:
    """KL of best-of-n sampling from the policy that it samples from, estimated from its responses.

    Beirami et al. 2024, "Theoretical guarantees on the best-of-n alignment policy", https://arxiv.org/abs/2401.01879:
    where a response has probability e, best-of-n says the best one with at most 1 - (1 - e)^n. With no
    response likely it becomes log n - (n - 1) / n, which Stiennon et al. 2020 use and which is an upper bound.

    Args:
        logprobs: of any shape, of responses that were the best of their n, under the policy as it sampled.

    Returns:
        Of that shape, nats; their mean is the estimate.
    """
    logprobs = logprobs.double().clamp(-700, -1e-12)  # beyond, e or 1 - e is zero to a double
    missed = n * torch.log1p(-logprobs.exp())  # log of (1 - e)^n: how likely n samples are without this response
    bound = math.log(n) + missed * (n - 1) / n - (n - 1) / n
    return missed.exp() * bound - torch.expm1(missed) * (torch.log(-torch.expm1(missed)) - logprobs)


def best_of_k(scores: Tensor, values: Tensor | None = None) -> Tensor:
    """What the best of k responses is worth on average, for k = 1 .. n, from n responses to each prompt.

    Every subset of k counts (Nakano et al. 2021, "WebGPT"), by `best_of_k_shares`.

    Args:
        scores: [prompts, n], by which the best is chosen.
        values: [prompts, n], what is averaged over the best, such as what another judge says of them; the scores
            themselves where not given.

    Returns:
        [n], the means over the prompts.
    """
    values = scores if values is None else values
    ordered = values.double().gather(1, scores.argsort(dim=1, stable=True))
    return best_of_k_shares(scores.shape[1]) @ ordered.mean(0)


def best_of_k_kl(scores: Tensor, logprobs: Tensor) -> Tensor:
    """`best_of_n_kl` of the best of k, for k = 1 .. n, from n responses to each prompt; every subset of k counts.

    Args:
        scores, logprobs: [prompts, n].

    Returns:
        [n], nats, the means over the prompts.
    """
    ordered = logprobs.gather(1, scores.argsort(dim=1, stable=True))
    shares = best_of_k_shares(scores.shape[1])
    return torch.stack([share @ best_of_n_kl(k, ordered).mean(0) for k, share in enumerate(shares, 1)])


def best_of_k_shares(n: int) -> Tensor:
    """[n, n]: row k - 1 says of which share of all subsets of k the i-th response, counted from the worst, is the best.

    That is C(i - 1, k - 1) of C(n, k), for i = 1 .. n.
    """
    shares = [[math.comb(i, k - 1) / math.comb(n, k) for i in range(n)] for k in range(1, n + 1)]
    return torch.tensor(shares, dtype=torch.float64)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the masked entries, a scalar."""
    return values[mask].mean()


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True, epsilon: float = 1e-8) -> Tensor:
    """Scale the masked entries to variance 1 and, if ``shift_mean``, to mean 0; zero outside the mask.

    Rewards are whitened without shifting: moving their mean would pay for longer or shorter responses.
    """
    chosen = values[mask]
    mean = chosen.mean()
    whitened = (values - mean) * torch.rsqrt(chosen.var(correction=0) + epsilon)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask, whitened, 0.0)


def clipped_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, weights: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """-min(r A, clip(r, 1 - low, 1 + high) A) with r = p / p_old, summed (Schulman et al. 2017, equation 7).

    Args:
        weights: [B, T], what the loss of each token is multiplied by; 0 outside the responses.

    Returns:
        Scalars: the summed loss, the number of tokens whose gradient the clip took away.
    """
    said = weights > 0
    ratio = torch.exp(torch.where(said, logprobs - old_logprobs, 0.0))
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - low, 1 + high)
    return (weights * torch.maximum(plain, clipped)).sum(), (clipped > plain)[said].sum()


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Half the squared error of ``values``, or of ``values`` kept within ``clip`` of the old if larger, summed.

    As in OpenAI baselines' PPO2 (Huang et al. 2022, "The 37 Implementation Details of PPO", detail 9).

    Returns:
        Scalars: the summed loss, the number of tokens where the clipped error is the larger.
    """
    kept = old_values + (values - old_values).clamp(-clip, clip)
    plain, clipped = (values - returns) ** 2, (kept - returns) ** 2
    return 0.5 * torch.maximum(plain, clipped)[mask].sum(), (clipped > plain)[mask].sum()


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over the mask, a scalar: 1 perfect, 0 no better than a constant."""
    target = returns[mask]
    residual = target - values[mask]
    return 1 - residual.var(correction=0) / target.var(correction=0).clamp_min(1e-8)
