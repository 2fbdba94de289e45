"""ratings as a user runs it, on a part of the real ratings."""

import json

import pytest

from chatwright.data.records import Comparison, Demonstration, Document, Prompt
from chatwright.data.sources import vader
from chatwright.data.store import load
from chatwright.errors import ChatwrightError
from chatwright.stages.base import execute
from chatwright.stages.ratings import QUESTIONS, Ratings


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ratings") / "out"
    execute(Ratings(limit=6, heldout=0.25, prompts=100, prompts_heldout=50), folder)
    return folder


def texts_of(folder, name):
    return {text for one in load(folder / f"{name}.parquet", Comparison) for text in one.responses}


def test_what_is_held_out_is_in_nothing_else(out):
    taught = {document.text for document in load(out / "documents.parquet", Document)}
    tested = {document.text for document in load(out / "documents_heldout.parquet", Document)}
    assert len(taught) == 18 * 30 and len(tested) == 6 * 30
    assert not taught & tested
    for name in ("comparisons", "judge_comparisons"):
        assert texts_of(out, name) <= taught and texts_of(out, f"{name}_heldout") <= tested
    demonstrations = load(out / "demonstrations.parquet", Demonstration)
    assert {row.messages[0].text for row in demonstrations} == set(QUESTIONS.values())
    assert {row.messages[1].text for row in demonstrations} == taught
    for name, all_of, count in (("prompts", taught, 100), ("prompts_heldout", tested, 50)):
        prompts = load(out / f"{name}.parquet", Prompt)
        assert len(prompts) == count
        for prompt in prompts:
            beginning = prompt.messages[-1].text
            assert len(beginning.split()) == 4 and any(text.startswith(beginning) for text in all_of)


def test_raters_prefer_what_they_rated_higher_and_no_rating_is_in_both_halves(out):
    rated = {(source, text.text): text for source in QUESTIONS for text in vader.texts(source)}
    used = {}
    for name in ("comparisons", "judge_comparisons"):
        used[name] = set()
        for one in load(out / f"{name}.parquet", Comparison):
            source, *sheet, place = one.annotator.split("-")
            texts = [rated[source, text] for text in one.responses]
            ratings = [text.ratings[int(place)] for text in texts]
            assert one.meta["ratings"] == ratings and ratings[0] != ratings[1]
            assert one.ranks == ((0, 1) if ratings[0] > ratings[1] else (1, 0))
            assert bool(sheet) == (source == "movie" and texts[0].sheet == texts[1].sheet)
            used[name] |= {(source, text, place) for text in one.responses}
    assert not used["comparisons"] & used["judge_comparisons"]


def test_people_agree_more_with_all_others_than_with_one(out):
    numbers = json.loads((out / "findings.json").read_text())["numbers"]
    assert 0.7 < numbers["agreement"]["low"] < numbers["agreement"]["score"] < numbers["ceiling"]["score"] < 0.95
    assert numbers["by_source"].keys() <= QUESTIONS.keys()


def test_a_split_that_holds_nothing_out_is_refused(tmp_path):
    with pytest.raises(ChatwrightError, match=r"holds out 0 of 8 sheets"):
        Ratings(limit=2, heldout=0.01).run(tmp_path)
    with pytest.raises(ChatwrightError, match=r"prompts=100000: only"):
        Ratings(limit=2, prompts=100000).run(tmp_path)
