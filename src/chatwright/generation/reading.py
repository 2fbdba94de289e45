"""What a model makes of texts that are given to it: how likely their tokens are, and what they mean."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chatwright.data.rendered import Rendered
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import most_likely
from chatwright.models.outputs import answer_logits, hidden_states, placed

LOGITS = 2**26  # of texts that are read together, in numbers: 256 MiB of float32


@dataclass(frozen=True)
class Reading:
    """For every token its log-probability in nats after those before it, None for the first, and the most likely tokens
    at its place with theirs."""

    logprobs: list[float | None]
    alternatives: list[list[tuple[int, float]]]


@torch.inference_mode()
def read(engine: Engine, rows: Sequence[Rendered], alternatives: int = 0) -> list[Reading]:
    """How likely every token of the rows is."""
    readings: list[Reading | None] = [None] * len(rows)
    with engine.decoder():
        for places, batch in _batches(engine, rows):
            lengths = [len(rows[place]) - 1 for place in places]
            wanted = batch["attention_mask"].bool()
            wanted[:, 0] = False
            logits = answer_logits(engine.model, batch | {"loss_mask": wanted}).float()
            truth = batch["input_ids"][wanted]
            logprobs = logits.gather(1, truth[:, None])[:, 0] - logits.logsumexp(-1)
            likely = most_likely(logits, alternatives) if alternatives else [[] for _ in truth]
            first = 0
            for place, length in zip(places, lengths, strict=True):
                end = first + length
                readings[place] = Reading([None, *logprobs[first:end].tolist()], [[], *likely[first:end]])
                first = end
    return [reading for reading in readings if reading is not None]


@torch.inference_mode()
def embed(engine: Engine, rows: Sequence[Rendered]) -> Tensor:
    """[rows, D] float32 of length one: the mean of the last hidden states over a text's tokens."""
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    with engine.decoder():
        for places, batch in _batches(engine, rows):
            mask = batch["attention_mask"].bool()
            states = hidden_states(engine.model, {**batch, "loss_mask": mask}).float()
            means = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            for place, vector in zip(places, torch.nn.functional.normalize(means, dim=-1).cpu(), strict=True):
                found[place] = vector
    return torch.stack(found)


def _batches(engine: Engine, rows: Sequence[Rendered]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Rows of like length together: their places, and the batch as the model takes it."""
    vocabulary = len(engine.model.get_output_embeddings().weight)
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
    while order:
        # The last is the longest; with it as many as memory holds.
        size = max(1, min(engine.batch_size, LOGITS // (vocabulary * len(rows[order[-1]]))))
        places, order = order[-size:], order[:-size]
        batch = engine.renderer.collate([rows[place] for place in places])
        yield places, placed(batch, engine.model)
