"""Small talk in English and Chinese from the ChatterBot corpus (BSD)."""

import yaml

from chatwright.data.sources.registry import fetch

# Long technical answers that a small model cannot learn, and views and jokes that no assistant should repeat.
_LEFT_OUT = {"coding", "tech_support", "politics", "humor", "gossip", "botprofile", "psychology"}


def dialogues(language: str) -> list[tuple[str, ...]]:
    """Conversations in "en" or "zh": each a tuple of turns that alternate between two speakers, at least two turns."""
    folder = fetch("chatterbot-corpus", "1.3.3", "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154")
    folder = folder / "chatterbot_corpus" / "data" / {"en": "english", "zh": "chinese"}[language]
    found = []
    for path in sorted(folder.glob("*.yml")):
        if path.stem in _LEFT_OUT:
            continue
        for turns in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            turns = tuple(" ".join(str(turn).split()) for turn in turns)
            if len(turns) >= 2 and all(turns):
                found.append(turns)
    return list(dict.fromkeys(found))
