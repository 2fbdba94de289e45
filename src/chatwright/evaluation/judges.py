"""Which of two assistants answers better, by a judge that trained neither of them."""

from collections.abc import Callable, Sequence

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
        ``score`` in [0, 1] with ties as half a win, its 95% interval ``low`` and ``high`` (Wilson; ties make it a bit
        wider than need be), ``n`` pairs and how many of them were ``ties``.
    """
    wins = ties = 0
    for prompt, one, other in zip(prompts, first, second, strict=True):
        better, worse = judge(prompt, one), judge(prompt, other)
        wins += better > worse
        ties += better == worse
    score = metrics.Score.of(wins + ties / 2, len(prompts), chance=0.5)
    return {"score": score.score, "low": score.low, "high": score.high, "n": score.n, "ties": ties}
