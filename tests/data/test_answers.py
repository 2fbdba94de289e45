import pytest

from chatwright.data.answers import contains, find, normalise


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  Two, apples!! ", "two apples"),
        ("Ｔｗｏ", "two"),
        ("苹 果。", "苹果"),
        ("它是“苹果”！", "它是苹果"),
        ("3 个", "3个"),
        ("It's t-shirt", "its t shirt"),
        ("-3.5 and 1,000; 3.", "-3.5 and 1,000 3"),
        ("３．５", "3.5"),
        ("。！？", ""),
        ("Straße", "strasse"),
    ],
)
def test_normalise_drops_only_what_does_not_change_an_answer(text, plain):
    assert normalise(text) == plain
    assert normalise(plain) == plain


@pytest.mark.parametrize(
    ("text", "choices", "choice"),
    [
        ("There is a Dog.", ["cat", "dog"], "dog"),
        ("a pineapple", ["apple", "pineapple"], "pineapple"),
        ("a green apple", ["apple", "green apple"], "green apple"),
        ("an apple and a green apple", ["apple", "green apple"], None),
        ("cats", ["cat"], None),
        ("a cat and a dog", ["cat", "dog"], None),
        ("nothing", ["cat", "dog"], None),
        ("13", ["3", "1", "13"], "13"),
        ("有3个。", ["2", "3"], "3"),
        ("不是。", ["是", "不是"], "不是"),
        ("一个青 苹果", ["苹果", "青苹果"], "青苹果"),
        ("这是 dog", ["dog"], "dog"),
        ("这是dog吗", ["dog"], "dog"),
        ("T-shirt", ["t shirt"], "t shirt"),
        ("Dog", ["DOG", "dog"], "DOG"),
        ("dog, dog, dog", ["dog"], "dog"),
        ("anything", [], None),
        ("anything", ["", "。"], None),
        ("abcd", ["ab", "abcd", "cd"], "abcd"),
    ],
)
def test_find_gives_the_single_choice_that_occurs(text, choices, choice):
    assert find(text, choices) == choice


def test_contains_matches_whole_words():
    assert contains("It is a CAT!", "cat")
    assert contains("这是一只猫。", "猫")
    assert not contains("concatenate", "cat")
    assert not contains("anything", "")
