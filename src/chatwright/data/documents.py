"""Texts for pretraining, and captions for alignment, made from the sources.

Nothing here has the form of a chat, and no picture shows a held-out concept; in words, held-out concepts appear like
all others ("a fox is an animal"), for only their pictures are held out.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from functools import cache

from chatwright.data.questions import (
    DRILLS,
    HELDOUT_TASK,
    LANGUAGES,
    NUMBERS,
    PHRASINGS,
    SIDES,
    description,
    kind_fact,
    listing,
)
from chatwright.data.records import Document, Part
from chatwright.data.scenes import SIDE, Concept, Scene, compose, concepts, relation
from chatwright.data.sources import cedict, chatterbot, hsk

_WORD_FORMS = (
    "{zh} means {en}.", "{zh}的英语是 {en}。", "“{en}”的中文是{zh}。", '"{en}" is {zh} in Chinese.', "{zh}: {en}",
    "{en}: {zh}", "{zh} ({pinyin}) means {en}.",
)  # fmt: skip


def is_heldout_text(text: str) -> bool:
    """Whether a source text (a sentence, the first turn of a dialogue) is kept from training: one in twenty."""
    return hashlib.blake2b(text.encode(), digest_size=4).digest()[0] < 13


def is_heldout_word(chinese: str) -> bool:
    """Whether no demonstration translates this word (pretraining sees it): one in five."""
    return hashlib.blake2b(b"word " + chinese.encode(), digest_size=4).digest()[0] < 51


@cache
def useful_words() -> list[cedict.Entry]:
    """Useful dictionary entries: the HSK words, the easiest first, then other words of one or two characters."""
    rank = {word: place for place, word in enumerate(cedict.hsk_words())}
    best: dict[str, cedict.Entry] = {}
    for entry in cedict.entries():
        short = len(entry.simplified) <= 2 and len(entry.senses) > 1
        if (entry.simplified in rank or short) and entry.simplified.isalnum() and not entry.simplified.isascii():
            best.setdefault(entry.simplified, entry)
    return sorted(best.values(), key=lambda entry: rank.get(entry.simplified, len(rank)))


COMMON = 700  # words that a child knows
REPEATS = (
    4  # of what is said about the commonest words and the concepts: a small model learns a word by hearing it often
)
# Short questions with their answers, as a quiz sheet has them; no demonstration asks in these words.
_QUIZ = {
    "en": {
        "counting": ("{plural}: {answer}", "How many {plural}? {answer}"),
        "yes_no": ("{an_a}? {answer}", "any {plural}? {answer}"),
        "relation": ("{a} from {b}: {answer}", "Where is the {a} from the {b}? {answer}"),
    },
    "zh": {
        "counting": ("{a}：{answer}", "几{measure}{a}？{answer}"),
        "yes_no": ("{a}？{answer}", "有{a}吗？{answer}"),
        "relation": ("{a}在{b}的{answer}", "{a}在{b}哪边？{answer}"),
    },
}
PATCHES = 4  # in a row and in a column of a picture, as the eye divides it


def word_documents(limit: int, rng: random.Random) -> list[Document]:
    """Short texts about words, in either direction: every form, often, for the commonest; two forms for the others."""
    found = []
    for place, entry in enumerate(useful_words()[:limit]):
        for form in _WORD_FORMS * REPEATS if place < COMMON else rng.sample(_WORD_FORMS, 2):
            gloss = ", ".join(entry.senses[:2]) if form.startswith("{zh}") else entry.senses[0]
            found.append(_document(form.format(zh=entry.simplified, en=gloss, pinyin=entry.pinyin), "cedict"))
    return found


def sentence_documents(rng: random.Random) -> tuple[list[Document], list[Document]]:
    """(training, held out) graded sentences with their translations, in either order."""
    parts: tuple[list[Document], list[Document]] = ([], [])
    for chinese, english in hsk.sentences():
        pair = [chinese, english]
        rng.shuffle(pair)
        parts[is_heldout_text(chinese)].append(_document("\n".join(pair), "hsk"))
    return parts


def dialogue_documents(languages: Sequence[str] = LANGUAGES) -> tuple[list[Document], list[Document]]:
    """(training, held out) small talk, a turn a line."""
    parts: tuple[list[Document], list[Document]] = ([], [])
    for language in languages:
        for turns in chatterbot.dialogues(language):
            text = "\n".join(turns)
            if len(text) <= 400:
                parts[is_heldout_text(turns[0])].append(_document(text, "chatterbot"))
    return parts


def concept_documents() -> list[Document]:
    """What every concept is called and is a kind of, in both languages."""
    found = []
    for concept in concepts().values():
        texts = [form.format(zh=concept.chinese, en=concept.english, pinyin="") for form in _WORD_FORMS[:6]]
        texts += [kind_fact(concept, language) for language in LANGUAGES]
        found += [_document(text, "concepts") for text in texts * REPEATS]
    return found


def scene_documents(
    number: int,
    rng: random.Random,
    pool: Sequence[Concept],
    languages: Sequence[str] = LANGUAGES,
    tell: Callable[[Scene, str], str] | None = None,
) -> list[Document]:
    """Scenes in words alone: what is there, then a quiz on it and a caption; questions without answers.

    Args:
        tell: puts a scene in words; by default the `sketch`, which has a word or a dot for each of the patches that a
            picture's eye will give, in the same order. So the decoder learns to find, count and place what it reads
            before it has seen a picture.
    """
    tell = tell or sketch
    found = []
    for index in range(number):
        language = languages[index % len(languages)]
        if rng.random() < 0.05:
            text = _question(rng, language, pool)
        else:
            scene = compose(rng, pool, rng.choices(("single", "several", "pair", "mixed"), (10, 20, 30, 40))[0])
            lines = [tell(scene, rng.choice(languages)), *_quiz(scene, rng, language, pool)]
            text = "\n".join([*lines, caption(scene, rng, language)] if rng.random() < 0.3 else lines)
        found.append(_document(text, "scenes"))
    return found


def page_documents(
    number: int, rng: random.Random, pool: Sequence[Concept], languages: Sequence[str]
) -> list[Document]:
    """Pages of a quiz book: two to five described scenes, each with a question and its answer on a line.

    A model that reads them can learn to be shown by examples what is wanted.
    """
    found = []
    for index in range(number):
        language = languages[index % len(languages)]
        lines = []
        for _ in range(rng.randint(2, 5)):
            scene = compose(rng, pool)
            lines += [description(scene, language), rng.choice(_quiz(scene, rng, language, pool))]
        found.append(_document("\n".join(lines), "pages"))
    return found


def _quiz(scene: Scene, rng: random.Random, language: str, pool: Sequence[Concept]) -> list[str]:
    """How many there are of each thing, whether there is this or that, and where one thing is from another."""
    lines = []

    def line(task: str, concept: Concept, answer: str, other: Concept | None = None) -> None:
        lines.append(
            rng.choice(_QUIZ[language][task]).format(
                a=concept.name(language), an_a=concept.article, plural=concept.plural, measure=concept.measure,
                b=other.name(language) if other else "", answer=answer,
            )
        )  # fmt: skip

    yes, no = ("yes", "no") if language == "en" else ("有", "没有")
    present = [concepts()[name] for name in scene.counts]
    for concept in present:
        number = NUMBERS[language][scene.counts[concept.english] - 1]
        line("counting", concept, number if language == "en" else number + concept.measure)
    for concept in rng.choices(present, k=2):
        line("yes_no", concept, yes)
    absent = [concept for concept in rng.sample(pool, 8) if concept not in present]
    near = [concept for concept in absent if concept.category == present[0].category]
    for concept in (near + absent)[:2]:
        line("yes_no", concept, no)
    once = [thing for thing in scene.things if scene.counts[thing.name] == 1]
    for i, a in enumerate(once):
        for b in once[:i]:
            first, second = (a, b) if rng.random() < 0.5 else (b, a)
            side = relation(first, second)
            if side is not None:
                line("relation", first.concept, SIDES[language][side], second.concept)
    rng.shuffle(lines)
    return lines


def sketch(scene: Scene, language: str) -> str:
    """The scene as rows of words, each where a thing has its centre; dots where there is none.

    Words are written as within a sentence, so that they are the tokens that patches are aligned with.
    """
    words = [[concept.name(language) for concept in cell] or ["."] for cell in patch_concepts(scene)]
    return "".join(as_written(word) for cell in words for word in cell)


def as_written(word: str) -> str:
    """A word as it stands in the middle of a text: after a space where its language has them."""
    return f" {word}" if word.isascii() else word


def patch_concepts(scene: Scene) -> list[list[Concept]]:
    """What has its centre in each patch of the picture, row by row."""
    cells: list[list[Concept]] = [[] for _ in range(PATCHES**2)]
    for thing in scene.things:
        row, column = (min(PATCHES - 1, place * PATCHES // SIDE) for place in (thing.y, thing.x))
        cells[row * PATCHES + column].append(thing.concept)
    return cells


def _question(rng: random.Random, language: str, pool: Sequence[Concept]) -> str:
    task = rng.choice([task for task in PHRASINGS if task not in (HELDOUT_TASK, *DRILLS, "to_chinese", "to_english")])
    a, b = rng.sample(pool, 2)
    return rng.choice(PHRASINGS[task][language][:-1]).format(
        a=a.name(language), b=b.name(language), an_a=a.article, plural=a.plural, name=a.chinese, measure=a.measure
    )


def caption_documents(number: int, rng: random.Random, pool: Sequence[Concept]) -> list[Document]:
    """A picture followed by its caption, half in each language; ``meta["patches"]`` has the names of what has its
    centre in each patch, row by row."""
    found = []
    for index in range(number):
        scene = compose(rng, list(pool), rng.choices(("single", "several", "pair", "mixed"), (40, 20, 20, 20))[0])
        language = LANGUAGES[index % 2]
        parts = (Part.of_image(scene.image()), Part.of_text(caption(scene, rng, language)))
        patches = [[concept.name(name) for concept in cell for name in LANGUAGES] for cell in patch_concepts(scene)]
        found.append(Document(parts, {"source": "scenes", "language": language, "patches": patches}))
    return found


def caption(scene: Scene, rng: random.Random, language: str) -> str:
    """One of several true descriptions: what there is, what kind it is, where the one is from the other, how large."""
    concept = scene.things[0].concept
    if len(scene.things) == 1 and rng.random() < 0.5:
        return _what(concept, language) + (" " if language == "en" else "") + kind_fact(concept, language)
    if len(scene.things) == 2 and len(scene.counts) == 2:
        draw, side = rng.random(), relation(*scene.things)
        if draw < 0.4 and side is not None:
            return _where(scene, side, language)
        if draw < 0.6:
            return _how_large(scene, language)
    listed = listing(scene, language)
    draw = rng.random()
    if draw < 0.3:
        return listed
    if language == "en":
        verb = "is" if len(scene.things) == 1 else "are"
        return f"There {verb} {listed} in the picture." if draw < 0.65 else f"A picture of {listed}."
    return f"图里有{listed}。" if draw < 0.65 else f"一张{listed}的图。"


def _what(concept: Concept, language: str) -> str:
    return f"It is {concept.article}." if language == "en" else f"这是一{concept.measure}{concept.chinese}。"


def _where(scene: Scene, side: str, language: str) -> str:
    a, b = (thing.concept for thing in scene.things)
    if language == "zh":
        return f"{a.chinese}在{b.chinese}的{SIDES['zh'][side]}。"
    return f"{a.article} {f'to the {side} of' if side in ('left', 'right') else side} {b.article}"


def _how_large(scene: Scene, language: str) -> str:
    words = []
    for thing in sorted(scene.things, key=lambda thing: -thing.size):
        large = thing.size >= 28
        if language == "en":
            words.append(f"a {'big' if large else 'small'} {thing.name}")
        else:
            words.append(f"一{thing.concept.measure}{'大' if large else '小'}{thing.concept.chinese}")
    return (" and " if language == "en" else "和").join(words)


def _document(text: str, source: str) -> Document:
    return Document((Part.of_text(text),), {"source": source})
