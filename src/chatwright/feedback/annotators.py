"""Simulated annotators: they rank responses by what is good about them, and err as often as people do."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chatwright.data.records import Prompt
from chatwright.data.truth import correct, helpfulness
from chatwright.errors import ChatwrightError
from chatwright.feedback.agreement import expected_agreement


@dataclass(frozen=True)
class SimulatedAnnotator:
    """Ranks by utility + Gumbel noise, which is drawing a ranking from Plackett-Luce (Luce 1959; Plackett 1975).

    ``noise`` is the scale of the noise in the units of the utility. Responses of equal utility look the same to the
    annotator: a tie. The same annotator judges the same item the same way, whatever was judged before.
    """

    id: str
    noise: float
    seed: int = 0

    def rank(self, utilities: Sequence[float], item: int | str) -> tuple[int, ...]:
        """The place of every response, 0 the best, ties equal; ``item`` names what is judged (it seeds the noise)."""
        name = f"{self.seed}/{self.id}/{item}".encode()
        noise = np.random.default_rng(int.from_bytes(hashlib.sha256(name).digest()[:8], "big"))
        levels = sorted(set(utilities))
        perceived = dict(zip(levels, np.array(levels) + self.noise * noise.gumbel(size=len(levels)), strict=True))
        places = {level: place for place, level in enumerate(sorted(levels, key=lambda u: -perceived[u]))}
        return tuple(places[utility] for utility in utilities)


def calibrate(utilities: Sequence[Sequence[float]], target: float = 0.73) -> float:
    """The noise at which two annotators agree on ``target`` of the pairs that are no tie (InstructGPT measured 72.6%).

    Args:
        utilities: for every prompt those of its responses.
        target: above 0.5 (chance); 1 is no noise.

    Raises:
        ChatwrightError: a target out of range, or no two responses of different utility.
    """
    if not 0.5 < target <= 1:
        raise ChatwrightError(f"agreement {target}: annotators agree on more than 0.5 and at most 1 of the pairs")
    if target == 1:
        return 0.0
    scales = [abs(a - b) for values in utilities for a in values for b in values if a != b]
    if not scales:
        raise ChatwrightError("all responses to every prompt are equally good; sample more of them or hotter")
    low, high = math.log(min(scales) / 100), math.log(max(scales) * 100)
    for _ in range(60):
        middle = (low + high) / 2
        if expected_agreement(utilities, math.exp(middle)) > target:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def utility(prompt: Prompt, text: str, finished: bool = True) -> float:
    """How good a response is, before any noise; only differences between responses to one prompt mean something.

    Where the prompt carries the truth about what it asks: 2 for a right answer and up to 1 for a helpful form. Where it
    carries a reference only: up to 2 for likeness to it and up to 0.5 for a sane length. 0.5 more for an answer that
    was not cut off.

    Raises:
        ChatwrightError: the prompt carries neither.
    """
    if "truth" in prompt.meta:
        worth = 2 * correct(prompt, text) + helpfulness(prompt, text)
    elif prompt.reference:
        worth = 2 * likeness(text, prompt.reference) + 0.5 * brevity(text, prompt.reference)
    else:
        raise ChatwrightError("simulated annotators judge by a reference and a prompt has none; add `reference` to it")
    return round(worth + 0.5 * finished, 6)


def likeness(text: str, reference: str, order: int = 6, beta: float = 2.0) -> float:
    """chrF (Popovic 2015): the F-score of character n-grams, 0 to 1; works in any language and needs no tokenizer."""
    text, reference = "".join(text.split()), "".join(reference.split())
    precisions, recalls = [], []
    for n in range(1, order + 1):
        ours = Counter(text[i : i + n] for i in range(len(text) - n + 1))
        theirs = Counter(reference[i : i + n] for i in range(len(reference) - n + 1))
        if theirs:
            common = (ours & theirs).total()
            precisions.append(common / max(1, ours.total()))
            recalls.append(common / theirs.total())
    if not recalls or not sum(recalls):
        return 0.0
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall)


def brevity(text: str, reference: str) -> float:
    """1 for a text as long as the reference, falling to 0 as it gets e times longer or shorter (in characters)."""
    return max(0.0, 1 - abs(math.log(max(1, len(text.strip())) / max(1, len(reference.strip())))))
