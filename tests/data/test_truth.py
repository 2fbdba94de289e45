import random

import pytest

from chatwright.data import instruct, scenes, truth
from chatwright.data.questions import DRILLS, LANGUAGES, NUMBERS, PICTURE_TASKS, REGISTERS, ask, counted, joined

TASKS = (*PICTURE_TASKS, *DRILLS, "yes_no_kind")


def questions(number: int, seed: int = 0, **options):
    """(question, scene) of every task and language."""
    rng, pool = random.Random(seed), scenes.trained()
    for index in range(number):
        scene = scenes.compose(rng, pool)
        for task in TASKS:
            question = ask(task, scene, rng, LANGUAGES[index % 2], pool, **options)
            if question is not None:
                yield question, scene


def test_every_right_answer_in_every_register_is_judged_right():
    seen = set()
    for question, scene in questions(1500):
        prompt = instruct.as_prompt(question, "train", scene)
        for register in REGISTERS:
            assert truth.correct(prompt, question.answer(register)), (question, register)
        seen.add((question.task, question.language))
    assert len(seen) == 2 * len((*PICTURE_TASKS, *DRILLS))


def test_every_wrong_choice_is_judged_wrong():
    for question, scene in questions(300):
        prompt = instruct.as_prompt(question, "train", scene)
        assert not truth.correct(prompt, "") and not truth.correct(prompt, "hm")
        for choice in question.choices[:12]:
            assert truth.correct(prompt, choice) == (choice == question.reference)
        if len(question.choices) > 1:
            assert not truth.correct(prompt, " / ".join(question.choices))


def test_a_wrong_caption_is_judged_wrong():
    for question, scene in questions(300, seed=5):
        if question.task == "caption":
            prompt = instruct.as_prompt(question, "train", scene)
            other = next(c for c in scenes.trained() if c.english not in scene.counts)
            more = counted(other, 2, question.language)
            assert not truth.correct(prompt, joined([question.bare, more], question.language))
            assert not truth.correct(prompt, more)


def test_choices_are_found_longest_first_and_as_whole_words():
    assert truth.parse("It is a racing car.", ["car", "racing car"]) == "racing car"
    assert truth.parse("a cart", ["car", "cat"]) is None
    assert truth.parse("Dogs!", ["dog", "cat"]) == "dog"
    assert truth.parse("a dog or a cat", ["dog", "cat"]) is None
    assert truth.parse("没有，图里没有狗。", ["有", "没有"]) == "没有"
    assert truth.parse("这是交通工具。", ["工具", "交通工具"]) == "交通工具"
    assert truth.parse("There are 3 dogs.", list(NUMBERS["en"])) == "three"
    assert truth.parse("图里有3个三明治。", ["一个", "两个", "三个", "四个", "五个"]) == "三个"


def test_helpfulness_rewards_full_true_sentences_and_nothing_else():
    for question, scene in questions(600, seed=1):
        prompt = instruct.as_prompt(question, "train", scene)
        bare, sentence, detailed = (truth.helpfulness(prompt, question.answer(register)) for register in REGISTERS)
        assert bare <= 0.2 + 1e-9 and bare < sentence <= detailed <= 1, question
        if question.fact:
            assert detailed == pytest.approx(1.0), question
        assert truth.helpfulness(prompt, question.answer("detailed") * 3) < sentence
        assert truth.helpfulness(prompt, "") == 0


def test_helpfulness_punishes_untruth_and_the_wrong_language():
    rng, pool = random.Random(0), scenes.trained()
    dog = next(concept for concept in pool if concept.english == "dog")
    scene = scenes.compose(rng, [dog], "single", heldout=None)
    prompt = instruct.as_prompt(ask("naming", scene, rng, "en", pool), "train", scene)  # type: ignore[arg-type]
    true = truth.helpfulness(prompt, "It is a dog. A dog is an animal.")
    assert truth.helpfulness(prompt, "It is a dog. A dog is a fruit.") < truth.helpfulness(prompt, "It is a dog.")
    assert truth.helpfulness(prompt, "It is a dog. I also see a cat.") < true
    assert truth.helpfulness(prompt, "这是一只狗。狗是动物。") < true
    assert truth.helpfulness(prompt, "It is a dog and it is a dog and it is a dog and it is a dog.") < 0.3


def test_denial_and_stutter_are_no_answers():
    rng, pool = random.Random(0), scenes.trained()
    concept = next(concept for concept in pool if concept.english == "dog")
    scene = scenes.compose(rng, [concept], "single", heldout=None)
    for task, language, denied, stutter in (
        ("naming", "en", "No, it is not a dog.", "a a a dog"),
        ("naming", "zh", "不对，这不是狗。", "狗狗狗"),
        ("category", "en", "It isn't an animal.", "animal animal animal"),
        ("counting", "zh", "没有一只狗。", "一只一只一只狗"),
    ):
        question = ask(task, scene, rng, language, pool)
        prompt = instruct.as_prompt(question, "train", scene)  # type: ignore[arg-type]
        assert truth.correct(prompt, question.sentence)  # type: ignore[union-attr]
        assert not truth.correct(prompt, denied) and not truth.correct(prompt, stutter)
    asked = ask("yes_no", scene, random.Random(3), "en", pool)
    prompt = instruct.as_prompt(asked, "train", scene)  # type: ignore[arg-type]
    assert truth.correct(prompt, asked.sentence)  # type: ignore[union-attr]
