import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatwright.data.records import Comparison, Message, Prompt
from chatwright.errors import ChatwrightError
from chatwright.feedback.agreement import accuracy_ceiling, expected_agreement, pairwise_agreement
from chatwright.feedback.annotators import SimulatedAnnotator, brevity, calibrate, likeness, utility


@pytest.mark.parametrize("target", [0.65, 0.73, 0.9])
def test_calibrated_annotators_agree_as_often_as_asked(target):
    rng = np.random.default_rng(1)
    utilities = [tuple((rng.random(5) < 0.5) + 0.2 * rng.random(5)) for _ in range(500)]
    noise = calibrate(utilities, target)
    comparisons = [
        Comparison(
            (Message.of("user", f"question {item}"),),
            tuple("abcde"),
            SimulatedAnnotator(name, noise).rank(values, item),
            name,
            "simulated",
        )
        for item, values in enumerate(utilities)
        for name in ("one", "two", "three")
    ]
    agreement, count = pairwise_agreement(comparisons)
    assert count == 500 * 10 * 3
    assert agreement == pytest.approx(target, abs=0.02)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.floats(0.01, 10))
def test_ranks_are_places_with_ties_exactly_where_utilities_are_equal(utilities, noise):
    ranks = SimulatedAnnotator("x", noise).rank(utilities, 0)
    assert set(ranks) == set(range(len(set(utilities))))
    assert len(set(zip(utilities, ranks, strict=True))) == len(set(ranks))


def test_without_noise_the_best_comes_first_and_with_it_annotators_differ():
    assert SimulatedAnnotator("x", 1e-9).rank([0.1, 3.0, 0.1, -1.0], "q") == (1, 0, 1, 2)
    noisy = {SimulatedAnnotator(name, 5.0).rank([1.0, 2.0, 3.0, 4.0], "q") for name in "abcdef"}
    assert len(noisy) > 1
    assert SimulatedAnnotator("a", 5.0).rank([1, 2, 3], "q") == SimulatedAnnotator("a", 5.0).rank([1, 2, 3], "q")


def test_calibrating_without_any_difference_is_an_error():
    with pytest.raises(ChatwrightError, match="equally good"):
        calibrate([(1.0, 1.0), (0.0,)])
    with pytest.raises(ChatwrightError, match="agreement"):
        calibrate([(1.0, 0.0)], target=0.4)


def test_annotators_who_always_agree_do_not_err():
    utilities = [(0.3, 0.1, 0.2), (1.0, 2.0)]
    noise = calibrate(utilities, target=1)
    assert [SimulatedAnnotator("ann", noise).rank(values, i) for i, values in enumerate(utilities)] == [
        (0, 2, 1),
        (1, 0),
    ]
    assert expected_agreement(utilities, noise) == accuracy_ceiling(utilities, noise) == 1


def test_likeness_orders_answers_in_both_languages():
    assert likeness("a red apple", "a red apple") == 1
    assert 0 < likeness("a red car", "a red apple") < 1
    assert likeness("a red car", "a red apple") > likeness("the moon", "a red apple")
    assert likeness("红色的苹果", "红苹果") > likeness("汽车", "红苹果")
    assert likeness("", "a red apple") == likeness("a", "") == 0


def test_brevity_falls_with_the_ratio_of_lengths():
    assert brevity("12345678", "abcdefgh") == 1
    assert brevity("x" * 16, "y" * 8) == pytest.approx(brevity("x" * 4, "y" * 8)) == pytest.approx(1 - math.log(2))
    assert brevity("x" * 100, "y") == 0


def test_right_answers_are_worth_more_than_helpful_ones_and_both_more_than_neither():
    truth = {"things": [{"name": "dog", "kind": "animal", "x": 0, "y": 0, "size": 9}], "asked": []}
    question = Prompt(
        (Message.of("user", "What is this?"),),
        "dog",
        ("dog", "cat"),
        "choice",
        {"task": "naming", "language": "en", "truth": truth},
    )
    answers = ["It is a dog. A dog is an animal.", "It is a dog.", "dog", "It is a cat.", "cat"]
    worth = [utility(question, answer) for answer in answers]
    assert worth == sorted(worth, reverse=True) and len(set(worth)) == len(worth)
    assert worth[2] - worth[3] > 1
    assert utility(question, "dog", finished=False) < utility(question, "dog")


def test_without_truth_the_reference_decides_and_without_both_nothing_does():
    question = Prompt((Message.of("user", "Name a fruit."),), "An apple is a fruit.")
    near, far = utility(question, "An apple is a fruit."), utility(question, "Cars are loud, are they not, my friend?")
    assert near == 3 and far < 1.5
    with pytest.raises(ChatwrightError, match="reference"):
        utility(Prompt(question.messages), "An apple")
