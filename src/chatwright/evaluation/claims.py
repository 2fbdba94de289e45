"""Claims: sentences that the numbers of a report make true or false."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatwright.errors import ChatwrightError


@dataclass
class Claim:
    """A sentence that a number of the report makes true or false.

    ``measure`` is the number's dotted path in ``report.json`` ("arms.sft.counting.score"). It is to be ``at_least`` a
    number, or ``times`` the number at ``of``, or not more than ``within`` below the number at ``of``, or ``above`` it.
    ``unit`` is what it is shown in: "%" for shares, or any other, such as "nats".
    """

    says: str
    measure: str
    at_least: float | None = None
    times: float | None = None
    within: float | None = None
    above: bool = False
    of: str | None = None
    unit: str = "%"


@dataclass(frozen=True)
class Verdict:
    """A claim beside its measurement; ``reached`` is None where the run did not measure it."""

    says: str
    measure: str
    target: float | None
    score: float | None
    low: float | None
    high: float | None
    n: int | None
    reached: bool | None
    rule: str
    unit: str = "%"

    @property
    def close(self) -> bool:
        """Whether the target lies inside the interval, so that chance may have decided."""
        return None not in (self.low, self.high, self.target) and self.low <= self.target <= self.high  # type: ignore[operator]


def judge(claim: Claim, numbers: Mapping[str, Any]) -> Verdict:
    """Hold a claim against the numbers of a report.

    Raises:
        ChatwrightError: the claim names no target, or more than one.
    """
    rules = [claim.at_least is not None, claim.times is not None, claim.within is not None, claim.above]
    if sum(rules) != 1 or (claim.at_least is None) == (claim.of is None):
        raise ChatwrightError(
            f"claim {claim.says!r}: give either at_least, or of with one of times, within or above; nothing else"
        )
    score, around = lookup(numbers, claim.measure), lookup_object(numbers, claim.measure)
    base = None if claim.of is None else lookup(numbers, claim.of)
    target: float | None
    if claim.at_least is not None:
        target, rule = claim.at_least, f"at least {quantity(claim.at_least, claim.unit)}"
    elif base is None:
        target, rule = None, f"compared with {claim.of}"
    elif claim.times is not None:
        target = claim.times * base
        rule = f"at least {claim.times:g} × {quantity(base, claim.unit)} = {quantity(target, claim.unit)}"
    elif claim.within is not None:
        target = base - claim.within
        less = f"{100 * claim.within:g} points" if claim.unit == "%" else quantity(claim.within, claim.unit)
        rule = f"at most {less} below {quantity(base, claim.unit)}"
    else:
        target, rule = base, f"above {quantity(base, claim.unit)}"
    reached = None
    if score is not None and target is not None:
        reached = score > target if claim.above else score >= target
    low, high, n = (around.get(key) for key in ("low", "high", "n"))
    return Verdict(claim.says, claim.measure, target, score, low, high, n, reached, rule, claim.unit)


def lookup(numbers: Mapping[str, Any], path: str) -> float | None:
    """The number at a dotted path, None where there is none."""
    value = lookup_object(numbers, path).get(path.rsplit(".", 1)[-1])
    return value if isinstance(value, int | float) else None


def lookup_object(numbers: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """The object that holds the number at a dotted path, empty where there is none."""
    here: Any = numbers
    for key in path.split(".")[:-1]:
        here = here.get(key) if isinstance(here, Mapping) else None
    return here if isinstance(here, Mapping) else {}


def mean_of(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of several tasks' scores as one score; every task weighs the same.

    The interval treats the tasks as independent: its half-widths are the root of the sum of squares of theirs, divided
    by their number. Languages and splits are averaged over the tasks that have them.
    """
    count = len(scores)
    mean: dict[str, Any] = {key: sum(score[key] for score in scores) / count for key in ("score", "chance")}
    mean["low"] = mean["score"] - math.sqrt(sum((score["score"] - score["low"]) ** 2 for score in scores)) / count
    mean["high"] = mean["score"] + math.sqrt(sum((score["high"] - score["score"]) ** 2 for score in scores)) / count
    mean["n"] = sum(score["n"] for score in scores)
    for key in ("by_language", "by_split"):
        parts = defaultdict(list)
        for score in scores:
            for name, part in score.get(key, {}).items():
                parts[name].append(part)
        if parts:
            mean[key] = {name: mean_of(found) for name, found in parts.items()}
    return mean


def with_means(scores: dict[str, Any], means: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """An arm's scores after the means of those that it was scored on."""
    found = {name: [scores[task] for task in group if task in scores] for name, group in means.items()}
    return {name: mean_of(group) for name, group in found.items() if group} | scores


def quantity(value: float, unit: str) -> str:
    """A measured number as people read it: 0.8742 -> "87.4%", or "0.87 nats"."""
    return percent(value) if unit == "%" else f"{value:.3g} {unit}".replace("-", "−")


def percent(value: float) -> str:
    """A share in per cent with one decimal: 0.8742 -> "87.4%"."""
    return f"{100 * value:.1f}%"
