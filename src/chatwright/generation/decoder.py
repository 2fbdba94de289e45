"""Continuous batching (Yu et al. 2022, "Orca"): rows enter while others are being written, and leave when they end."""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from chatwright.data.render import Renderer
from chatwright.data.rendered import Rendered
from chatwright.generation.cache import SlotCache, bytes_per_token, close_gaps
from chatwright.generation.constraint import Constraint
from chatwright.generation.prefixes import Begun, Prefixes
from chatwright.generation.sampling import Sampling, distribution, draw, most_likely
from chatwright.models.outputs import placed, positions

JOIN = 0.25  # of the rows: fewer free ones wait for more, as reading prompts together is cheaper
PADDING = 1.25  # prompts that are read together are at most so many times as long as the shortest of them


@dataclass
class Row:
    """An answer that grows.

    prompt: what it answers. room: how many tokens it may have. uniforms: [room] random numbers, None for greedy.
    begin: the position of its first token, as the model counts them.
    """

    prompt: Rendered
    sampling: Sampling
    room: int
    uniforms: np.ndarray | None
    constraint: Constraint | None = None
    begin: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[list[tuple[int, float]]] = field(default_factory=list)
    finish: Literal["stop", "length", "cancelled"] | None = None


@dataclass
class Request:
    """A prompt and the rows that answer it; they share what is computed for the prompt, so they enter together."""

    prompt: Rendered
    rows: list[Row]

    @property
    def ended(self) -> bool:
        return all(row.finish for row in self.rows)


class Decoder:
    """Writes the answers of all rows token by token; row i lies in slot i of the cache.

    Args:
        batch_size: rows decoded together; a request that has more of them enters alone.
        cache_bytes: of keys and values; a request enters only if all rows can become as long as they may.
        kept_bytes: of keys and values of rows that have ended, for prompts that begin as they did.
    """

    def __init__(self, model: PreTrainedModel, renderer: Renderer, batch_size: int, cache_bytes: int, kept_bytes: int):
        self.model, self.renderer = model, renderer
        self.batch_size, self.cache_bytes = batch_size, cache_bytes
        self.cache = SlotCache(model.config)
        self.rows: list[Row] = []
        self.logits = torch.empty(0)  # [rows, V], of the token that comes next
        self.bytes_per_token = bytes_per_token(model)
        keeps = kept_bytes and self.cache.shared
        self.prefixes = Prefixes(kept_bytes, set(renderer.placeholders.values())) if keeps else None
        # A soft prompt that is being learned has no rows in the head yet.
        unsaid = sorted(token for token in renderer.unsaid if token < len(model.get_output_embeddings().weight))
        self.unsaid = torch.tensor(unsaid, dtype=torch.long, device=model.device)

    @torch.inference_mode()
    def admit(self, waiting: deque[Request]) -> None:
        """Let in those who wait, the first first, as many as there is room for."""
        entering: list[Request] = []
        rows = list(self.rows)
        while waiting and self._fits(rows, waiting[0]):
            entering.append(waiting.popleft())
            rows += entering[-1].rows
        if self.rows and waiting and len(rows) - len(self.rows) < JOIN * self.batch_size:
            waiting.extendleft(reversed(entering))
            return
        known = [self.prefixes.find(request.prompt) if self.prefixes else None for request in entering]
        reading = [_Reading(*one) for one in zip(entering, known, strict=True)]
        # A gap between what is known of a prompt and what is read would count in a window.
        padding = 1.0 if self.cache.windowed and any(known) else PADDING
        for part in _of_like_length(reading, padding) if self.cache.shared else filter(None, [reading]):
            self._read(part)

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Write one token of every row. Returns the rows that have ended; they have left."""
        self._draw()
        ended = [slot for slot, row in enumerate(self.rows) if row.finish]
        gone = [self.rows[slot] for slot in ended]
        if self.prefixes:
            for slot, row in zip(ended, gone, strict=True):
                self.prefixes.keep(row.prompt, row.tokens[:-1], self.cache.states(slot))  # the last one was not read
        if ended:
            order = self.cache.leave(ended)
            self.rows = [self.rows[slot] for slot in order]
        if not self.rows:
            return gone
        device = self.model.device
        places = [[row.begin + len(row.tokens) - 1] for row in self.rows]
        mask = self.cache.mask(device)
        with self.cache.next_token() as cache:
            output = self.model(
                input_ids=torch.tensor([row.tokens[-1:] for row in self.rows], device=device),
                attention_mask=mask,
                position_ids=torch.tensor(places, device=device),
                past_key_values=cache,
                use_cache=True,
            )
        self.logits = output.logits[:, -1]
        return gone

    def _fits(self, rows: list[Row], request: Request) -> bool:
        if not rows:
            return True
        together = rows + request.rows
        if len(together) > self.batch_size or (self.rows and not self.cache.shared):
            return False
        longest = max(len(row.prompt) + row.room for row in together)
        return longest * len(together) * self.bytes_per_token <= self.cache_bytes

    def _read(self, readings: Sequence["_Reading"]) -> None:
        """Let prompts be read, each once, and their rows enter."""
        batch = self.renderer.collate([one.request.prompt for one in readings], side="left")
        places = positions(self.model, batch)
        known = [one.known for one in readings]
        if any(known):
            batch = self.renderer.collate([one.rest for one in readings], side="left")
            kept = torch.arange(max(known)) >= max(known) - torch.tensor(known)[:, None]
            batch["attention_mask"] = torch.cat([kept.long(), batch["attention_mask"]], 1)
        batch["position_ids"] = places[..., -batch["input_ids"].shape[1] :]
        del batch["loss_mask"]
        inputs = placed(batch, self.model)
        if inputs["attention_mask"].all():
            inputs.pop("attention_mask")
        cache = self.cache.for_prompts([one.states for one in readings])
        output = self.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        if any(known):
            close_gaps(cache, known, [len(one.rest) for one in readings])
        sources = [place for place, one in enumerate(readings) for _ in one.request.rows]
        new = [row for one in readings for row in one.request.rows]
        ends = places.view(-1, *places.shape[-2:]).amax((0, 2)).tolist()
        for row, source in zip(new, sources, strict=True):
            row.begin = ends[source] + 1
        self.cache.enter(cache, sources, [len(row.prompt) for row in new])
        logits = output.logits[sources, -1]
        self.logits = torch.cat([self.logits, logits]) if self.rows else logits
        self.rows += new

    def _draw(self) -> None:
        """The next token of every row, and what ends with it."""
        alike: dict[tuple[float, ...], list[int]] = defaultdict(list)
        for slot, row in enumerate(self.rows):
            alike[row.sampling.shape].append(slot)
        for slots in alike.values():
            rows = [self.rows[slot] for slot in slots]
            logits = self.logits.float() if len(alike) == 1 else self.logits[slots].float()
            # A placeholder without its media would be a row that no forward pass accepts again.
            logits[:, self.unsaid] = float("-inf")
            for place, row in enumerate(rows):
                if row.constraint:
                    row.constraint.exclude(logits[place])
            sampling = rows[0].sampling
            penalised = rows if sampling.repetition_penalty != 1 else []
            logits = distribution(logits, sampling, [[*row.prompt.input_ids, *row.tokens] for row in penalised])
            uniforms = [row.uniforms[len(row.tokens)] for row in rows if row.uniforms is not None]
            numbers = torch.tensor(np.array(uniforms), device=logits.device) if uniforms else None
            tokens, logprobs = draw(logits, numbers)
            if sampling.alternatives:
                for row, several in zip(rows, most_likely(logits, sampling.alternatives), strict=True):
                    row.alternatives.append(several)
            for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
                row.tokens.append(token)
                row.logprobs.append(logprob)
                if row.constraint:
                    row.constraint.accept(token)
                row.finish = row.finish or self._finish(row)

    def _finish(self, row: Row) -> Literal["stop", "length"] | None:
        if row.tokens[-1] in self.renderer.stop_ids or row.tokens[-1] in row.sampling.stop_tokens:
            return "stop"
        if row.sampling.stop:
            # A stop text of k bytes spans at most k tokens of a byte or more.
            tail = max(len(stop.encode()) for stop in row.sampling.stop)
            text = self.renderer.text(row.tokens[-tail - 1 :])
            if any(stop in text for stop in row.sampling.stop):
                return "stop"
        return "length" if len(row.tokens) >= row.room else None


@dataclass
class _Reading:
    """A request that enters, with the beginning of its prompt if that is known."""

    request: Request
    begun: Begun | None

    @property
    def rest(self) -> Rendered:
        return self.begun.rest if self.begun else self.request.prompt

    @property
    def states(self) -> list[Tensor]:
        return self.begun.states if self.begun else []

    @property
    def known(self) -> int:
        return len(self.request.prompt) - len(self.rest)


def _of_like_length(readings: Sequence[_Reading], padding: float) -> list[list[_Reading]]:
    """What is read together: at most ``padding`` times as many tokens as of the shortest, the longest first."""
    groups: list[list[_Reading]] = []
    for one in sorted(readings, key=lambda one: -len(one.rest)):
        if groups and len(groups[-1][0].rest) <= padding * len(one.rest):
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups
