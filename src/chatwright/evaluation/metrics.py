"""Scores and how sure one can be of them.

How an answer is checked (`Prompt.score`):

- "exact": it is the reference, apart from case, width, punctuation and spacing (`chatwright.data.answers.normalise`).
- "contains": of the prompt's choices exactly the reference occurs in it, or, without choices, the reference occurs.
- "choice": nothing is generated; of the prompt's choices the one counts as the answer whose log-likelihood after the
  prompt, divided by its length in characters, is highest. This is ``acc_norm`` of lm-evaluation-harness (Gao et al.),
  which the field reports for answers of unequal length.

Prompts that `chatwright.data.instruct` made carry the truth about their picture; `chatwright.data.truth` checks them.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from chatwright.data import answers, truth
from chatwright.data.records import Prompt
from chatwright.errors import ChatwrightError

KINDS = ("exact", "contains", "choice")


@dataclass(frozen=True)
class Score:
    """A share of right answers.

    Attributes:
        score: the share, 0 to 1.
        low, high: its 95% interval.
        n: how many answers.
        chance: what guessing among the choices gives.
    """

    score: float
    low: float
    high: float
    n: int
    chance: float

    @classmethod
    def of(cls, right: float, n: int, chance: float) -> "Score":
        low, high = wilson(right, n)
        return cls(right / n if n else 0.0, low, high, n, chance)

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def wilson(right: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95% score interval of a proportion (Wilson 1927): honest for small n and for shares near 0 and 1.

    Args:
        right: successes; halves may count ties, for which the interval is then a little wider than need be.
        n: trials; 0 gives (0, 1).
    """
    if n == 0:
        return 0.0, 1.0
    share = right / n
    centre = share + z * z / (2 * n)
    margin = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - margin) / scale), min(1.0, (centre + margin) / scale)


def bootstrap(right: np.ndarray, groups: Sequence[Any], draws: int = 1000) -> tuple[float, float]:
    """95% bootstrap interval of a share; whole groups are drawn, for what is of one group is not independent.

    Args:
        right: [N, 2] what was right and what there was, of every row. groups: [N], hashable, equal within a group.
    """
    numbers: dict[Any, int] = {}
    place = [numbers.setdefault(group, len(numbers)) for group in groups]
    sums = np.zeros((len(numbers), 2))
    np.add.at(sums, place, right)
    chosen = np.random.default_rng(0).integers(len(sums), size=(draws, len(sums)))
    drawn = sums[chosen].sum(1)
    low, high = np.percentile(drawn[:, 0] / np.maximum(1, drawn[:, 1]), [2.5, 97.5])
    return float(low), float(high)


def is_from_instruct(prompt: Prompt) -> bool:
    return "truth" in prompt.meta


def kind_of(prompt: Prompt) -> str:
    """How the prompt is checked.

    Raises:
        ChatwrightError: there is no such way, or the prompt lacks what that way needs.
    """
    if is_from_instruct(prompt) and prompt.score == "contains":
        return "contains"
    if prompt.score not in KINDS:
        raise ChatwrightError(f"unknown score {prompt.score!r}; use one of {', '.join(KINDS)}")
    if prompt.reference is None:
        raise ChatwrightError("a prompt without a reference cannot be scored; add `reference`")
    if prompt.choices and prompt.reference not in prompt.choices:
        raise ChatwrightError(f"the reference {prompt.reference!r} is not among the choices; add it")
    if prompt.score == "choice" and not prompt.choices:
        raise ChatwrightError("a prompt with the score 'choice' needs `choices`; add them or use 'contains'")
    return prompt.score


def correct(prompt: Prompt, text: str) -> bool:
    """Whether an answer is right; for "choice" the text is the choice made."""
    if is_from_instruct(prompt):
        return truth.correct(prompt, text)
    kind, reference = kind_of(prompt), prompt.reference or ""
    if kind == "contains" and not prompt.choices:
        return answers.contains(text, reference)
    if kind == "contains":
        text = answers.find(text, prompt.choices) or ""
    return bool(text) and answers.normalise(text) == answers.normalise(reference)


def chance(prompts: Sequence[Prompt]) -> float:
    """The share of right answers that guessing gives: 1 of the choices, 0 where answers are open."""
    return sum(1 / len(prompt.choices) for prompt in prompts if prompt.choices) / max(1, len(prompts))
