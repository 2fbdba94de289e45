"""Reading answers: what two spellings of an answer have in common, and which of the possible answers a text gives.

Rewards, judges, tests of the data and the scores of `chatwright.evaluation.metrics` all read answers with these
functions, so that they agree on what an answer says.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

# Scripts written without spaces between words: Han characters (with their extensions) and Japanese kana.
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_unspaced = re.compile(f"[{UNSPACED}]")
_space_beside_unspaced = re.compile(rf"(?<=[{UNSPACED}]) | (?=[{UNSPACED}])")
# Punctuation that carries the value of a number: the sign of -3, the point of 3.5, the comma of 1,000.
_in_number = re.compile(r"(?<!\w)-(?=\d)|(?<=\d)[.,:/](?=\d)")
_space = re.compile(r"\s+")


def normalise(text: str) -> str:
    """The text without what does not change an answer: case, width, punctuation and spacing.

    Full-width forms become half-width (Unicode NFKC), apostrophes vanish, other punctuation becomes a space except in
    numbers, and no space remains beside a Chinese character: "  Ｔwo, 苹 果。" -> "two苹果".
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    kept = {match.start() for match in _in_number.finditer(text)}
    characters = []
    for position, character in enumerate(text):
        if character in "'’":
            continue
        punctuation = unicodedata.category(character).startswith("P")
        characters.append(" " if punctuation and position not in kept and character not in "%#&@" else character)
    return _space_beside_unspaced.sub("", _space.sub(" ", "".join(characters)).strip())


def contains(text: str, answer: str) -> bool:
    """Whether the answer occurs in the text, both normalised; Latin words and numbers only as whole words."""
    return bool(_spans(normalise(text), normalise(answer)))


def find(text: str, choices: Iterable[str]) -> str | None:
    """The single choice that occurs in the text, else None: none occurs, or several do.

    A choice inside a longer one does not count: in "a green apple" the choice "green apple" hides "apple", and "不是"
    hides "是". Of choices that are the same when normalised the first is returned.
    """
    text = normalise(text)
    found: dict[str, list[tuple[int, int]]] = {}
    spelled: dict[str, str] = {}
    for choice in choices:
        plain = normalise(choice)
        if plain and plain not in spelled:
            spelled[plain] = choice
            if spans := _spans(text, plain):
                found[plain] = spans
    every = [span for spans in found.values() for span in spans]
    visible = [plain for plain, spans in found.items() if any(not _hidden(span, every) for span in spans)]
    return spelled[visible[0]] if len(visible) == 1 else None


def _spans(text: str, answer: str) -> list[tuple[int, int]]:
    """Where a normalised answer occurs in a normalised text, as whole words."""
    spans = []
    start = text.find(answer) if answer else -1
    while start >= 0:
        end = start + len(answer)
        if not (_same_word(text[start - 1 : start], answer[0]) or _same_word(answer[-1], text[end : end + 1])):
            spans.append((start, end))
        start = text.find(answer, start + 1)
    return spans


def _same_word(left: str, right: str) -> bool:
    """Whether no word ends between two neighbouring characters."""
    return left.isalnum() and right.isalnum() and not (_unspaced.match(left) or _unspaced.match(right))


def _hidden(span: tuple[int, int], spans: Sequence[tuple[int, int]]) -> bool:
    """Whether a longer span covers this one."""
    return any(start <= span[0] and span[1] <= end and end - start > span[1] - span[0] for start, end in spans)
