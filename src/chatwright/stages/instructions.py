"""Real instructions for a pretrained model, English and Chinese."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from chatwright.data.records import Prompt
from chatwright.data.sources import alpaca
from chatwright.data.store import save
from chatwright.errors import ChatwrightError
from chatwright.stages.base import Stage


@dataclass
class Instructions(Stage):
    """Fetch instruction rows (alpaca-gpt4, English and Chinese) and split them for the stages that follow.

    Writes ``demonstrations`` (for sft), ``prompts`` (for annotate and rl, none of them demonstrated) and ``heldout``
    (for evaluate), as Parquet.

    Args:
        demonstrations: rows to demonstrate.
        prompts: rows to practise on.
        heldout: rows to be tested on.
        longest: rows with more characters, question and answer together, are left out.
        seed: of the split.
    """

    demonstrations: int = 600
    prompts: int = 300
    heldout: int = 60
    longest: int = 600
    seed: int = 0

    def run(self, out: Path) -> None:
        rows = [row for language in ("en", "zh") for row in alpaca.demonstrations(language)]
        rows = [row for row in rows if sum(len(message.text) for message in row.messages) <= self.longest]
        random.Random(self.seed).shuffle(rows)
        wanted = self.demonstrations + self.prompts + self.heldout
        if len(rows) < wanted:
            raise ChatwrightError(f"{wanted} rows are wanted and {len(rows)} are there; ask for fewer or raise longest")
        asked = [
            Prompt(row.messages[:-1], row.messages[-1].text, meta={**row.meta, "task": "instruction"})
            for row in rows[self.demonstrations : wanted]
        ]
        save(rows[: self.demonstrations], out / "demonstrations.parquet")
        save(asked[: self.prompts], out / "prompts.parquet")
        save(_with_choices(asked[self.prompts :]), out / "heldout.parquet")


def _with_choices(prompts: list[Prompt]) -> Iterator[Prompt]:
    """Each prompt with the answers to three others in its language: which one belongs to the question?"""
    for language in ("en", "zh"):
        some = [prompt for prompt in prompts if prompt.meta["language"] == language]
        for i, prompt in enumerate(some):
            answers = [some[(i + step) % len(some)].reference or "" for step in range(4)]
            yield replace(prompt, choices=tuple(dict.fromkeys(answers)), score="choice")
