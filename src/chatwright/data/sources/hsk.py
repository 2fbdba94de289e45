"""4,354 graded Chinese sentences with English translations (CC BY-SA 4.0), from `hsk-sentences-audio`."""

import json

from chatwright.data.sources.registry import fetch


def sentences() -> list[tuple[str, str]]:
    """(Chinese, English) pairs, the easiest first."""
    folder = fetch("hsk-sentences-audio", "1.0.0", "9bf16cc7b48a24a10af83d377439d3c6f7571a380937f4645a1cd1590d5d0335")
    rows = json.loads((folder / "hsk_sentences_audio" / "data" / "sentences.json").read_text(encoding="utf-8"))
    return [(row["chinese"], row["translation"]["en"]) for row in rows]
