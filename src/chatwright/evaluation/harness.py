"""Asking a model the prompts of a test and adding up how it did."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from chatwright.data.records import Document, Prompt
from chatwright.data.rendered import Rendered
from chatwright.errors import ChatwrightError
from chatwright.evaluation import metrics
from chatwright.evaluation.metrics import Score
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.models.outputs import answer_logits, token_logprobs

# Logits of a batch of documents, in numbers: 256 MiB of float32.
LOGITS = 2**26


def ask(
    engine: Engine,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    first_row: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Let the model answer.

    Args:
        first_row: the place of the first prompt in its file.
        progress: told how many of the prompts are answered.

    Returns:
        A row a prompt, in order: row (place in the file), id, task, language, split, question, reference, answer,
        correct, chance and finish_reason ("stop", "length", or "choice" where nothing was generated).

    Raises:
        ChatwrightError: a prompt cannot be scored, rendered or is too long; the message names its row.
    """
    rendered, kinds = [], []
    for row, prompt in enumerate(prompts, first_row):
        try:
            kinds.append(metrics.kind_of(prompt))
            rendered.append(engine.render(prompt.messages))
        except ChatwrightError as error:
            raise ChatwrightError(f"row {row + 1}: {error}") from error
    spoken = [index for index, kind in enumerate(kinds) if kind != "choice"]
    chosen = [index for index, kind in enumerate(kinds) if kind == "choice"]
    answers: dict[int, tuple[str, str]] = {}
    completions = engine.generate([rendered[index] for index in spoken], sampling, progress=progress)
    for index, (completion,) in zip(spoken, completions, strict=True):
        answers[index] = completion.text, completion.finish_reason
    choices = [prompts[index].choices for index in chosen]
    for index, choice in zip(chosen, choose(engine, [rendered[index] for index in chosen], choices), strict=True):
        answers[index] = choice, "choice"
    if progress:
        progress(len(prompts))
    return [_row(prompt, first_row + index, *answers[index]) for index, prompt in enumerate(prompts)]


def choose(engine: Engine, prompts: Sequence[Rendered], choices: Sequence[Sequence[str]]) -> list[str]:
    """For every prompt the most likely of its choices, by log-likelihood a character (``acc_norm``)."""
    tokenizer, renderer = engine.renderer.tokenizer, engine.renderer
    rows: list[tuple[int, int, Rendered]] = []
    for index, (prompt, several) in enumerate(zip(prompts, choices, strict=True)):
        for place, choice in enumerate(several):
            tokens = tokenizer(choice, add_special_tokens=False)["input_ids"]
            rows.append((index, place, engine.render(renderer.answered(prompt, tokens))))
    best = [(float("-inf"), 0)] * len(prompts)
    # Neighbours in length share a batch, which saves padding.
    rows.sort(key=lambda row: len(row[2]))
    for start in range(0, len(rows), engine.batch_size):
        part = rows[start : start + engine.batch_size]
        batch = _on_device(renderer.collate([row for _, _, row in part]), engine)
        with torch.inference_mode():
            logprobs, _ = token_logprobs(engine.model, batch)
        for (index, place, _), total in zip(part, logprobs.sum(1).tolist(), strict=True):
            # The place is negative so that of equally likely choices the first is taken.
            best[index] = max(best[index], (total / max(1, len(choices[index][place])), -place))
    return [several[-place] for several, (_, place) in zip(choices, best, strict=True)]


def tally(answers: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Add up answers: task -> score, low, high, n, chance, and the same by_language and by_split."""
    tasks: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for answer in answers:
        tasks[answer["task"]].append(answer)
    return {
        task: {
            **_score(rows).as_dict(),
            "by_language": {name: _score(part).as_dict() for name, part in _groups(rows, "language").items()},
            "by_split": {name: _score(part).as_dict() for name, part in _groups(rows, "split").items()},
        }
        for task, rows in sorted(tasks.items())
    }


@torch.inference_mode()
def read(
    engine: Engine, documents: Sequence[Document], progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """How well the model predicts raw text.

    Documents longer than the context are read in pieces of that length.

    Returns:
        ``score``, the share of tokens whose most likely prediction is right, with ``low``, ``high``, ``n`` (tokens) and
        ``chance`` (1 of the vocabulary), ``nats_per_token``, and the same ``by_language``. The interval takes tokens as
        independent, so it is somewhat too narrow.
    """
    pieces: list[tuple[str, Rendered]] = []
    for number, document in enumerate(documents):
        row = engine.renderer.document(document)
        if row.media and len(row) > engine.context:
            raise ChatwrightError(
                f"row {number + 1}: {len(row)} tokens with pictures do not fit the context; shorten it"
            )
        for start in range(0, len(row), engine.context):
            end = start + engine.context
            piece = Rendered(row.input_ids[start:end], row.loss_mask[start:end], row.media)
            if any(piece.loss_mask[1:]):
                pieces.append((_word(document.meta, "language"), piece))
    if not pieces:
        raise ChatwrightError("the documents hold no token to predict; give longer ones")
    pieces.sort(key=lambda piece: len(piece[1]))
    vocabulary = engine.model.get_output_embeddings().weight.shape[0]
    # Per language: tokens, right predictions, nats.
    sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(3, dtype=torch.float64))
    start = 0
    while start < len(pieces):
        part = _batch_of(pieces, start, engine.batch_size, LOGITS // vocabulary)
        batch = _on_device(engine.renderer.collate([row for _, row in part]), engine)
        wanted = batch["loss_mask"].clone()
        wanted[:, 0] = False
        logits = answer_logits(engine.model, batch | {"loss_mask": wanted}).float()
        truth = batch["input_ids"][wanted]
        right = logits.argmax(-1).eq(truth).double()
        nats = torch.nn.functional.cross_entropy(logits, truth, reduction="none").double()
        counts = wanted.sum(1).tolist()
        for (language, _), one, other in zip(part, right.split(counts), nats.split(counts), strict=True):
            sums[language] += torch.tensor([len(one), one.sum(), other.sum()], dtype=torch.float64)
        start += len(part)
        if progress:
            progress(start)
    everything = _read_score(torch.stack(list(sums.values())).sum(0), vocabulary)
    return everything | {"by_language": {name: _read_score(sums[name], vocabulary) for name in sorted(sums)}}


def _read_score(sums: torch.Tensor, vocabulary: int) -> dict[str, float]:
    tokens, right, nats = sums.tolist()
    return Score.of(right, int(tokens), 1 / vocabulary).as_dict() | {"nats_per_token": nats / tokens}


def _batch_of(
    pieces: Sequence[tuple[str, Rendered]], start: int, rows: int, tokens: int
) -> Sequence[tuple[str, Rendered]]:
    """The next pieces, at most so many rows and tokens, but at least one; they are sorted, the last is the longest."""
    end = start + 1
    while end < min(start + rows, len(pieces)) and (end - start + 1) * len(pieces[end][1]) <= tokens:
        end += 1
    return pieces[start:end]


def _on_device(batch: dict[str, torch.Tensor], engine: Engine) -> dict[str, torch.Tensor]:
    return {name: value.to(engine.model.device) for name, value in batch.items()}


def _row(prompt: Prompt, row: int, answer: str, finish: str) -> dict[str, Any]:
    return {
        "row": row,
        "id": str(prompt.meta.get("id", row)),
        "task": _word(prompt.meta, "task"),
        "language": _word(prompt.meta, "language"),
        "split": _word(prompt.meta, "split"),
        "question": next((message.text for message in reversed(prompt.messages) if message.role == "user"), ""),
        "reference": prompt.reference,
        "answer": answer,
        "correct": metrics.correct(prompt, answer),
        "chance": metrics.chance([prompt]),
        "finish_reason": finish,
    }


def _word(meta: Mapping[str, Any], key: str) -> str:
    return str(meta.get(key, "all"))


def _score(rows: Sequence[Mapping[str, Any]]) -> Score:
    return Score.of(sum(row["correct"] for row in rows), len(rows), sum(row["chance"] for row in rows) / len(rows))


def _groups(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[Mapping[str, Any]]]:
    return {name: [row for row in rows if row[key] == name] for name in sorted({row[key] for row in rows})}
