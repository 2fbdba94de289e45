"""How far a policy can be optimised against a proxy before the gold reward falls."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chatwright.errors import ChatwrightError
from chatwright.evaluation.artifacts import count_parameters, read_json, read_lines, read_reward
from chatwright.evaluation.findings import Chart, Findings, Series, Table
from chatwright.evaluation.overoptimization import Course, Fit, Method, fit
from chatwright.models.load import checkpoint_of
from chatwright.stages.base import Stage

PARTS = 12  # points of a chart that an rl run becomes
METHODS: dict[Method, str] = {"best_of_n": "Best of n", "rl": "Reinforcement learning"}
DISTANCE = "square root of KL from the initial policy, in nats"


@dataclass
class Proxy:
    """A reward model that was optimised against.

    Args:
        reward: folder of its reward stage. data: comparisons that it learned from.
        bestofn, rl: folders of the stages that optimised it, both from the same initial policy and with the same gold.
    """

    reward: Path
    data: int
    bestofn: Path
    rl: Path


@dataclass(frozen=True)
class Measured:
    """A proxy with its size, its held-out accuracy, and what became of it."""

    parameters: int
    data: int
    accuracy: float
    courses: dict[Method, Course]
    fits: dict[Method, Fit]


@dataclass
class Overoptimization(Stage):
    """Gold and proxy reward over KL for best-of-n and rl, and the curves through them.

    Gao, Schulman & Hilton 2022, "Scaling Laws for Reward Model Overoptimization", https://arxiv.org/abs/2210.10760.
    Rewards are 0 for the initial policy, in standard deviations of what its answers score, as the bestofn stage of the
    proxy found them. ``metrics.jsonl`` of an rl stage has one line a round where ``training.log_every`` is epochs x
    minibatches; as its answers of a round are to prompts that it has not learned from yet, as long as none repeats,
    they are as good as held-out.

    Writes ``findings.json``: for every proxy ``best_of_n`` and ``rl``, each with alpha, beta and r2 of its curve, the
    ``peak`` of gold, its ``end``, and the ``fall`` between the two; and the gold of both at ``equal_kl``, the farthest
    that best-of-n went.

    Args:
        proxies: by name. Those of the most frequent ``data`` show what size does, those of the most frequent size what
            data does.
    """

    proxies: dict[str, Proxy]

    def run(self, out: Path) -> None:
        if not self.proxies:
            raise ChatwrightError("no proxies; name at least one with its reward, data, bestofn and rl")
        found = {name: _measure(proxy) for name, proxy in self.proxies.items()}
        charts = [_rewards(found, method, what) for method in METHODS for what in ("gold", "proxy")]
        charts += [chart for by in ("parameters", "data") for chart in _coefficients(found, by)]
        Findings(
            "Overoptimisation",
            "What a gold reward model says of a policy that is optimised against proxies fitted on its judgements. "
            "Rewards are 0 for the initial policy, in standard deviations over its answers. With d the square root of "
            "KL, curves are d (alpha - beta d) for best of n and d (alpha - beta log d) for reinforcement learning "
            "(Gao et al. 2022).",
            {name: _numbers(measured) for name, measured in found.items()},
            charts,
            [_table(found)],
        ).save(out)


def _measure(proxy: Proxy) -> Measured:
    best = read_json(proxy.bestofn / "scores.json")
    if "gold" not in best:
        raise ChatwrightError(f"{proxy.bestofn}: no gold in its scores.json; run bestofn with gold=<a reward model>")
    zero = {"proxy": best["best_of"]["1"], "gold": best["gold"]["1"]}
    unit = {"proxy": best["deviation"]["score"], "gold": best["deviation"]["gold"]}

    def point(kl: float, score: float, gold: float) -> tuple[float, float, float]:
        return kl, (score - zero["proxy"]) / unit["proxy"], (gold - zero["gold"]) / unit["gold"]

    n = len(best["best_of"])
    # Doubling k: the points of all k would lie ever denser, and the last ones alone decide what the curve looks like.
    sizes = [str(k) for k in sorted({*(2**i for i in range(n.bit_length())), n})]
    chosen = [point(best["kl"][k], best["best_of"][k], best["gold"][k]) for k in sizes]
    lines = read_lines(proxy.rl / "metrics.jsonl")
    if not lines or any("gold" not in line for line in lines):
        raise ChatwrightError(f"{proxy.rl}: no gold in its metrics.jsonl; run rl with gold=<a reward model>")
    # What bestofn calls the score is without the penalty for answers that do not end.
    learned = [point(line["kl"], line.get("reward_model", 0) + line.get("verifier", 0), line["gold"]) for line in lines]
    return Measured(
        count_parameters(checkpoint_of(proxy.reward)),
        proxy.data,
        read_reward(proxy.reward)["accuracy"],
        {"best_of_n": Course.of(chosen, len(chosen)), "rl": Course.of(learned, PARTS)},
        {"best_of_n": _curve("best_of_n", chosen), "rl": _curve("rl", learned)},
    )


def _curve(method: Method, points: Sequence[tuple[float, float, float]]) -> Fit:
    return fit(method, [kl for kl, _, _ in points], [gold for _, _, gold in points])


def _numbers(measured: Measured) -> dict[str, Any]:
    farthest = measured.courses["best_of_n"].end["kl"]
    numbers: dict[str, Any] = {
        "parameters": measured.parameters,
        "data": measured.data,
        "accuracy": measured.accuracy,
        "equal_kl": {"kl": farthest, **{method: course.at(farthest) for method, course in measured.courses.items()}},
    }
    for method, course in measured.courses.items():
        curve = measured.fits[method]
        numbers[method] = {
            "alpha": curve.alpha,
            "beta": curve.beta,
            "r2": curve.r2,
            "curve_peak_kl": curve.peak,
            "peak": course.peak,
            "end": course.end,
            "fall": course.fall,
        }
    return numbers


def _rewards(found: dict[str, Measured], method: Method, what: str) -> Chart:
    """One colour a proxy: the gold reward with its curve, or the proxy's own."""
    series = []
    for colour, (name, measured) in enumerate(found.items()):
        course = measured.courses[method]
        far = [math.sqrt(max(0.0, kl)) for kl in course.kl]
        if what == "proxy":
            series.append(Series(name, far, course.proxy, colour=colour))
            continue
        low, high = (course.low, course.high) if max(course.n) > 1 else (None, None)
        series.append(Series(name, far, course.gold, low, high, "points", colour))
        smooth = np.linspace(0, max(far), 60).tolist()
        curve = [measured.fits[method].at(d**2) for d in smooth]
        series.append(Series("", smooth, curve, style="curve", colour=colour))
    text = (
        "What the gold reward model says of the answers; dashed, the fitted curve."
        if what == "gold"
        else "What the reward model that is optimised against says of the same answers."
    )
    return Chart(f"{METHODS[method]}: {what} reward", text, DISTANCE, "standard deviations", series)


def _coefficients(found: dict[str, Measured], by: str) -> list[Chart]:
    """alpha and beta of both methods over the size of the proxies, or over their data, all else being equal."""
    other = "data" if by == "parameters" else "parameters"
    usual = Counter(getattr(measured, other) for measured in found.values()).most_common(1)[0][0]
    alike = sorted((m for m in found.values() if getattr(m, other) == usual), key=lambda m: getattr(m, by))
    if len(alike) < 2:
        return []
    sizes = [getattr(measured, by) for measured in alike]
    unit = "parameters of the reward model" if by == "parameters" else "comparisons that it learned from"
    return [
        Chart(
            f"{METHODS[method]}: coefficients over {by}",
            f"All with {usual:,} {'comparisons' if other == 'data' else other}.",
            unit,
            "coefficient",
            [Series(name, sizes, [getattr(m.fits[method], name) for m in alike]) for name in ("alpha", "beta")],
            log_x=True,
        )
        for method in METHODS
    ]


def _table(found: dict[str, Measured]) -> Table:
    columns = (
        "proxy",
        "parameters",
        "comparisons",
        "accuracy",
        "method",
        "alpha",
        "beta",
        "R²",
        "highest gold",
        "at KL",
        "gold at the end",
        "at KL",
    )
    rows = []
    for name, measured in found.items():
        for method, title in METHODS.items():
            curve, course = measured.fits[method], measured.courses[method]
            rows.append((
                name, measured.parameters, measured.data, round(measured.accuracy, 3), title, round(curve.alpha, 3),
                round(curve.beta, 3), round(curve.r2, 3), round(course.peak["score"], 3), round(course.peak["kl"], 2),
                round(course.end["score"], 3), round(course.end["kl"], 2),
            ))  # fmt: skip
    text = "Gold rewards in standard deviations over the initial policy's answers; accuracy on held-out comparisons."
    return Table("Proxies and how far they carried", text, columns, rows)
