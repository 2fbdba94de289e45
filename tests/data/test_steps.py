"""Answers as rows of steps: where they end, and what is said about a file whose labels do not fit."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatwright.data import steps
from chatwright.data.records import Demonstration, Message, Part, Prompt
from chatwright.data.store import load, save
from chatwright.errors import ChatwrightError

WORDS = st.sampled_from(["a dog", "2 + 2 = 4.", "狗", "!", " ", "", "pear ", "(x)"])


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=6), st.booleans())
def test_a_step_ends_where_its_line_does(renderer, lines, finished):
    answer = renderer.answer("\n".join(lines), finished)
    if not answer:
        return
    prompt = renderer.prompt([Message.of("user", "one\ntwo")])  # the lines of a prompt are no steps
    row = renderer.answered(prompt, answer)
    ends = steps.step_ends(renderer, row.input_ids, row.loss_mask)
    assert len(ends) == max(1, sum(bool(line.strip()) for line in lines))
    assert ends == sorted(set(ends)) and ends[0] >= len(prompt)
    starts = [len(prompt), *(end + 1 for end in ends)]
    said = [renderer.decode(row.input_ids[a : b + 1]) for a, b in zip(starts, ends, strict=False)]
    assert [text for text in said if text] == [line.strip() for line in lines if line.strip()]


def test_a_finished_answer_is_judged_at_the_end_of_its_turn_or_at_its_last_newline(renderer):
    for text, last in (("one\ntwo", renderer.end_id), ("one\ntwo\n", renderer.answer("\n", finished=False)[0])):
        tokens = renderer.answer(text)
        ends = steps.step_ends(renderer, tokens, [True] * len(tokens))
        assert len(ends) == 2 and tokens[ends[-1]] == last


def test_a_step_ends_with_its_turn(renderer):
    """Also without a newline, and what somebody else says in between has no steps."""
    turns = [renderer.answer("one\ntwo"), renderer.answer("a tool\nsays"), renderer.answer("three")]
    tokens = [token for turn in turns for token in turn]
    said = [turn is not turns[1] for turn in turns for _ in turn]
    ends = steps.step_ends(renderer, tokens, said)
    assert ends == [tokens.index(renderer.answer("\n", False)[0]), len(turns[0]) - 1, len(tokens) - 1]


def labelled(tmp_path, answer, labels, name="steps.jsonl"):
    messages = (Message.of("user", "Solve it."), Message.of("assistant", answer))
    path = tmp_path / name
    good = Demonstration((*messages[:1], Message.of("assistant", "one")), {"steps": [1]})
    save([good, Demonstration(messages, {} if labels is None else {"steps": labels})], path)
    return path


@pytest.mark.parametrize("name", ["steps.jsonl", "steps.parquet"])
def test_labels_say_right_neutral_wrong_or_nothing(renderer, tmp_path, name):
    path = labelled(tmp_path, "a\nb\n\nc\nd\ne\nf", [1, 0, -1, True, False, None], name)
    rows = steps.render_all(renderer, load(path, Prompt), 1000)
    assert [row.number for row in rows] == [0, 1]
    assert rows[1].right == [True, True, False, True, False]
    batch = steps.collate(renderer, rows)
    assert batch["steps.ends"].sum(1).tolist() == [1, 5] and batch["steps.right"].sum(1).tolist() == [1, 3]
    assert [batch["steps.right"][1, end].item() for end in rows[1].ends] == rows[1].right
    assert steps.render_all(renderer, load(path, Prompt), len(rows[0].rows[0])) == rows[:1]


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (None, "has 0 labels but the answer has 2 steps, one a line"),
        ([1], "has 1 labels but the answer has 2 steps, one a line"),
        ([1, 2], "is [1, 2]; write a list of 1, 0, -1, true, false or null"),
        ([1, [1]], "is [1, [1]]; write a list of 1, 0, -1, true, false or null"),
        (3, "is 3; write a list of 1, 0, -1, true, false or null"),
    ],
)
@pytest.mark.parametrize("name", ["steps.jsonl", "steps.parquet"])
def test_labels_that_do_not_fit_are_named(renderer, tmp_path, labels, problem, name):
    path = labelled(tmp_path, "one\ntwo", labels, name)
    with pytest.raises(ChatwrightError) as caught:
        steps.render_all(renderer, load(path, Prompt), 1000)
    assert str(caught.value) == f"{path}:2: meta.steps: {problem}"


def test_an_answer_has_to_be_there(renderer, tmp_path):
    path = tmp_path / "asked.jsonl"
    save([Prompt((Message.of("user", "Solve it."),), meta={"steps": [1]})], path)
    with pytest.raises(ChatwrightError, match=r"asked\.jsonl:1: meta\.steps: there is no answer"):
        steps.render_all(renderer, load(path, Prompt), 1000)


def test_steps_as_trl_writes_them(write):
    path = write({"prompt": "Solve it.", "completions": ["one ", "two"], "labels": [True, False], "source": "book"})
    assert list(load(path, Demonstration)) == [
        Demonstration(
            (Message.of("user", "Solve it."), Message("assistant", (Part.of_text("one\ntwo"),))),
            {"source": "book", "steps": [True, False]},
        )
    ]


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"completions": ["a\nb"], "labels": [True]}, "completions[0]: is 'a\\nb'; write a step as one line of text"),
        ({"completions": ["a", " "], "labels": [True] * 2}, "completions[1]: is ' '; write a step as one line of text"),
        ({"completions": ["a"], "labels": [True] * 2},
            "labels: is [True, True]; write 1, one for each of the completions"),
    ],
)  # fmt: skip
def test_bad_steps_are_named(write, columns, problem):
    path = write({"prompt": "Solve it.", **columns})
    with pytest.raises(ChatwrightError) as caught:
        load(path, Demonstration)
    assert str(caught.value) == f"{path}:1: {problem}"
