import random
import re

import pytest

from chatwright.data import documents, instruct, scenes, truth
from chatwright.data.questions import HELDOUT_TASK, LANGUAGES, PHRASINGS
from chatwright.data.records import Prompt
from chatwright.data.store import load
from chatwright.errors import ChatwrightError
from chatwright.stages import data
from chatwright.stages.data import Data


def _pattern(phrasing: str) -> re.Pattern[str]:
    pieces = re.split(r"\{\w+\}", phrasing)
    return re.compile(".+?".join(map(re.escape, pieces)))


def test_a_round_asks_bare_questions_and_gives_no_answer_twice():
    rng, pool = random.Random(5), scenes.trained()
    heldout = [_pattern(p[-1]) for languages in PHRASINGS.values() for p in languages.values()]
    all_names = {name: [c.name(name) for c in scenes.concepts().values()] for name in LANGUAGES}
    for index in range(600):
        name, language = list(instruct.ROUNDS)[index % len(instruct.ROUNDS)], LANGUAGES[index // 5 % 2]
        which = instruct.ROUNDS[name]
        talk = instruct.one_round(rng, language, pool, which)
        asked = [message.text for message in talk.messages[::2]]
        assert len(set(asked)) == len(asked) == len(talk.meta["tasks"]) <= which.times
        assert set(talk.meta["tasks"]) == {which.task}
        assert [part.type for message in talk.messages for part in message.content].count("image") == 1
        assert not any(pattern.fullmatch(text) for pattern in heldout for text in asked)
        if name != "presence":
            about = [frozenset(truth.found(text, all_names[language])) for text in asked]
            assert len(set(about)) == len(about)
            assert all(about) or name == "total"
    assert set(instruct.EVERYTHING) == set(instruct.ROUNDS) > set(instruct.PLACES)


def test_conversations_leak_neither_answers_nor_what_is_held_out():
    rng, pool = random.Random(2), scenes.trained()
    heldout = [_pattern(p[-1]) for languages in PHRASINGS.values() for p in languages.values()]
    heldout += [_pattern(phrasing) for p in PHRASINGS[HELDOUT_TASK].values() for phrasing in p]
    unseen = {name for concept in scenes.unseen() for name in (concept.english, concept.chinese)}
    all_names = {name: [c.name(name) for c in scenes.concepts().values()] for name in LANGUAGES}
    for index in range(400):
        language = LANGUAGES[index % 2]
        talk = instruct.conversation(scenes.compose(rng, pool), rng, language, pool, quick=index % 4 > 1)
        assert HELDOUT_TASK not in talk.meta["tasks"]
        said: list[str] = []
        for question, answer, task in zip(talk.messages[::2], talk.messages[1::2], talk.meta["tasks"], strict=True):
            assert not any(pattern.fullmatch(question.text) for pattern in heldout), question.text
            assert not unseen & set(truth.found(question.text + " " + answer.text, all_names[language]))
            if task == "naming":
                assert not set(truth.found(answer.text, all_names[language])) & set(said)
            said += truth.found(question.text + " " + answer.text, all_names[language])
        assert [part.type for message in talk.messages for part in message.content].count("image") == 1


def test_documents_have_no_chat_and_no_heldout_question():
    rng, pool = random.Random(3), scenes.trained()
    heldout = [_pattern(p[-1]) for languages in PHRASINGS.values() for p in languages.values()]
    heldout += [_pattern(phrasing) for p in PHRASINGS[HELDOUT_TASK].values() for phrasing in p]
    pages = documents.page_documents(100, rng, pool, LANGUAGES)
    assert all(document.text.count("\n") in (3, 5, 7, 9) for document in pages)
    for document in [*documents.scene_documents(1000, rng, pool), *pages]:
        assert not any(pattern.fullmatch(document.text) for pattern in heldout)


def test_captions_are_true():
    rng, pool = random.Random(4), scenes.trained()
    for index in range(500):
        language = LANGUAGES[index % 2]
        scene = scenes.compose(rng, pool)
        text = documents.caption(scene, rng, language)
        by_name = {concept.name(language): concept.english for concept in scenes.concepts().values()}
        assert {by_name[name] for name in truth.found(text, list(by_name))} == set(scene.counts)


def test_a_seed_gives_the_same_records():
    a, b, c = (Data(seed=seed) for seed in (0, 0, 1))
    first, again, other = (list(stage._prompts())[:20] for stage in (a, b, c))
    assert first == again and first != other


def test_a_sketch_has_every_thing_where_the_eye_will_see_it():
    things = (scenes.Thing("dog", 10, 8, 14), scenes.Thing("dog", 60, 62, 14), scenes.Thing("hot dog", 40, 20, 20))
    scene = scenes.Scene(things, scenes.Ground("plain", (255, 255, 255), (0, 0, 0), 0))
    assert documents.sketch(scene, "en") == " dog . . . . . hot dog . . . . . . . . dog"
    assert documents.sketch(scene, "zh") == "狗 . . . . .热狗 . . . . . . . .狗"
    concepts = documents.patch_concepts(scene)
    assert {place: [c.english for c in cell] for place, cell in enumerate(concepts) if cell} == {
        0: ["dog"], 6: ["hot dog"], 15: ["dog"],
    }  # fmt: skip


def test_translations_are_tested_by_choice():
    words = [("dog", "狗"), ("cat", "猫"), ("sun", "太阳"), ("to eat", "吃"), ("book", "书")]
    prompt = data._translation_test(words, random.Random(0), "en", "word")
    assert prompt.score == "choice" and len(set(prompt.choices)) == 4 and prompt.reference in prompt.choices
    assert len({any("一" <= letter <= "鿿" for letter in choice) for choice in prompt.choices}) == 1


def test_scenes_may_be_told_in_words():
    things = scenes.Thing("dog", 10, 32, 20), scenes.Thing("cat", 50, 32, 30)
    pair = scenes.Scene(things, scenes.Ground("plain", (255, 255, 255), (0, 0, 0), 0))
    talk = instruct.conversation(pair, random.Random(0), "en", scenes.trained(), show=instruct.described)
    told = [message.text.startswith("The picture shows") for message in talk.messages]
    assert told[0] and not any(told[1:])
    assert {part.type for message in talk.messages for part in message.content} == {"text"}


def test_described_data_need_no_picture_and_one_language(tmp_path):
    sizes = {"pictures": 40, "descriptions": 20, "pages": 20, "words": 10, "translations": 10, "prompts": 20}
    Data(languages=["en"], described=True, evaluation=1, **sizes).run(tmp_path)
    assert not {"drawings.parquet", "captions.parquet", "examples"} & {path.name for path in tmp_path.iterdir()}
    heldout = load(tmp_path / "heldout.parquet", Prompt)
    for i in range(len(heldout)):
        prompt = heldout[i]
        assert prompt.meta["language"] == "en" and all(part.type == "text" for part in prompt.messages[0].content)
        assert prompt.meta["task"] == "translation" or truth.correct(prompt, prompt.meta["answers"]["bare"])
    with pytest.raises(ChatwrightError, match="languages"):
        Data(languages=["fr"]).run(tmp_path)
