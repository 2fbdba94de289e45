"""What people ask about pictures and words, and what is right to answer: several phrasings a task and language.

Every question has a checkable answer. Answers come in three registers: "bare" (dog), "sentence" (It is a dog.) and
"detailed" (a sentence and another true fact).

The last phrasing of every task is held out, and the task "comparison" as a whole.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from chatwright.data.scenes import CATEGORIES, Concept, Scene, Thing, concepts, place, relation

LANGUAGES = ("en", "zh")
REGISTERS = ("bare", "sentence", "detailed")
HELDOUT_TASK = "comparison"
DRILLS = ("total", "place")  # steps towards counting and relation; asked in rounds alone, and never tested
PICTURE_TASKS = ("naming", "category", "counting", "relation", "yes_no", "caption", HELDOUT_TASK)

NUMBERS = {"en": ("one", "two", "three", "four", "five"), "zh": ("一", "两", "三", "四", "五")}
SIDES = {
    "en": {"left": "left", "right": "right", "above": "above", "below": "below"},
    "zh": {"left": "左边", "right": "右边", "above": "上面", "below": "下面"},
}

# The last phrasing of each list is held out: no training stage sees it.
PHRASINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "naming": {
        "en": (
            "What is this?", "What do you see in the picture?", "Name the thing in the picture.",
            "What does the picture show?", "Tell me what this is.", "Which thing is drawn here?",
        ),
        "zh": (
            "这是什么？", "图里有什么？", "请说出图中的东西。", "图片上是什么？", "告诉我这是什么。",
            "这里画的是什么东西？",
        ),
    },
    "category": {
        "en": (
            "What kind of thing is this?", "What kind of thing is in the picture?", "Which category is it?",
            "Say what kind of thing you see.", "To which kind of things does this belong?",
        ),
        "zh": (
            "这是哪一类东西？", "图里的东西属于哪一类？", "它是什么类别？", "请说出它的种类。",
            "画上的东西算哪一种？",
        ),
    },
    "counting": {
        "en": (
            "How many {plural} are there?", "How many {plural} do you see?", "Count the {plural}.",
            "What is the number of {plural} in the picture?", "Tell me how many {plural} the picture has.",
        ),
        "zh": (
            "有几{measure}{name}？", "图里有多少{measure}{name}？", "请数一数{name}。", "{name}有几{measure}？",
            "你能看到多少{measure}{name}？",
        ),
    },
    "relation": {
        "en": (
            "Where is the {a}, seen from the {b}?", "Where is the {a} relative to the {b}?",
            "On which side of the {b} is the {a}?", "Is the {a} left of, right of, above or below the {b}?",
            "In which direction from the {b} do you find the {a}?",
        ),
        "zh": (
            "{a}在{b}的哪一边？", "从{b}看，{a}在哪里？", "{a}在{b}的什么方向？",
            "{a}在{b}的左边、右边、上面还是下面？", "相对于{b}，{a}的位置在哪？",
        ),
    },
    "total": {
        "en": (
            "How many things are there?", "How many things do you see?", "Count the things.",
            "What is the number of things in the picture?", "Tell me how many things the picture has.",
        ),
        "zh": ("有几个东西？", "图里有多少个东西？", "请数一数东西。", "东西有几个？", "你能看到多少个东西？"),
    },
    "place": {
        "en": (
            "Where is the {a}, seen from the middle?", "Where is the {a} relative to the middle?",
            "On which side of the middle is the {a}?", "Is the {a} left of, right of, above or below the middle?",
            "In which direction from the middle do you find the {a}?",
        ),
        "zh": (
            "{a}在中间的哪一边？", "从中间看，{a}在哪里？", "{a}在中间的什么方向？",
            "{a}在中间的左边、右边、上面还是下面？", "相对于中间，{a}的位置在哪？",
        ),
    },
    "yes_no": {
        "en": (
            "Is there {an_a} in the picture?", "Do you see {an_a}?", "Is there {an_a}?",
            "Does the picture show {an_a}?", "Can {an_a} be found here?",
        ),
        "zh": ("图里有{a}吗？", "你看到{a}了吗？", "有没有{a}？", "图片上有{a}吗？", "这里能找到{a}吗？"),
    },
    "yes_no_kind": {
        "en": (
            "Is this {an_a}?", "Is the thing in the picture {an_a}?", "Would you call this {an_a}?",
            "Is it {an_a} that you see?",
        ),
        "zh": ("这是{a}吗？", "图里的东西是{a}吗？", "你看到的是{a}吗？", "可以说这是{a}吗？"),
    },
    "caption": {
        "en": (
            "Describe the picture.", "List what is in the picture.", "Write a caption.", "What is in this picture?",
            "Say everything that you can see.",
        ),
        "zh": ("描述这张图。", "列出图里的东西。", "写一个图片说明。", "这张图里都有什么？", "说说你看到的一切。"),
    },
    HELDOUT_TASK: {
        "en": ("Which is bigger, the {a} or the {b}?", "Which of the two is bigger: the {a} or the {b}?"),
        "zh": ("{a}和{b}，哪个更大？", "哪个大，{a}还是{b}？"),
    },
    "to_chinese": {
        "en": (
            'How do you say "{a}" in Chinese?', 'Translate "{a}" into Chinese.', 'What is "{a}" in Chinese?',
            'Give me the Chinese word for "{a}".',
        ),
        "zh": ("“{a}”用中文怎么说？", "把“{a}”翻译成中文。", "“{a}”的中文是什么？", "请给出“{a}”的中文。"),
    },
    "to_english": {
        "en": (
            'What does "{a}" mean?', 'Translate "{a}" into English.', 'What is "{a}" in English?',
            'Give me the English word for "{a}".',
        ),
        "zh": ("“{a}”用英语怎么说？", "把“{a}”翻译成英语。", "“{a}”的英语是什么？", "请给出“{a}”的英语。"),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A question in words, its right answers, and what a judge must know.

    ``fact`` is a further true statement. ``asked`` are the English names of the concepts that the question names;
    ``tells`` those that question and answer give away. ``choices`` is empty for open answers.
    """

    task: str
    language: str
    text: str
    bare: str
    sentence: str
    fact: str
    reference: str
    choices: tuple[str, ...]
    asked: tuple[str, ...] = ()
    tells: tuple[str, ...] = ()

    def answer(self, register: str) -> str:
        """The right answer in one of REGISTERS."""
        if register == "bare":
            return self.bare
        if register == "sentence" or not self.fact:
            return self.sentence
        return self.sentence + (" " if self.language == "en" else "") + self.fact


# --- questions about a picture ---------------------------------------------------------------------------------------


def ask(
    task: str,
    scene: Scene,
    rng: random.Random,
    language: str,
    pool: Sequence[Concept],
    heldout_phrasing: bool = False,
    avoid: frozenset[str] = frozenset(),
) -> Question | None:
    """A question of a task about a scene, or None where the scene does not admit one.

    Args:
        pool: concepts that a question may name although they are not in the picture.
        avoid: names of concepts whose presence is known from earlier turns.
    """
    return _ASKERS[task](scene, _Phrase(rng, language, heldout_phrasing), pool, avoid)


@dataclass(frozen=True)
class _Phrase:
    """Picks a phrasing and fills it."""

    rng: random.Random
    language: str
    heldout: bool

    def __call__(self, task: str, **words: str) -> str:
        phrasings = PHRASINGS[task][self.language]
        return (phrasings[-1] if self.heldout else self.rng.choice(phrasings[:-1])).format(**words)


def kind_name(concept: Concept, language: str) -> str:
    """Name of a concept's category: "animal", "动物"."""
    return concept.category if language == "en" else CATEGORIES[concept.category].chinese


def kind_fact(concept: Concept, language: str) -> str:
    """ "A dog is an animal.", "狗是动物。"."""
    category = CATEGORIES[concept.category]
    if language == "en":
        return f"{_capital(concept.article)} is {category.english}."
    return f"{concept.chinese}是{category.chinese}。"


def counted(concept: Concept, number: int, language: str) -> str:
    """ "a dog", "three dogs", "三只狗"."""
    if language == "zh":
        return NUMBERS["zh"][number - 1] + concept.measure + concept.chinese
    return concept.article if number == 1 else f"{NUMBERS['en'][number - 1]} {concept.plural}"


def listing(scene: Scene, language: str) -> str:
    """What is in the picture, in the order of the table of concepts: "two dogs and an apple", "两只狗和一个苹果"."""
    known = concepts()
    return joined(
        [counted(known[name], scene.counts[name], language) for name in known if name in scene.counts], language
    )


def joined(items: Sequence[str], language: str) -> str:
    """ "a, b and c", "a、b和c"."""
    comma, last = (", ", " and ") if language == "en" else ("、", "和")
    return comma.join(items[:-1]) + last + items[-1] if len(items) > 1 else items[0]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _only(scene: Scene) -> Concept | None:
    return scene.things[0].concept if len(scene.things) == 1 else None


def _naming(scene: Scene, phrase: _Phrase, pool: Sequence[Concept], avoid: frozenset[str]) -> Question | None:
    concept, language = _only(scene), phrase.language
    if concept is None or concept.english in avoid:
        return None
    name = concept.name(language)
    sentence = f"It is {concept.article}." if language == "en" else f"这是{counted(concept, 1, 'zh')}。"
    return Question(
        "naming", language, phrase("naming"), name, sentence, kind_fact(concept, language),
        name, tuple(other.name(language) for other in concepts().values()), tells=(concept.english,),
    )  # fmt: skip


def _category(scene: Scene, phrase: _Phrase, pool: Sequence[Concept], avoid: frozenset[str]) -> Question | None:
    concept, language = _only(scene), phrase.language
    if concept is None or concept.english in avoid or concept.category in avoid:
        return None
    kind = kind_name(concept, language)
    article = CATEGORIES[concept.category].english
    sentence = f"It is {article}." if language == "en" else f"这是{kind}。"
    fact = f"It is {concept.article}." if language == "en" else f"它叫{concept.chinese}。"
    choices = tuple(name if language == "en" else category.chinese for name, category in CATEGORIES.items())
    # The detailed answer names the thing, but that is no part of what was asked.
    return Question(
        "category", language, phrase("category"), kind, sentence, fact, kind, choices, tells=(concept.category,)
    )


def _counting(scene: Scene, phrase: _Phrase, pool: Sequence[Concept], avoid: frozenset[str]) -> Question | None:
    language = phrase.language
    open_names = [name for name in scene.counts if f"number of {name}" not in avoid]
    if not open_names:
        return None
    name = phrase.rng.choice(open_names)
    concept, number = concepts()[name], scene.counts[name]
    word = NUMBERS[language][number - 1]
    if language == "en":
        bare = word
        sentence = f"There is one {name}." if number == 1 else f"There are {word} {concept.plural}."
    else:
        # With the measure word, for "三" alone is also in 三明治.
        word += concept.measure
        bare, sentence = word, f"图里有{counted(concept, number, 'zh')}。"
    choices = tuple(number + (concept.measure if language == "zh" else "") for number in NUMBERS[language])
    text = phrase("counting", plural=concept.plural, name=concept.name(language), measure=concept.measure)
    return Question(
        "counting", language, text, bare, sentence, kind_fact(concept, language),
        word, choices, asked=(name,), tells=(name, f"number of {name}"),
    )  # fmt: skip


def _total(scene: Scene, phrase: _Phrase, pool: Sequence[Concept], avoid: frozenset[str]) -> Question | None:
    """How many things are there, whatever they are?"""
    language, number = phrase.language, len(scene.things)
    choices = tuple(one + ("个" if language == "zh" else "") for one in NUMBERS[language])
    word = choices[number - 1]
    if language == "zh":
        sentence = f"图里有{word}东西。"
    else:
        sentence = "There is one thing." if number == 1 else f"There are {word} things."
    return Question("total", language, phrase("total"), word, sentence, "", word, choices)


def _place(scene: Scene, phrase: _Phrase, pool: Sequence[Concept], avoid: frozenset[str]) -> Question | None:
    """Where is the dog, seen from the middle of the picture?"""
    single = [thing for thing in scene.things if scene.counts[thing.name] == 1 and thing.name not in avoid]
    placed = [(thing, side) for thing in single if (side := place(thing))]
    if not placed:
        return None
    thing, side = phrase.rng.choice(placed)
    language, name = phrase.language, thing.concept.name(phrase.language)
    word, sentence = SIDES[language][side], _beside(name, "middle" if language == "en" else "中间", side, language)
    return Question(
        "place", language, phrase("place", a=name), word, sentence, kind_fact(thing.concept, language),
        word, tuple(SIDES[language].values()), asked=(thing.name,), tells=(thing.name,),
    )  # fmt: skip


def _relation(scene: Scene, phrase: _Phrase, pool: Sequence[Concept], avoid: frozenset[str]) -> Question | None:
    single = [thing for thing in scene.things if scene.counts[thing.name] == 1]
    pairs = [(a, b) for a in single for b in single if a is not b and _pair_key(a, b) not in avoid and relation(a, b)]
    if not pairs:
        return None
    a, b = phrase.rng.choice(pairs)
    language = phrase.language
    side = relation(a, b)
    assert side is not None
    word, sides = SIDES[language][side], tuple(SIDES[language].values())
    text = phrase("relation", a=a.concept.name(language), b=b.concept.name(language))
    return Question(
        "relation", language, text, word, _where(a, b, side, language), kind_fact(a.concept, language),
        word, sides, asked=(a.name, b.name), tells=(a.name, b.name, _pair_key(a, b)),
    )  # fmt: skip


def _pair_key(a: Thing, b: Thing) -> str:
    return " and ".join(sorted((a.name, b.name)))


def _yes_no(scene: Scene, phrase: _Phrase, pool: Sequence[Concept], avoid: frozenset[str]) -> Question | None:
    """Is there a dog in the picture?"""
    language, rng = phrase.language, phrase.rng
    present = rng.random() < 0.5
    if present:
        some = [concepts()[name] for name in scene.counts if name not in avoid]
    else:
        near = {concepts()[name].category for name in scene.counts}
        some = [concept for concept in pool if concept.english not in scene.counts and concept.english not in avoid]
        # Half of the absent things are of a kind that is there: harder to tell.
        if rng.random() < 0.5:
            some = [concept for concept in some if concept.category in near]
    if not some:
        return None
    concept = rng.choice(some)
    yes, no = ("yes", "no") if language == "en" else ("有", "没有")
    word = yes if present else no
    if language == "en":
        sentence = f"Yes, there is {concept.article}." if present else f"No, there is no {concept.english}."
    else:
        sentence = f"有，图里有{concept.chinese}。" if present else f"没有，图里没有{concept.chinese}。"
    text = phrase("yes_no", a=concept.name(language), an_a=concept.article)
    return Question(
        "yes_no", language, text, word, sentence, kind_fact(concept, language),
        word, (yes, no), asked=(concept.english,), tells=(concept.english,),
    )  # fmt: skip


def _yes_no_kind(scene: Scene, phrase: _Phrase, pool: Sequence[Concept], avoid: frozenset[str]) -> Question | None:
    """Is this a dog? Is this an animal?"""
    concept, language, rng = _only(scene), phrase.language, phrase.rng
    if concept is None or concept.english in avoid or concept.category in avoid:
        return None
    right = rng.random() < 0.5
    if rng.random() < 0.5:
        category = CATEGORIES[concept.category]
        if not right:
            category = rng.choice([other for other in CATEGORIES.values() if other is not category])
        a, an_a, tells = category.chinese, category.english, (concept.category,) if right else ()
        asked: tuple[str, ...] = ()
    else:
        other = concept if right else rng.choice([other for other in pool if other is not concept])
        a, an_a, tells, asked = other.chinese, other.article, (other.english,), (other.english,)
    yes, no = ("yes", "no") if language == "en" else ("对", "不对")
    word = yes if right else no
    if language == "en":
        sentence = f"Yes, it is {an_a}." if right else f"No, it is not {an_a}."
        fact = f"It is {concept.article}."
    else:
        sentence = f"对，这是{a}。" if right else f"不对，这不是{a}。"
        fact = f"它叫{concept.chinese}。"
    if right and asked:
        fact = kind_fact(concept, language)
    return Question(
        "yes_no", language, phrase("yes_no_kind", a=a, an_a=an_a), word, sentence, fact,
        word, (yes, no), asked=asked, tells=tells,
    )  # fmt: skip


def _caption(scene: Scene, phrase: _Phrase, pool: Sequence[Concept], avoid: frozenset[str]) -> Question | None:
    language = phrase.language
    listed = listing(scene, language)
    known = concepts()
    if language == "en":
        sentence = f"There {'is' if len(scene.things) == 1 else 'are'} {listed} in the picture."
    else:
        sentence = f"图里有{listed}。"
    fact = kind_fact(known[next(name for name in known if name in scene.counts)], language)
    numbers = tuple(f"number of {name}" for name in scene.counts)
    return Question(
        "caption", language, phrase("caption"), listed, sentence, fact, listed, (), tells=(*scene.counts, *numbers)
    )


def _comparison(scene: Scene, phrase: _Phrase, pool: Sequence[Concept], avoid: frozenset[str]) -> Question | None:
    if len(scene.things) != 2 or len(scene.counts) != 2:
        return None
    a, b = scene.things
    if max(a.size, b.size) < 1.5 * min(a.size, b.size):
        return None
    language = phrase.language
    bigger, name_a, name_b = (thing.concept.name(language) for thing in (a if a.size > b.size else b, a, b))
    sentence = f"The {bigger} is bigger." if language == "en" else f"{bigger}更大。"
    return Question(
        HELDOUT_TASK, language, phrase(HELDOUT_TASK, a=name_a, b=name_b), bigger, sentence, "",
        bigger, (name_a, name_b), asked=(a.name, b.name), tells=(a.name, b.name),
    )  # fmt: skip


_ASKERS = {
    "naming": _naming,
    "category": _category,
    "counting": _counting,
    "total": _total,
    "place": _place,
    "relation": _relation,
    "yes_no": _yes_no,
    "yes_no_kind": _yes_no_kind,
    "caption": _caption,
    HELDOUT_TASK: _comparison,
}


# --- questions about words -------------------------------------------------------------------------------------------


def ask_word(english: str, chinese: str, rng: random.Random, language: str, heldout_phrasing: bool = False) -> Question:
    """How a word is said in the other language; either direction."""
    phrase = _Phrase(rng, language, heldout_phrasing)
    to_chinese = rng.random() < 0.5
    word, other = (english, chinese) if to_chinese else (chinese, english)
    text = phrase("to_chinese" if to_chinese else "to_english", a=word)
    if language == "en":
        sentence = f'"{word}" is {other} in Chinese.' if to_chinese else f'"{word}" means {other}.'
    else:
        sentence = f"“{word}”的{'中文' if to_chinese else '英语'}是{other}。"
    return Question("translation", language, text, other, sentence, "", other, ())


# --- a scene in words ------------------------------------------------------------------------------------------------


def description(scene: Scene, language: str) -> str:
    """All that questions ask about a scene: what there is, where the one is from the other, which of two is bigger."""
    listed = listing(scene, language)
    sentences = [f"The picture shows {listed}." if language == "en" else f"图里有{listed}。"]
    once = [thing for thing in scene.things if scene.counts[thing.name] == 1]
    for i, a in enumerate(once):
        for b in once[:i]:
            side = relation(a, b)
            if side is not None:
                sentences.append(_where(a, b, side, language))
    if len(once) == len(scene.things) == 2:
        smaller, bigger = sorted(once, key=lambda thing: thing.size)
        name_a, name_b = (thing.concept.name(language) for thing in (bigger, smaller))
        sentences.append(
            f"The {name_a} is bigger than the {name_b}." if language == "en" else f"{name_a}比{name_b}大。"
        )
    return (" " if language == "en" else "").join(sentences)


def _where(a: Thing, b: Thing, side: str, language: str) -> str:
    return _beside(a.concept.name(language), b.concept.name(language), side, language)


def _beside(name: str, other: str, side: str, language: str) -> str:
    """ "The dog is to the left of the cat.", "狗在猫的左边。"."""
    word = SIDES[language][side]
    if language == "zh":
        return f"{name}在{other}的{word}。"
    of = f"to the {word} of" if side in ("left", "right") else word
    return f"The {name} is {of} the {other}."
