"""Labelled pictures and words become conversations about them (FLAN, arXiv:2109.01652; MultiInstruct,
arXiv:2212.10773).

Demonstrations mix the registers of answers. Prompts carry the truth in ``meta``, by which `chatwright.data.truth`
judges what a model answers. Held out is what `chatwright.data.questions` and `chatwright.data.scenes` hold out.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from chatwright.data.questions import REGISTERS, Question, ask, description
from chatwright.data.records import Demonstration, Message, Part, Prompt
from chatwright.data.scenes import Concept, Scene, compose, concepts

REGISTER_WEIGHTS = (0.4, 0.35, 0.25)

# --- how a scene is put before the assistant -------------------------------------------------------------------------

Show = Callable[[Scene, str], Part]
"""Scene, language -> what stands before the first question about it."""


def picture(scene: Scene, language: str) -> Part:
    return Part.of_image(scene.image())


def described(scene: Scene, language: str) -> Part:
    """The scene in words, for models that read text only."""
    return Part.of_text(description(scene, language) + "\n")


# --- records ---------------------------------------------------------------------------------------------------------

# What a conversation about a kind of scene draws its questions from; a caption comes last, for it tells everything.
_TASKS_OF = {
    "single": ("naming", "category", "counting", "yes_no", "yes_no", "yes_no_kind"),
    "several": ("counting", "yes_no", "yes_no", "yes_no"),
    "mixed": ("counting", "counting", "relation", "relation", "relation", "yes_no", "yes_no", "yes_no"),
}
# A quick round asks what is hardest to learn, as often as the picture allows.
_QUICK_TASKS_OF = {
    "single": ("counting", *["yes_no"] * 4),
    "several": ("counting", *["yes_no"] * 4),
    "mixed": (*["counting"] * 3, *["relation"] * 3, *["yes_no"] * 3),
}


@dataclass(frozen=True)
class Round:
    """What a round of bare questions asks: the kinds of scenes by weight, and the task as often as ``times``."""

    kinds: Mapping[str, int]
    task: str
    times: int


# Whether a thing is there has to be learned first and alone. Of the others no answer tells that of a later question:
# what can be read off earlier turns is not looked for in the picture.
ROUNDS = {
    "presence": Round({"single": 1, "several": 1, "pair": 1, "mixed": 1}, "yes_no", 10),
    "counting": Round({"single": 1, "several": 5, "mixed": 5}, "counting", 5),
    "total": Round({"single": 1, "several": 5, "mixed": 5}, "total", 1),
    "relation": Round({"pair": 2, "mixed": 3}, "relation", 3),
    "place": Round({"single": 1, "pair": 4, "mixed": 5}, "place", 3),
}
# The rounds by weight: where things are, for who knows what is there, and then everything.
PLACES = {"presence": 4, "relation": 11, "place": 5}
EVERYTHING = {"presence": 3, "counting": 6, "total": 1, "relation": 8, "place": 4}


def one_round(rng: random.Random, language: str, pool: Sequence[Concept], which: Round) -> Demonstration:
    """A picture and questions with bare answers about it, of one task."""
    while True:
        (kind,) = rng.choices(list(which.kinds), list(which.kinds.values()))
        scene = compose(rng, pool, kind)
        told: set[str] = set()
        asked: dict[str, Question] = {}
        for _ in range(which.times):
            question = ask(which.task, scene, rng, language, pool, avoid=frozenset(told))
            if question is None:
                continue
            asked.setdefault(question.text, question)
            # That a thing is there may be asked again in other words: most pictures hold too few things.
            told |= set() if which.task == "yes_no" else {*question.tells}
        if asked:
            break
    messages: list[Message] = []
    for question in asked.values():
        messages += [_asked(question, None if messages else scene), Message.of("assistant", question.bare)]
    meta = {"language": language, "tasks": [question.task for question in asked.values()], "split": "train"}
    return Demonstration(tuple(messages), meta)


def conversation(
    scene: Scene,
    rng: random.Random,
    language: str,
    pool: Sequence[Concept],
    quick: bool = False,
    show: Show = picture,
) -> Demonstration:
    """A demonstration with one scene and several questions; ``quick``: with bare answers, what is hardest to learn.

    In half of them no turn gives away the answer of a later one, which is to be seen in the picture; in the others,
    people ask about what was said before, which is the easier lesson in comparing what is asked with what is there.
    """
    kind = "single" if len(scene.things) == 1 else "several" if len(scene.counts) == 1 else "mixed"
    tasks = _QUICK_TASKS_OF[kind] if quick else _TASKS_OF[kind]
    order = rng.sample(tasks, len(tasks)) + ([] if quick else ["caption"])
    strict = rng.random() < 0.5
    told: frozenset[str] = frozenset()
    messages: list[Message] = []
    asked: list[str] = []
    for task in order:
        known = told if strict or task != "yes_no" else frozenset()
        question = ask(task, scene, rng, language, pool, avoid=known)
        if question is None:
            continue
        answer = question.bare if quick else question.answer(rng.choices(REGISTERS, REGISTER_WEIGHTS)[0])
        shown = () if messages else (show(scene, language),)
        messages += [Message("user", (*shown, Part.of_text(question.text))), Message.of("assistant", answer)]
        asked.append(question.task)
        # A detailed answer may name what the question left open.
        told |= {*question.tells, *(name for name in scene.counts if concepts()[name].name(language) in answer)}
    return Demonstration(tuple(messages), {"language": language, "tasks": asked, "split": "train"})


def as_demonstration(
    question: Question, rng: random.Random, scene: Scene | None = None, show: Show = picture
) -> Demonstration:
    """A conversation of one question, answered in a register drawn at random."""
    answer = question.answer(rng.choices(REGISTERS, REGISTER_WEIGHTS)[0])
    messages = (_asked(question, scene, show), Message.of("assistant", answer))
    return Demonstration(messages, {"language": question.language, "tasks": [question.task], "split": "train"})


def as_prompt(question: Question, split: str, scene: Scene | None = None, show: Show = picture) -> Prompt:
    """The question as a prompt with its truth, for annotators, judges and evaluation."""
    things = () if scene is None else scene.things
    truth = {
        "things": [
            {"name": thing.name, "kind": thing.concept.category, "x": thing.x, "y": thing.y, "size": thing.size}
            for thing in things
        ],
        "asked": list(question.asked),
    }
    meta = {
        "task": question.task,
        "language": question.language,
        "split": split,
        "truth": truth,
        "answers": {register: question.answer(register) for register in REGISTERS},
    }
    return Prompt((_asked(question, scene, show),), question.reference, question.choices, meta=meta)


def _asked(question: Question, scene: Scene | None, show: Show = picture) -> Message:
    shown = () if scene is None else (show(scene, question.language),)
    return Message("user", (*shown, Part.of_text(question.text)))
