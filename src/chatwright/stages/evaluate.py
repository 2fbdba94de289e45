"""Asking a model the questions of a test: any file of prompts with references, one's own too."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from chatwright.data.records import Demonstration, Document, Message, Part, Prompt
from chatwright.data.render import Renderer
from chatwright.data.store import load
from chatwright.errors import ChatwrightError
from chatwright.evaluation import harness
from chatwright.files import write
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.models.load import checkpoint_of, load_model
from chatwright.stages.base import Stage
from chatwright.terminal import console
from chatwright.training.loop import best_device
from chatwright.training.progress import Bar

CHUNK = 4  # batches whose answers are written together


@dataclass
class Evaluate(Stage):
    """Score a model's answers to a file of prompts with references.

    Writes scores.json (task -> score, low, high, n, chance, by_language, by_split) and answers.jsonl, an answer a line.
    An interrupted run goes on after the last answers written.

    Args:
        model: a checkpoint, an artifact, or the name of a pretrained model.
        data: prompts with references (.jsonl, .json or .parquet): `score` says how answers are checked, exact, contains
            or choice; `meta` may name task, language and split.
        documents: raw text that the model has not seen, scored as the task "pretraining" by next-token accuracy.
        max_new_tokens: the longest answer.
        temperature: 0 takes the most likely token each time.
        batch_size: answers written at the same time.
        limit: use only the first so many prompts and documents; 0 for all.
        blind: ask without the pictures: what a model that reads text only can guess.
        plain: ask as one asks a pretrained model that knows no chat: a question and its answer are a line.
        shots: so many questions with their answers stand before every prompt (Brown et al. 2020, arXiv:2005.14165),
            as earlier turns.
        demonstrations: where they are drawn from: the first question of a conversation and its answer.
        seed: of that choice, and of the sampling where the temperature is above 0.
    """

    model: str
    data: Path
    documents: Path | None = None
    max_new_tokens: int = 48
    temperature: float = 0.0
    batch_size: int = 128
    limit: int = 0
    blind: bool = False
    plain: bool = False
    shots: int = 0
    demonstrations: Path | None = None
    seed: int = 0

    def run(self, out: Path) -> None:
        prompts = load(self.data, Prompt)
        count = min(self.limit, len(prompts)) if self.limit else len(prompts)
        if not count:
            raise ChatwrightError(f"{self.data}: no prompts; give a file with at least one")
        documents = load(self.documents, Document) if self.documents else []
        documents = documents[: self.limit] if self.limit else documents
        shots = self._shots()
        folder = checkpoint_of(self.model)
        engine = Engine(load_model(folder).to(best_device()), Renderer.load(folder, self.plain), self.batch_size)
        stop = ("\n",) if self.plain else ()
        sampling = Sampling(self.max_new_tokens, self.temperature, seed=self.seed, stop=stop)

        path = out / "answers.jsonl"
        answers = _written(path)
        size = CHUNK * self.batch_size
        with Bar("evaluate", count, len(answers)) as bar, path.open("a", encoding="utf-8") as file:
            while len(answers) < count:
                rows = range(len(answers), min(len(answers) + size, count))
                try:
                    asked = [replace(prompts[row], messages=(*shots, *prompts[row].messages)) for row in rows]
                    asked = [_blinded(prompt) for prompt in asked] if self.blind else asked
                    new = harness.ask(engine, asked, sampling, rows.start)
                except ChatwrightError as error:
                    raise ChatwrightError(f"{self.data}: {error}") from error
                file.writelines(json.dumps(answer, ensure_ascii=False) + "\n" for answer in new)
                file.flush()
                os.fsync(file.fileno())
                answers += new
                bar.advance(len(new), correct=sum(answer["correct"] for answer in answers) / len(answers))

        scores = harness.tally(answers)
        if self.documents:
            with Bar("evaluate documents", len(documents)) as bar:
                scores["pretraining"] = harness.read(engine, documents)
                bar.advance(len(documents))
        write(out / "scores.json", json.dumps(scores, indent=1, ensure_ascii=False))
        console.print(table(scores, title=f"{self.model} on {self.data}"))

    def _shots(self) -> list[Message]:
        """The turns that stand before every prompt."""
        if not self.shots:
            return []
        if self.demonstrations is None:
            raise ChatwrightError(f"shots={self.shots}: name the demonstrations that they are drawn from")
        records = load(self.demonstrations, Demonstration)
        if len(records) < self.shots:
            raise ChatwrightError(
                f"{self.demonstrations}: {len(records)} demonstrations, too few for {self.shots} shots"
            )
        chosen = np.random.default_rng(self.seed).choice(len(records), self.shots, replace=False)
        return [message for i in chosen for message in _first_exchange(records[int(i)])]


def _first_exchange(record: Demonstration) -> tuple[Message, ...]:
    """The conversation up to its first answer."""
    answered = next((i for i, message in enumerate(record.messages) if message.role == "assistant"), -1)
    return record.messages[: answered + 1]


def _blinded(prompt: Prompt) -> Prompt:
    return replace(prompt, messages=tuple(Message(m.role, (Part.of_text(m.text),)) for m in prompt.messages))


def table(scores: dict[str, dict[str, Any]], title: str) -> Table:
    """Scores in percent as people read them."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("task")
    for column in ("score %", "95% interval", "chance %", "n"):
        shown.add_column(column, justify="right")
    for task, score in scores.items():
        shown.add_row(
            task,
            f"{100 * score['score']:.1f}",
            f"{100 * score['low']:.1f} to {100 * score['high']:.1f}",
            f"{100 * score['chance']:.1f}",
            f"{score['n']:,}",
        )
    return shown


def _written(path: Path) -> list[dict[str, Any]]:
    """The answers that an interrupted run left; a last line cut off in the middle is removed from the file."""
    if not path.exists():
        return []
    whole = path.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    with path.open("r+b") as file:
        file.truncate(len(whole))
    return [json.loads(line) for line in whole.decode().splitlines()]
