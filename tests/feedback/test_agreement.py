import itertools
import math

import numpy as np
import pytest

from chatwright.data.records import Comparison, Message
from chatwright.feedback.agreement import (
    accuracy_ceiling,
    accuracy_ceiling_from_agreement,
    expected_agreement,
    pairwise_agreement,
)
from chatwright.feedback.annotators import SimulatedAnnotator


def comparison(annotator, ranks, question="?", responses=("a", "b", "c")):
    return Comparison((Message.of("user", question),), responses, ranks, annotator, "test")


def test_agreement_counts_the_pairs_that_both_order():
    one, other = comparison("x", (0, 1, 2)), comparison("y", (1, 0, 2))
    assert pairwise_agreement([one, other]) == (2 / 3, 3)  # they differ on a against b only


def test_agreement_finds_responses_shown_in_another_order():
    one, other = comparison("x", (0, 1, 2)), comparison("y", (2, 1, 0), responses=("c", "b", "a"))
    assert pairwise_agreement([one, other]) == (1.0, 3)


def test_ties_the_same_annotator_and_other_prompts_do_not_count():
    tied = [comparison("x", (0, 0, 1)), comparison("y", (0, 1, 2))]
    assert pairwise_agreement(tied)[1] == 2
    alone = [comparison("x", (0, 1, 2)), comparison("x", (2, 1, 0)), comparison("y", (0, 1, 2), question="!")]
    agreement, count = pairwise_agreement(alone)
    assert count == 0 and math.isnan(agreement)


def test_expected_agreement_and_ceiling_are_what_many_annotators_show():
    rng = np.random.default_rng(0)
    utilities = [tuple(rng.choice([0.0, 0.5, 1.0, 2.0], 4)) for _ in range(400)]
    noise = 0.8
    judges = [SimulatedAnnotator(f"judge {i}", noise) for i in range(4)]
    ranks = [[judge.rank(values, item) for item, values in enumerate(utilities)] for judge in judges]
    alike, right = [], []
    for one, other in itertools.combinations(ranks, 2):
        for values, first, second in zip(utilities, one, other, strict=True):
            for i, j in itertools.combinations(range(4), 2):
                if values[i] != values[j]:
                    alike.append((first[i] < first[j]) == (second[i] < second[j]))
                    right.append((values[i] > values[j]) == (first[i] < first[j]))
    assert np.mean(alike) == pytest.approx(expected_agreement(utilities, noise), abs=0.02)
    assert np.mean(right) == pytest.approx(accuracy_ceiling(utilities, noise), abs=0.02)


def test_the_ceiling_from_agreement_is_exact_for_equal_pairs_and_a_bound_for_others():
    same = [(0.0, 1.0)] * 5
    assert accuracy_ceiling_from_agreement(expected_agreement(same, 0.7)) == pytest.approx(accuracy_ceiling(same, 0.7))
    mixed = [(0.0, 0.1), (0.0, 3.0)]
    assert accuracy_ceiling_from_agreement(expected_agreement(mixed, 0.7)) > accuracy_ceiling(mixed, 0.7)
