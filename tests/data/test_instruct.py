import random
import re

from chatwright.data import documents, instruct, scenes, truth
from chatwright.data.instruct import HELDOUT_TASK, LANGUAGES, PHRASINGS
from chatwright.stages import data
from chatwright.stages.data import Data


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
        ask = instruct.quick_conversation if index % 4 > 1 else instruct.conversation
        talk = ask(scenes.compose(rng, pool), rng, language, pool)
        if talk is None:
            continue
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
    for document in documents.scene_documents(1000, rng, pool):
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
    first, again, other = (list(stage._prompts(scenes.trained()))[:20] for stage in (a, b, c))
    assert first == again and first != other


def test_everything_is_in_the_square_where_its_centre_is():
    things = (scenes.Thing("dog", 10, 8, 14), scenes.Thing("dog", 60, 62, 14), scenes.Thing("hot dog", 40, 20, 20))
    scene = scenes.Scene(things, scenes.Ground("plain", (255, 255, 255), (0, 0, 0), 0))
    assert instruct.overview(scene, "en") == "dog a1, hot dog c2, dog d4"
    assert instruct.overview(scene, "zh") == "狗a1、热狗c2、狗d4"
    concepts = documents.patch_concepts(scene)
    assert {place: [c.english for c in cell] for place, cell in enumerate(concepts) if cell} == {
        0: ["dog"], 6: ["hot dog"], 15: ["dog"],
    }  # fmt: skip


def test_translations_are_tested_by_choice():
    words = [("dog", "狗"), ("cat", "猫"), ("sun", "太阳"), ("to eat", "吃"), ("book", "书")]
    prompt = data._translation_test(words, random.Random(0), "en", "word")
    assert prompt.score == "choice" and len(set(prompt.choices)) == 4 and prompt.reference in prompt.choices
    assert len({any("一" <= letter <= "鿿" for letter in choice) for choice in prompt.choices}) == 1


def test_what_is_thought_before_an_answer_is_true_and_said_once():
    things = (scenes.Thing("dog", 50, 50, 14), scenes.Thing("dog", 10, 10, 14), scenes.Thing("cat", 40, 10, 14))
    scene = scenes.Scene(things, scenes.Ground("plain", (255, 255, 255), (0, 0, 0), 0))
    rng, pool = random.Random(5), scenes.trained()
    assert instruct.ask("relation", scene, rng, "en", pool) is None  # there are two dogs: which one is meant?
    assert instruct.overview(scene, "zh") == "狗a1、猫c1、狗d4"
    for index in range(60):
        language = LANGUAGES[index % 2]
        thought = instruct.overview(scene, language) + (": " if language == "en" else "：")
        ask = instruct.quick_conversation if index % 4 > 1 else instruct.conversation
        answers = [m.text for m in ask(scene, rng, language, pool).messages if m.role == "assistant"]  # type: ignore[union-attr]
        assert [answer.startswith(thought) for answer in answers] == [True] + [False] * (len(answers) - 1)


def test_a_quick_round_first_asks_what_is_there_and_is_balanced():
    rng, pool = random.Random(6), scenes.trained()
    said = []
    for _ in range(200):
        questions = instruct.quick_round(scenes.compose(rng, pool, "different"), rng, "en", pool)
        tasks = [question.task for question in questions]
        assert tasks == sorted(tasks, key=lambda task: task != "yes_no")
        assert len({question.text for question in questions}) == len(questions)
        said += [question.bare for question in questions if question.task == "yes_no"]
    assert 0.4 < said.count("yes") / len(said) < 0.55
