import pytest

from chatwright.data.records import Message, Prompt
from chatwright.errors import ChatwrightError
from chatwright.evaluation import metrics
from chatwright.evaluation.judges import win_rate


def prompt(reference, choices=(), score="contains") -> Prompt:
    return Prompt((Message.of("user", "?"),), reference, choices, score)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    # Agresti and Coull (1998) and the epitools calculator.
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662), (0, 0, 0.0, 1.0)],
)
def test_wilson_interval(right, n, low, high):
    assert metrics.wilson(right, n) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(
    ("asked", "text", "right"),
    [
        (prompt("dog", score="exact"), " Dog. ", True),
        (prompt("dog", score="exact"), "a dog", False),
        (prompt("狗", score="exact"), "狗。", True),
        (prompt("狗"), "这是一只狗。", True),
        (prompt("dog"), "A dog!", True),
        (prompt("dog"), "dogma", False),
        (prompt("dog", ("dog", "cat")), "It is a dog.", True),
        (prompt("dog", ("dog", "cat")), "A dog or a cat.", False),
        (prompt("dog", ("dog", "cat")), "A fish.", False),
        (prompt("apple", ("apple", "green apple")), "A green apple", False),
        (prompt("dog", ("dog", "cat"), "choice"), "dog", True),
        (prompt("dog", ("dog", "cat"), "choice"), "cat", False),
        (prompt("dog"), "", False),
    ],
)
def test_answers_are_checked(asked, text, right):
    assert metrics.correct(asked, text) is right


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (prompt("dog", score="guess"), "unknown score 'guess'"),
        (prompt(None), "without a reference"),
        (prompt("dog", ("cat", "cow")), "not among the choices"),
        (prompt("dog", score="choice"), "needs `choices`"),
    ],
)
def test_a_prompt_that_cannot_be_scored_is_refused(asked, message):
    with pytest.raises(ChatwrightError, match=message):
        metrics.kind_of(asked)


def test_chance_is_one_of_the_choices():
    assert metrics.chance([prompt("a", ("a", "b")), prompt("a", ("a", "b", "c", "d")), prompt("a")]) == 0.25
    assert metrics.chance([]) == 0


def test_win_rate_counts_ties_half():
    asked = [prompt("dog")] * 4
    result = win_rate(asked, ["dog", "dog", "cat", "cat"], ["cat", "dog", "cat", "dog"])
    assert result["score"] == 0.5 and result["ties"] == 2 and result["n"] == 4
    result = win_rate(asked, ["dog"] * 4, ["cat", "cat", "cat", "a dog"])
    assert result["score"] == 0.875
    assert result["low"] < 0.875 < result["high"] <= 1


def test_a_win_rate_mirrors():
    asked = [prompt("dog")] * 3
    first, second = ["dog", "dog", "cat"], ["cat", "dog", "cat"]
    one, other = win_rate(asked, first, second), win_rate(asked, second, first)
    assert one["score"] == pytest.approx(1 - other["score"])
    assert one["low"] == pytest.approx(1 - other["high"])


def test_prompts_with_truth_are_checked_against_it():
    """A digit is as good as the word, and of two right answers the judge prefers the more helpful."""
    truth = {"things": [{"name": "dog", "kind": "animal", "x": 0.5, "y": 0.5, "size": 0.5}] * 3, "asked": ["dog"]}
    counted = Prompt(
        (Message.of("user", "How many dogs are there?"),),
        reference="three",
        choices=("one", "two", "three", "four", "five"),
        meta={"task": "counting", "language": "en", "split": "test", "truth": truth},
    )
    assert metrics.kind_of(counted) == "contains"
    assert metrics.correct(counted, "There are 3 dogs.")
    assert not metrics.correct(counted, "There are two dogs.")
    assert win_rate([counted], ["There are three dogs."], ["three"])["score"] == 1
    assert win_rate([counted], ["three"], ["There are two dogs. A dog is an animal."])["score"] == 1
