"""Comparisons as rows: several judges of the same responses, and the numbers that they gave."""

import math

import pytest

from chatwright.data import rankings
from chatwright.data.records import Comparison, Message
from chatwright.data.store import load, save
from chatwright.errors import ChatwrightError

ASK = (Message.of("user", "Is it red?"),)


def judged(ranks, annotator, **meta):
    return Comparison(ASK, ("yes", "no", "a longer answer"), ranks, annotator, "ranking", meta)


def test_ratings_stay_with_their_judge_and_their_response(renderer):
    other = Comparison((Message.of("user", "Is it?"),), ("a", "b"), (0, 1), "p", "pair")
    both = [judged((0, 1, 2), "p", ratings=[7, None, 1.5]), judged((0, 1, 1), "q", ratings=[6, 2, None])]
    (group, plain) = rankings.render_all(renderer, [*both, other], 1000)
    assert group.ratings[0] == pytest.approx([7, math.nan, 1.5], nan_ok=True)
    assert group.rated == [7, 1.5, 6, 2] and plain.rated == []
    batch = rankings.collate(renderer, [group, plain])
    expected = [[7, 6], [math.nan, 2], [1.5, math.nan], [math.nan] * 2, [math.nan] * 2]
    assert batch["comparison.ratings"].tolist() == [pytest.approx(row, nan_ok=True) for row in expected]
    shorter = len(group.rows[0])
    (kept,) = rankings.render_all(renderer, both, shorter)
    assert kept.places == [0, 1] and kept.rated == [7, 6, 2]  # what is too long takes its rating along


@pytest.mark.parametrize("name", ["rated.jsonl", "rated.parquet"])
@pytest.mark.parametrize("ratings", [[1, 2], 3, ["a", 1, 2], [True, 1, 2], [1, 2, math.inf]])
def test_ratings_that_are_no_numbers_are_named(renderer, tmp_path, name, ratings):
    path = tmp_path / name
    save([judged((0, 1, 2), "p"), judged((0, 1, 2), "p", ratings=ratings)], path)
    with pytest.raises(ChatwrightError) as caught:
        rankings.render_all(renderer, load(path, Comparison), 1000)
    expected = (
        f"{path}:2: meta.ratings: is {ratings!r:.40}; write 3 numbers, one for each response, null where there is none"
    )
    assert str(caught.value) == expected


def test_ratings_alone_rank_the_responses(write):
    path = write({"messages": [{"role": "user", "content": "Is it red?"}], "responses": ["a", "b", "c", "d"],
                  "ratings": [2, 5.5, 2, 1]})  # fmt: skip
    (comparison,) = load(path, Comparison)
    assert comparison.ranks == (1, 0, 1, 3) and comparison.meta == {"ratings": [2, 5.5, 2, 1]}


@pytest.mark.parametrize("ratings", [[1, None], [1], "12"])
def test_ratings_that_cannot_rank_are_named(write, ratings):
    path = write({"messages": [{"role": "user", "content": "?"}], "responses": ["a", "b"], "ratings": ratings})
    with pytest.raises(ChatwrightError) as caught:
        load(path, Comparison)
    assert str(caught.value) == f"{path}:1: ratings: is {ratings!r}; write 2 numbers, or `ranks` beside them"
