"""What an answer is worth by the truth that its prompt carries: is it right, and how helpful is its form?

Simulated annotators and the evaluation's judge share these functions; prompts come from `chatwright.data.instruct`.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from chatwright.data.questions import NUMBERS, counted
from chatwright.data.records import Prompt
from chatwright.data.scenes import CATEGORIES, Concept, concepts


def found(text: str, words: Sequence[str]) -> list[str]:
    """Which of ``words`` occur in a text, in order, the longest first at each place: "racing car" is not "car".

    Latin words stand alone, in any case, also in the plural; Chinese words may touch others.
    """
    forms, pattern = _finder(tuple(words))
    return [forms[match.group()] for match in pattern.finditer(text.lower())] if words else []


@lru_cache(maxsize=4096)
def _finder(words: tuple[str, ...]) -> tuple[dict[str, str], re.Pattern[str]]:
    """What each form found stands for, and a pattern that finds the forms."""
    forms: dict[str, str] = {}
    for word in words:
        for form in (word, *_plurals(word)):
            forms.setdefault(form.lower(), word)
    patterns = []
    for form in sorted(forms, key=len, reverse=True):
        escaped = re.escape(form)
        patterns.append(rf"(?<![a-z0-9]){escaped}(?![a-z0-9])" if form.isascii() else escaped)
    return forms, re.compile("|".join(patterns))


def _plurals(word: str) -> tuple[str, ...]:
    concept = concepts().get(word)
    if concept is not None:
        return (concept.plural,)
    return (word + "s",) if word in CATEGORIES else ()


def parse(text: str, choices: Sequence[str]) -> str | None:
    """The one choice that a text contains, or None when it contains none or several of them. Digits count as words."""
    for numbers in NUMBERS.values():
        if all(choice.startswith(number) for choice, number in zip(choices, numbers, strict=False)):
            for digit, number in zip("12345", numbers, strict=True):
                text = text.replace(digit, number)
            text = text.replace("二", "两")
    distinct = set(found(text, choices))
    return distinct.pop() if len(distinct) == 1 else None


def correct(prompt: Prompt, text: str) -> bool:
    """Whether a text answers a prompt rightly: the one choice in it is the reference; for a caption, it names all that
    is in the picture with the right numbers and nothing else; otherwise it contains the reference.

    About a picture, a text that denies ("It is not a dog.") or stutters ("a a a dog") answers nothing, but for yes or
    no, where to deny may be right.
    """
    task = prompt.meta["task"]
    if task != "translation" and (_STUTTER.search(text) or (task != "yes_no" and _DENIAL.search(text))):
        return False
    if prompt.choices:
        return parse(text, prompt.choices) == prompt.reference
    if task == "caption":
        return _caption_holds(prompt, text)
    return (prompt.reference or "").lower() in text.lower()


_DENIAL = re.compile(r"\b(no|not)\b|n't\b|不|没", re.IGNORECASE)
_STUTTER = re.compile(r"\b([a-z]+)( \1){2}\b|([\u4e00-\u9fff]{1,4})\3\3", re.IGNORECASE)


def _caption_holds(prompt: Prompt, text: str) -> bool:
    language = prompt.meta["language"]
    known = concepts()
    names = [thing["name"] for thing in prompt.meta["truth"]["things"]]
    by_name = {concept.name(language): concept for concept in known.values()}
    if {by_name[word].english for word in found(text, tuple(by_name))} != set(names):
        return False
    phrases = [counted(known[name], names.count(name), language) for name in set(names)]
    one = [phrase.replace("a ", "one ", 1).replace("an ", "one ", 1) for phrase in phrases]
    return all(a.lower() in text.lower() or b.lower() in text.lower() for a, b in zip(phrases, one, strict=True))


def helpfulness(prompt: Prompt, text: str) -> float:
    """How helpful the form of an answer is, in [0, 1], whether or not it is right.

    0.4 for a finished full sentence, 0.4 for a further fact that is true, 0.2 for the right language. A false statement
    about kinds or an invented thing costs the fact and half of the rest; repetition, scraps of markup and rambling cost
    most of it.
    """
    language = prompt.meta["language"]
    text = text.strip()
    if not text:
        return 0.0
    chinese = len(re.findall("[\u4e00-\u9fff]", text))
    words = chinese + len(re.findall("[A-Za-z']+", text))
    sentence = words >= 3 and text[-1] in ".!?。！？"
    translated = prompt.meta["task"] == "translation"
    right_language = translated or ((chinese > 0) if language == "zh" else (chinese == 0))
    truths, lies = _facts(prompt, text)
    score = 0.4 * sentence + 0.2 * right_language
    if truths and not lies:
        score += 0.4
    elif translated and sentence:
        score += 0.4  # nothing to add to a translated word
    if lies:
        score *= 0.5
    if _repeats(text) or words > 48 or re.search(r"[<>{}|\ufffd]", text):
        score *= 0.25
    return score


def _facts(prompt: Prompt, text: str) -> tuple[int, int]:
    """(true, false) statements beyond the bare answer: what a thing is a kind of, and what the thing is."""
    language = prompt.meta["language"]
    known = concepts()
    by_name = {concept.name(language): concept for concept in known.values()}
    by_kind = {(name if language == "en" else category.chinese): name for name, category in CATEGORIES.items()}
    present = {thing["name"] for thing in prompt.meta["truth"]["things"]}
    named = present | set(prompt.meta["truth"]["asked"])
    truths = lies = 0
    said = [by_name[word].english for word in found(text, tuple(by_name))]
    lies += any(name not in named for name in said)
    truths += prompt.meta["task"] == "category" and any(name in present for name in said)
    # A kind is stated of the concept that was named last before it.
    for sentence in re.split(r"(?<=[.!?。！？])", text):
        concept: Concept | None = None
        negated = re.search(r"\bnot\b|不", sentence) is not None
        for word in found(sentence, (*by_name, *by_kind)):
            if word in by_name:
                concept = by_name[word]
            elif concept is not None and not negated:
                truths += concept.category == by_kind[word]
                lies += concept.category != by_kind[word]
    if prompt.meta["task"] == "yes_no":
        truths += any(name in present and name not in prompt.meta["truth"]["asked"] for name in said)
    return truths, lies


def _repeats(text: str) -> bool:
    """Whether a run of four words (Chinese: six characters) comes twice, or a sentence does."""
    pieces = re.findall(r"[A-Za-z']+|[\u4e00-\u9fff]", text)
    length = 6 if re.search("[\u4e00-\u9fff]", text) else 4
    runs = [tuple(pieces[i : i + length]) for i in range(len(pieces) - length + 1)]
    return len(runs) != len(set(runs))
