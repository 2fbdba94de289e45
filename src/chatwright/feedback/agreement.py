"""How far those who judge agree, and how right a perfect judge can be against them."""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

from chatwright.data.records import Comparison


def pairwise_agreement(comparisons: Sequence[Comparison]) -> tuple[float, int]:
    """The share of pairs of responses that two annotators of the same prompt order alike.

    As InstructGPT measured its labelers (Ouyang et al. 2022, section 3.4: 72.6%). Pairs that either calls a tie are
    left out; judgements by the same annotator are not compared with each other.

    Returns:
        The agreement (nan when nothing was judged twice) and the number of pairs of judgements it rests on.
    """
    judged = defaultdict(list)  # for two responses to a prompt, who judged them and whether the first is the better
    for comparison in comparisons:
        ranks = dict(zip(comparison.responses, comparison.ranks, strict=True))
        for a, b in combinations(sorted(ranks), 2):
            if ranks[a] != ranks[b]:
                judged[comparison.messages, a, b].append((comparison.annotator, ranks[a] < ranks[b]))
    pairs = [pair for verdicts in judged.values() for pair in combinations(verdicts, 2)]
    alike = [one[1] == other[1] for one, other in pairs if one[0] != other[0]]
    return (sum(alike) / len(alike) if alike else math.nan), len(alike)


def expected_agreement(utilities: Sequence[Sequence[float]], noise: float) -> float:
    """The agreement of two annotators who rank by Plackett-Luce with scale ``noise`` (closed form).

    The order of two responses under utility + Gumbel noise is logistic: with p = sigmoid(difference / noise) two
    annotators agree with probability p^2 + (1 - p)^2. Responses of equal utility are ties and do not count.

    Args:
        utilities: for every prompt those of its responses.
    """
    right = _right(utilities, noise)
    return sum(p * p + (1 - p) ** 2 for p in right) / len(right)


def accuracy_ceiling(utilities: Sequence[Sequence[float]], noise: float) -> float:
    """The share of an annotator's pairs that a judge who knows the utilities orders alike (closed form)."""
    right = _right(utilities, noise)
    return sum(right) / len(right)


def accuracy_ceiling_from_agreement(agreement: float) -> float:
    """The highest accuracy that a judge can have against annotators of this agreement, when no utilities are known.

    Solves agreement = p^2 + (1 - p)^2, which is exact if all pairs are equally hard and an upper bound (Jensen) if not.
    """
    return (1 + math.sqrt(max(0.0, 2 * agreement - 1))) / 2


def _right(utilities: Sequence[Sequence[float]], noise: float) -> list[float]:
    """How likely an annotator of this noise, 0 being none, orders each pair that is no tie as the utilities do."""
    differences = (abs(a - b) for values in utilities for a, b in combinations(values, 2) if a != b)
    return [1 / (1 + math.exp(-difference / noise)) if noise else 1.0 for difference in differences]
