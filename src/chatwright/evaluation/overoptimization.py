"""How the gold reward rises and falls while a proxy is optimised.

Gao, Schulman & Hilton 2022, "Scaling Laws for Reward Model Overoptimization", https://arxiv.org/abs/2210.10760. With
d = sqrt(KL(policy || initial policy)) the gold reward, 0 for the initial policy, is

    best-of-n: R(d) = d (alpha - beta d)          reinforcement learning: R(d) = d (alpha - beta log d)

alpha is what a unit of distance is worth at first, beta how soon that is lost.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Method = Literal["best_of_n", "rl"]


@dataclass(frozen=True)
class Fit:
    """R(d) = d (alpha - beta d), or d (alpha - beta log d), with the share ``r2`` of the variance that it explains."""

    method: Method
    alpha: float
    beta: float
    r2: float

    def at(self, kl: float) -> float:
        """The gold reward at a KL of so many nats."""
        d = math.sqrt(kl)
        return d * (self.alpha - self.beta * _bend(self.method, d))

    @property
    def peak(self) -> float | None:
        """The KL, in nats, from which on the gold reward falls; None where the curve has no highest point."""
        if self.beta <= 0 or (self.alpha <= 0 and self.method == "best_of_n"):
            return None
        return (
            self.alpha / (2 * self.beta) if self.method == "best_of_n" else math.exp(self.alpha / self.beta - 1)
        ) ** 2


def fit(method: Method, kl: Sequence[float], gold: Sequence[float]) -> Fit:
    """Least squares; the curves are linear in alpha and beta.

    Args:
        kl: in nats; points without distance (an estimate of 0 or below) say nothing and are left out.
        gold: as many, 0 being the initial policy's.
    """
    points = [(math.sqrt(k), g) for k, g in zip(kl, gold, strict=True) if k > 0]
    d, reward = np.array(points).reshape(-1, 2).T
    columns = np.stack([d, [-x * _bend(method, x) for x in d]], 1)
    (alpha, beta), *_ = np.linalg.lstsq(columns, reward)
    error = ((reward - columns @ (alpha, beta)) ** 2).sum()
    return Fit(method, float(alpha), float(beta), float(1 - error / ((reward - reward.mean()) ** 2).sum()))


def _bend(method: Method, d: float) -> float:
    return d if method == "best_of_n" else math.log(d) if d else 0.0


@dataclass(frozen=True)
class Course:
    """A proxy being optimised: points of rising distance, with the gold reward of each, its interval and its proxy.

    n: how many measurements each gold reward is the mean of. low, high: of 95%; equal to gold where it is not known.
    """

    kl: Sequence[float]
    proxy: Sequence[float]
    gold: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    n: Sequence[int]

    @classmethod
    def of(cls, measured: Sequence[tuple[float, float, float]], parts: int) -> "Course":
        """Neighbouring measurements (KL, proxy, gold) as their mean, so that so many points remain."""
        groups = np.array_split(np.array(measured, dtype=float).reshape(-1, 3), min(parts, len(measured)))
        means = np.array([group.mean(0) for group in groups])
        spread = [1.96 * group[:, 2].std(ddof=1) / math.sqrt(len(group)) if len(group) > 1 else 0.0 for group in groups]
        kl, proxy, gold = means.T.tolist()
        low, high = (means[:, 2] - spread).tolist(), (means[:, 2] + spread).tolist()
        return cls(kl, proxy, gold, low, high, [len(group) for group in groups])

    @property
    def peak(self) -> dict[str, float]:
        """Where the gold reward is highest."""
        return self._point(int(np.argmax(self.gold)))

    @property
    def end(self) -> dict[str, float]:
        return self._point(len(self.gold) - 1)

    @property
    def fall(self) -> dict[str, float]:
        """How much lower the gold reward is at the end than where it is highest.

        Its interval neglects that the highest of several points is likely to be one that chance favoured.
        """
        peak, end = self.peak, self.end
        fall = peak["score"] - end["score"]
        around = math.hypot(peak["high"] - peak["score"], end["high"] - end["score"])
        return {"score": fall, "low": fall - around, "high": fall + around, "n": end["n"]}

    def at(self, kl: float) -> float:
        """The gold reward at a KL of so many nats, between the two points around it."""
        kls, golds = zip(*sorted(zip(self.kl, self.gold, strict=True)), strict=True)
        return float(np.interp(kl, kls, golds))

    def _point(self, place: int) -> dict[str, float]:
        return {
            "score": self.gold[place],
            "low": self.low[place],
            "high": self.high[place],
            "n": self.n[place],
            "kl": self.kl[place],
            "proxy": self.proxy[place],
        }
