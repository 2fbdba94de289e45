"""Which of two assistants answers better, by a judge that trained neither of them."""

from collections.abc import Callable, Sequence
from typing import Any

from chatwright.data import truth
from chatwright.data.records import Prompt
from chatwright.evaluation import metrics

Judge = Callable[[Prompt, str], tuple[float, ...]]
"""Prompt, answer -> how good it is; tuples are compared from the first number on."""


def right_then_helpful(prompt: Prompt, answer: str) -> tuple[float, ...]:
    """A right answer before a wrong one; of two right or two wrong ones the more helpful (prompts with truth only)."""
    helpful = truth.helpfulness(prompt, answer) if metrics.is_from_instruct(prompt) else 0.0
    return float(metrics.correct(prompt, answer)), helpful


def win_rate(
    prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str], judge: Judge = right_then_helpful
) -> dict[str, float]:
    """How often the judge prefers the first assistant's answers.

    Args:
        first, second: an answer of each assistant for every prompt.

    Returns:
        As `wins`.
    """
    goods = [[judge(*pair) for pair in zip(prompts, answers, strict=True)] for answers in (first, second)]
    return wins(*goods)


def wins(first: Sequence[Any], second: Sequence[Any]) -> dict[str, float]:
    """How often one of two is the better.

    Args:
        first, second: how good the answers of each are, to the same prompts; numbers or tuples of numbers.

    Returns:
        ``score`` in [0, 1] with ties as half a win, its 95% interval ``low`` and ``high`` (Wilson; ties make it a bit
        wider than need be), ``n`` pairs and how many of them were ``ties``.
    """
    pairs = list(zip(first, second, strict=True))
    ties = sum(one == other for one, other in pairs)
    score = metrics.Score.of(sum(one > other for one, other in pairs) + ties / 2, len(pairs), chance=0.5)
    return {"score": score.score, "low": score.low, "high": score.high, "n": score.n, "ties": ties}
