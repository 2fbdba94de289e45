import random
import re

import pytest

from chatwright.data import documents, instruct, scenes
from chatwright.data.instruct import HELDOUT_TASK, LANGUAGES, PHRASINGS, PICTURE_TASKS, REGISTERS
from chatwright.stages import data
from chatwright.stages.data import Data

TASKS = (*PICTURE_TASKS, "yes_no_kind")


def questions(number: int, seed: int = 0, **options):
    """(question, scene) of every task and language."""
    rng, pool = random.Random(seed), scenes.trained()
    for index in range(number):
        scene = scenes.compose(rng, pool)
        for task in TASKS:
            question = instruct.ask(task, scene, rng, LANGUAGES[index % 2], pool, **options)
            if question is not None:
                yield question, scene


def test_every_right_answer_in_every_register_is_judged_right():
    seen = set()
    for question, scene in questions(1500):
        prompt = instruct.as_prompt(question, "train", scene)
        for register in REGISTERS:
            assert instruct.correct(prompt, question.answer(register)), (question, register)
        seen.add((question.task, question.language))
    assert len(seen) == 2 * len(PICTURE_TASKS)


def test_every_wrong_choice_is_judged_wrong():
    for question, scene in questions(300):
        prompt = instruct.as_prompt(question, "train", scene)
        assert not instruct.correct(prompt, "") and not instruct.correct(prompt, "hm")
        for choice in question.choices[:12]:
            assert instruct.correct(prompt, choice) == (choice == question.reference)
        if len(question.choices) > 1:
            assert not instruct.correct(prompt, " / ".join(question.choices))


def test_a_wrong_caption_is_judged_wrong():
    for question, scene in questions(300, seed=5):
        if question.task == "caption":
            prompt = instruct.as_prompt(question, "train", scene)
            other = next(c for c in scenes.trained() if c.english not in scene.counts)
            more = instruct.counted(other, 2, question.language)
            assert not instruct.correct(prompt, instruct.joined([question.bare, more], question.language))
            assert not instruct.correct(prompt, more)


def test_choices_are_found_longest_first_and_as_whole_words():
    assert instruct.parse("It is a racing car.", ["car", "racing car"]) == "racing car"
    assert instruct.parse("a cart", ["car", "cat"]) is None
    assert instruct.parse("Dogs!", ["dog", "cat"]) == "dog"
    assert instruct.parse("a dog or a cat", ["dog", "cat"]) is None
    assert instruct.parse("没有，图里没有狗。", ["有", "没有"]) == "没有"
    assert instruct.parse("这是交通工具。", ["工具", "交通工具"]) == "交通工具"
    assert instruct.parse("There are 3 dogs.", list(instruct.NUMBERS["en"])) == "three"
    assert instruct.parse("图里有3个三明治。", ["一个", "两个", "三个", "四个", "五个"]) == "三个"


def test_helpfulness_rewards_full_true_sentences_and_nothing_else():
    for question, scene in questions(600, seed=1):
        prompt = instruct.as_prompt(question, "train", scene)
        bare, sentence, detailed = (instruct.helpfulness(prompt, question.answer(register)) for register in REGISTERS)
        assert bare <= 0.2 + 1e-9 and bare < sentence <= detailed <= 1, question
        if question.fact:
            assert detailed == pytest.approx(1.0), question
        assert instruct.helpfulness(prompt, question.answer("detailed") * 3) < sentence
        assert instruct.helpfulness(prompt, "") == 0


def test_helpfulness_punishes_untruth_and_the_wrong_language():
    rng, pool = random.Random(0), scenes.trained()
    dog = next(concept for concept in pool if concept.english == "dog")
    scene = scenes.compose(rng, [dog], "single", heldout=None)
    prompt = instruct.as_prompt(instruct.ask("naming", scene, rng, "en", pool), "train", scene)  # type: ignore[arg-type]
    true = instruct.helpfulness(prompt, "It is a dog. A dog is an animal.")
    assert instruct.helpfulness(prompt, "It is a dog. A dog is a fruit.") < instruct.helpfulness(prompt, "It is a dog.")
    assert instruct.helpfulness(prompt, "It is a dog. I also see a cat.") < true
    assert instruct.helpfulness(prompt, "这是一只狗。狗是动物。") < true
    assert instruct.helpfulness(prompt, "It is a dog and it is a dog and it is a dog and it is a dog.") < 0.3


def test_phrasings_of_the_splits_are_apart():
    for task, languages in PHRASINGS.items():
        for language, phrasings in languages.items():
            assert len(set(phrasings)) == len(phrasings) >= 2, (task, language)


def _pattern(phrasing: str) -> re.Pattern[str]:
    pieces = re.split(r"\{\w+\}", phrasing)
    return re.compile(".+?".join(map(re.escape, pieces)))


def test_conversations_leak_neither_answers_nor_what_is_held_out():
    rng, pool = random.Random(2), scenes.trained()
    heldout = [_pattern(p[-1]) for languages in PHRASINGS.values() for p in languages.values()]
    heldout += [_pattern(phrasing) for p in PHRASINGS[HELDOUT_TASK].values() for phrasing in p]
    unseen = {name for concept in scenes.unseen() for name in (concept.english, concept.chinese)}
    all_names = {name: [c.name(name) for c in scenes.concepts().values()] for name in LANGUAGES}
    for index in range(400):
        language = LANGUAGES[index % 2]
        talk = instruct.conversation(scenes.compose(rng, pool), rng, language, pool, 6)
        assert HELDOUT_TASK not in talk.meta["tasks"]
        said: list[str] = []
        for question, answer, task in zip(talk.messages[::2], talk.messages[1::2], talk.meta["tasks"], strict=True):
            assert not any(pattern.fullmatch(question.text) for pattern in heldout), question.text
            assert not unseen & set(instruct.found(question.text + " " + answer.text, all_names[language]))
            if task == "naming":
                assert not set(instruct.found(answer.text, all_names[language])) & set(said)
            said += instruct.found(question.text + " " + answer.text, all_names[language])
        assert [part.type for message in talk.messages for part in message.content].count("image") == 1


def test_documents_have_no_chat_and_no_heldout_question():
    rng, pool = random.Random(3), scenes.trained()
    heldout = [_pattern(p[-1]) for languages in PHRASINGS.values() for p in languages.values()]
    heldout += [_pattern(phrasing) for p in PHRASINGS[HELDOUT_TASK].values() for phrasing in p]
    for document in documents.scene_documents(1000, rng, pool):
        assert not any(pattern.fullmatch(document.text) for pattern in heldout)


def test_captions_are_true():
    rng, pool = random.Random(4), scenes.trained()
    for index in range(500):
        language = LANGUAGES[index % 2]
        scene = scenes.compose(rng, pool)
        text = documents.caption(scene, rng, language)
        by_name = {concept.name(language): concept.english for concept in scenes.concepts().values()}
        assert {by_name[name] for name in instruct.found(text, list(by_name))} == set(scene.counts)


def test_a_seed_gives_the_same_records():
    a, b, c = (Data(seed=seed) for seed in (0, 0, 1))
    first, again, other = (list(stage._prompts(scenes.trained()))[:20] for stage in (a, b, c))
    assert first == again and first != other


def test_a_sketch_has_every_thing_where_the_eye_will_see_it():
    things = (scenes.Thing("dog", 10, 8, 14), scenes.Thing("dog", 60, 62, 14), scenes.Thing("hot dog", 40, 20, 20))
    scene = scenes.Scene(things, scenes.Ground("plain", (255, 255, 255), (0, 0, 0), 0))
    words = documents.sketch(scene, "zh").split()
    assert len(words) == 16
    assert {place: word for place, word in enumerate(words) if word != "."} == {0: "狗", 6: "热狗", 15: "狗"}


def test_translations_are_tested_by_choice():
    words = [("dog", "狗"), ("cat", "猫"), ("sun", "太阳"), ("to eat", "吃"), ("book", "书")]
    prompt = data._translation_test(words, random.Random(0), "en", "word")
    assert prompt.score == "choice" and len(set(prompt.choices)) == 4 and prompt.reference in prompt.choices
    assert len({any("一" <= letter <= "鿿" for letter in choice) for choice in prompt.choices}) == 1
