"""Names of emoji characters in English and Chinese, from Unicode CLDR through the package `emoji`."""

import json
from functools import cache

from chatwright.data.sources.registry import fetch


@cache
def names() -> dict[str, tuple[str, str]]:
    """(English, Chinese) name of every fully qualified emoji of one character, as plain words."""
    folder = fetch("emoji", "2.16.0", "c4230d80640def9071599ff56b1b5950fe13a2a94c0da98c5deab12431b24330")
    folder = folder / "emoji" / "unicode_codes"
    english = json.loads((folder / "emoji.json").read_text(encoding="utf-8"))
    chinese = json.loads((folder / "emoji_zh.json").read_text(encoding="utf-8"))
    found = {}
    for sequence, entry in english.items():
        character = sequence.replace("\ufe0f", "")
        if len(character) == 1 and entry["status"] == 2 and sequence in chinese:
            found[character] = (_plain(entry["en"]), _plain(chinese[sequence]))
    return found


def _plain(name: str) -> str:
    """ ":red_apple:" -> "red apple"."""
    return name.strip(":").replace("_", " ").replace("’", "'")
