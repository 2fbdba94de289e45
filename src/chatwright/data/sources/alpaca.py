"""Real instruction rows and preference pairs in English and Chinese, from the source archive of `llamafactory`."""

import json
from pathlib import Path

from chatwright.data.records import Comparison, Demonstration, Message
from chatwright.data.sources.registry import fetch

_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def _folder() -> Path:
    folder = fetch(
        "llamafactory", "0.9.5", "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f", kind="sdist"
    )
    return folder / "llamafactory-0.9.5" / "data"


def demonstrations(language: str) -> list[Demonstration]:
    """1,000 rows of instruction and answer in "en" or "zh" (alpaca-gpt4)."""
    rows = json.loads((_folder() / f"alpaca_{language}_demo.json").read_text(encoding="utf-8"))
    found = []
    for row in rows:
        question = "\n".join(filter(None, (row["instruction"], row.get("input"))))
        if question and row["output"]:
            messages = (Message.of("user", question), Message.of("assistant", row["output"]))
            found.append(Demonstration(messages, {"source": "alpaca", "language": language}))
    return found


def comparisons(language: str) -> list[Comparison]:
    """300 pairs of a chosen and a rejected answer in "en" or "zh"."""
    rows = json.loads((_folder() / f"dpo_{language}_demo.json").read_text(encoding="utf-8"))
    return [
        Comparison(
            messages=tuple(Message.of(_ROLES[turn["from"]], turn["value"]) for turn in row["conversations"]),  # type: ignore[arg-type]
            responses=(row["chosen"]["value"], row["rejected"]["value"]),
            ranks=(0, 1),
            annotator="llamafactory",
            how="pair",
            meta={"source": "dpo_demo", "language": language},
        )
        for row in rows
    ]
