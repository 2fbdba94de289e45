import random
import time
from collections import Counter

import numpy as np
import pytest

from chatwright.data import scenes
from chatwright.data.sources import names, openmoji

KINDS = ("single", "several", "pair", "mixed")


@pytest.fixture(scope="module")
def training_scenes() -> list[scenes.Scene]:
    rng = random.Random(0)
    return [scenes.compose(rng, scenes.trained()) for _ in range(4000)]


@pytest.fixture(scope="module")
def heldout_scenes() -> list[scenes.Scene]:
    rng = random.Random(1)
    return [scenes.compose(rng, scenes.trained(), heldout=True) for _ in range(1000)]


def test_there_are_at_least_120_concepts_with_distinct_names_in_both_languages():
    concepts = list(scenes.concepts().values())
    assert len(concepts) >= 120
    assert len({concept.english for concept in concepts}) == len({concept.chinese for concept in concepts})
    assert len({concept.chinese for concept in concepts}) == len({concept.character for concept in concepts})
    assert len(concepts) == len({concept.character for concept in concepts})
    drawn = openmoji.drawings()
    for concept in concepts:
        assert concept.character in drawn and set(concept.look_alikes) <= set(names.names()), concept
        assert concept.english.isascii() and not concept.chinese.isascii()


def test_a_tenth_of_every_category_is_held_out_and_always_the_same():
    by_category = Counter(concept.category for concept in scenes.concepts().values())
    heldout = Counter(concept.category for concept in scenes.unseen())
    assert by_category.keys() == heldout.keys() == scenes.CATEGORIES.keys()
    assert all(heldout[name] == round(by_category[name] / 10) for name in by_category)
    scenes.concepts.cache_clear()
    assert [concept.english for concept in scenes.unseen()][:2] == ["horse", "cow"]


def test_no_training_drawing_shows_a_heldout_concept_or_its_like():
    kept = scenes.training_drawings()
    for concept in scenes.unseen():
        assert concept.character not in kept
        assert not set(concept.look_alikes) & kept.keys()
    assert all(concept.character in kept for concept in scenes.trained())


def test_no_pixels_of_a_heldout_drawing_are_among_the_training_drawings():
    paths = openmoji.drawings()
    heldout = [np.asarray(openmoji.render(paths[concept.character], 24), dtype=float) for concept in scenes.unseen()]
    for character, path in scenes.training_drawings().items():
        pixels = np.asarray(openmoji.render(path, 24), dtype=float)
        for concept, other in zip(scenes.unseen(), heldout, strict=True):
            assert np.abs(pixels - other).mean() > 2, (character, concept)


def test_training_never_composes_what_evaluation_owns(training_scenes, heldout_scenes):
    trained = {key for scene in training_scenes for key in scenes.composition(scene)}
    for scene in heldout_scenes:
        assert not set(scenes.composition(scene)) <= trained
    assert not any(scenes.is_heldout(scene) for scene in training_scenes)
    assert all(scenes.is_heldout(scene) for scene in heldout_scenes)


def test_the_truth_is_what_is_painted(training_scenes):
    """Taking a thing away changes the picture inside its place and nowhere else."""
    for scene in training_scenes[:50]:
        thing = scene.things[-1]
        rest = scenes.Scene(scene.things[:-1], scene.ground)
        changed = np.abs(np.asarray(scene.image(), int) - np.asarray(rest.image(), int)).sum(-1) > 0
        rows, columns = np.nonzero(changed)
        half = thing.size / 2 + 1
        assert len(rows) > 10
        assert thing.y - half <= rows.min() and rows.max() <= thing.y + half
        assert thing.x - half <= columns.min() and columns.max() <= thing.x + half
        assert max(np.ptp(rows), np.ptp(columns)) + 1 >= 0.8 * thing.size


def test_pictures_vary_in_number_size_place_and_ground(training_scenes):
    assert {len(scene.things) for scene in training_scenes} == {1, 2, 3, 4, 5}
    sizes = [thing.size for scene in training_scenes for thing in scene.things]
    assert min(sizes) == scenes.SMALLEST and max(sizes) == scenes.LARGEST
    assert {scene.ground.kind for scene in training_scenes} == set(scenes.GROUNDS)
    for scene in training_scenes[:200]:
        image = scene.image()
        assert image.size == (scenes.SIDE, scenes.SIDE) and image.mode == "RGB"


def test_things_hardly_overlap(training_scenes):
    for scene in training_scenes[:500]:
        whole = np.zeros((scenes.SIDE, scenes.SIDE), int)
        for thing in scene.things:
            colours, _ = scenes.concept_drawings().sized(thing.concept.character, thing.size)
            height, width = colours.shape[:2]
            top, left = thing.y - height // 2, thing.x - width // 2
            assert top >= 0 and left >= 0 and top + height <= scenes.SIDE and left + width <= scenes.SIDE
            whole[top + 1 : top + height - 1, left + 1 : left + width - 1] += 1
        assert whole.max() == 1


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind):
    rng = random.Random(2)
    for _ in range(50):
        scene = scenes.compose(rng, scenes.trained(), kind)
        things, different = len(scene.things), len(scene.counts)
        assert {
            "single": things == 1,
            "several": things >= 2 and different == 1,
            "pair": things == 2 and different == 2,
            "mixed": 2 <= things <= 5 and 2 <= different <= 3,
        }[kind]


def test_relation_is_seen_from_the_second():
    a, b = scenes.Thing("dog", 10, 30, 14), scenes.Thing("cat", 50, 34, 14)
    assert scenes.relation(a, b) == "left" and scenes.relation(b, a) == "right"
    assert scenes.relation(scenes.Thing("dog", 30, 10, 14), scenes.Thing("cat", 34, 50, 14)) == "above"
    assert scenes.relation(scenes.Thing("dog", 10, 10, 14), scenes.Thing("cat", 50, 50, 14)) is None


def test_plurals():
    assert [scenes.plural(word) for word in ("dog", "bus", "cherry", "knife", "paintbrush", "key", "axe")] == [
        "dogs", "buses", "cherries", "knives", "paintbrushes", "keys", "axes",
    ]  # fmt: skip


def test_many_scenes_a_second():
    scenes.concept_drawings()
    rng = random.Random(3)
    for scene in [scenes.compose(rng, scenes.trained()) for _ in range(500)]:
        scene.image()  # drawings in most sizes are made now
    start = time.process_time()
    for _ in range(1000):
        scenes.compose(rng, scenes.trained()).image()
    assert 1000 / (time.process_time() - start) > 1000  # 2,500 and more; half of that is allowed for a slow machine
