import math

import numpy as np
import pytest

from chatwright.evaluation.overoptimization import Course, fit


@pytest.mark.parametrize("method", ["best_of_n", "rl"])
def test_the_coefficients_that_made_the_points_come_back(method):
    kl = np.linspace(0, 25, 40)
    d = np.sqrt(kl)
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = np.nan_to_num(d * (0.9 - 0.3 * (d if method == "best_of_n" else np.log(d))))
    found = fit(method, [-0.1, *kl], [5.0, *exact])  # a negative estimate of KL is no distance
    assert (found.alpha, found.beta, found.r2) == pytest.approx((0.9, 0.3, 1))
    assert [found.at(x) for x in kl] == pytest.approx(exact.tolist())
    noisy = fit(method, kl, exact + np.random.default_rng(0).normal(scale=0.05, size=40))
    assert (noisy.alpha, noisy.beta) == pytest.approx((0.9, 0.3), abs=0.1) and 0.5 < noisy.r2 < 1


@pytest.mark.parametrize(("method", "peak"), [("best_of_n", (0.9 / 0.6) ** 2), ("rl", math.exp(2) ** 2)])
def test_gold_is_highest_at_the_peak(method, peak):
    kl = np.linspace(0.1, 100, 50)
    found = fit(
        method,
        kl,
        [math.sqrt(x) * (0.9 - 0.3 * (math.sqrt(x) if method == "best_of_n" else math.log(x) / 2)) for x in kl],
    )
    assert found.peak == pytest.approx(peak)
    assert found.at(peak) > max(found.at(0.98 * peak), found.at(1.02 * peak))


def test_a_reward_that_only_rises_has_no_peak():
    for method in ("best_of_n", "rl"):
        assert fit(method, [1, 4, 9, 16], [1, 2.2, 3.9, 6.5]).peak is None


def test_a_course_is_the_means_of_neighbours():
    measured = [(0.0, 0.0, 0.1), (1.0, 1.0, 0.3), (2.0, 2.0, 1.0), (3.0, 3.0, 1.4), (4.0, 4.0, 0.5), (5.0, 5.0, 0.5)]
    course = Course.of(measured, 3)
    assert course.kl == course.proxy == [0.5, 2.5, 4.5] and course.n == [2, 2, 2]
    assert course.gold == pytest.approx([0.2, 1.2, 0.5])
    assert course.at(1.5) == pytest.approx(0.7)
    around = 1.96 * 0.2  # the standard error of 1.0 and 1.4
    assert course.peak == pytest.approx(
        {"score": 1.2, "low": 1.2 - around, "high": 1.2 + around, "n": 2, "kl": 2.5, "proxy": 2.5}
    )
    assert course.fall == pytest.approx({"score": 0.7, "low": 0.7 - around, "high": 0.7 + around, "n": 2})
    assert Course.of(measured, 6).low == [gold for *_, gold in measured]  # single measurements have no interval
