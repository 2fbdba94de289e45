import random

from chatwright.data import scenes
from chatwright.data.questions import PHRASINGS, ask, description


def test_phrasings_of_the_splits_are_apart():
    for task, languages in PHRASINGS.items():
        for language, phrasings in languages.items():
            assert len(set(phrasings)) == len(phrasings) >= 2, (task, language)


def test_scenes_in_words():
    ground = scenes.Ground("plain", (255, 255, 255), (0, 0, 0), 0)
    dog, cat, other = scenes.Thing("dog", 10, 32, 20), scenes.Thing("cat", 50, 32, 30), scenes.Thing("dog", 30, 60, 14)
    pair, three = scenes.Scene((dog, cat), ground), scenes.Scene((dog, cat, other), ground)
    assert description(pair, "en") == (
        "The picture shows a dog and a cat. The cat is to the right of the dog. The cat is bigger than the dog."
    )
    assert description(pair, "zh") == "图里有一只狗和一只猫。猫在狗的右边。猫比狗大。"
    assert description(three, "en") == "The picture shows two dogs and a cat."  # which of the dogs?


def test_how_many_in_all_and_where_in_the_picture():
    ground = scenes.Ground("plain", (255, 255, 255), (0, 0, 0), 0)
    dog, cat = scenes.Thing("dog", 10, 30, 20), scenes.Thing("cat", 34, 33, 14)
    scene, rng, pool = scenes.Scene((dog, cat, cat), ground), random.Random(0), scenes.trained()
    total, place = (ask(task, scene, rng, "en", pool) for task in ("total", "place"))
    assert (total.bare, total.sentence) == ("three", "There are three things.")
    assert (place.bare, place.sentence) == ("left", "The dog is to the left of the middle.")
    assert "dog" in place.text and "middle" in place.text
    assert ask("place", scenes.Scene((cat,), ground), rng, "en", pool) is None  # too near to say
    assert ask("place", scenes.Scene((dog, dog), ground), rng, "zh", pool) is None  # which of the two?
    below = scenes.Scene((scenes.Thing("cat", 34, 50, 14),), ground)
    assert ask("place", below, rng, "zh", pool).sentence == "猫在中间的下面。"
