"""The engine: cached, batched generation with the log-probabilities of what was sampled.

Everything that needs answers uses it: annotation, reinforcement learning, evaluation, chat and serving.

A batch is prefilled once (each picture is encoded once), its cache rows are repeated for the samples of a prompt, and
rows that have finished leave the batch. Answers do not depend on the batch: prompts are padded on the left with
positions counted from their own first token, and every sample has its own stream of random numbers.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from chatwright.data.records import Message
from chatwright.data.render import Rendered, Renderer
from chatwright.errors import ChatwrightError
from chatwright.generation.cache import roomy_cache
from chatwright.generation.sampling import Sampling, distribution, draw, stream_of_uniforms

# Cache places reserved for an answer at first, in tokens: most answers end long before max_new_tokens.
ROOM = 128


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        tokens: what was sampled, the stop token included when there was one.
        text: the tokens as text, without special tokens, cut before a stop text.
        logprobs: a token's log-probability in nats, under exactly the distribution that it was drawn from (temperature,
            top-k and top-p applied, `Renderer.unsaid` excluded); for greedy answers that at temperature 1.
        finish_reason: "stop" at a stop token or stop text, "length" when the tokens or the context ran out.
    """

    tokens: list[int]
    text: str
    logprobs: list[float]
    finish_reason: Literal["stop", "length"]


class Engine:
    """Generates with any `transformers` causal language model, multimodal ones included.

    Args:
        model: used in its own dtype and on its own device; its training flags are restored after every call.
        renderer: turns conversations into the model's inputs and tokens into text.
        batch_size: rows decoded together. The n samples of one prompt stay together, also when they are more.
    """

    def __init__(self, model: PreTrainedModel, renderer: Renderer, batch_size: int = 64):
        self.model = model
        self.renderer = renderer
        self.batch_size = batch_size

    def generate(
        self,
        prompts: Sequence[Sequence[Message] | Rendered],
        sampling: Sampling | None = None,
        n: int = 1,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """Answer every prompt n times.

        Args:
            prompts: conversations that end with the turn to answer, or what `Renderer.prompt` made of them.
            progress: told the number of prompts answered, after every batch.

        Returns:
            For every prompt, in the order given, its n answers. A prompt that occurs k times gets the answers that it
            would get with n * k samples.

        Raises:
            ChatwrightError: a prompt is empty or longer than the model's context.
        """
        sampling = sampling or Sampling()
        rendered = [self._numbered(number, prompt) for number, prompt in enumerate(prompts)]
        uniforms = self._uniforms(rendered, sampling, n)
        # Neighbours in length share a batch, which saves padding; the longest first, so that memory runs out at once.
        order = sorted(range(len(rendered)), key=lambda index: -len(rendered[index].input_ids))
        size = max(1, self.batch_size // n)
        answers: list[list[Completion]] = [[] for _ in rendered]
        with self._ready():
            for start in range(0, len(order), size):
                chosen = order[start : start + size]
                batch = self._start([rendered[i] for i in chosen], [uniforms[i] for i in chosen], sampling, n)
                while batch.step():
                    pass
                for place, index in enumerate(chosen):
                    answers[index] = [self._complete(row, sampling) for row in batch.rows[place * n : (place + 1) * n]]
                if progress:
                    progress(start + len(chosen))
        return answers

    def stream(
        self, messages: Sequence[Message] | Rendered, sampling: Sampling | None = None
    ) -> Generator[str, None, Completion]:
        """Answer one conversation piece by piece.

        Yields:
            Pieces of text whose concatenation is the answer's text. A piece never ends inside a character, and nothing
            is shown that a stop text may still take back.

        Returns:
            The answer (what ``yield from`` gives).
        """
        sampling = sampling or Sampling()
        rendered = self.render(messages)
        shown = ""
        with self._ready():
            batch = self._start([rendered], self._uniforms([rendered], sampling, 1), sampling, 1)
            row = batch.rows[0]
            while batch.step():
                text = self._settled(row.tokens, sampling.stop)
                if text.startswith(shown) and len(text) > len(shown):
                    yield text[len(shown) :]
                    shown = text
        completion = self._complete(row, sampling)
        if rest := completion.text[len(shown) :]:
            yield rest
        return completion

    @property
    def context(self) -> int:
        """The longest sequence that the model takes, in tokens."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2**31

    def render(self, prompt: Sequence[Message] | Rendered) -> Rendered:
        """The prompt as the model reads it.

        Raises:
            ChatwrightError: it is empty, longer than the model's context, or not to be rendered.
        """
        rendered = prompt if isinstance(prompt, Rendered) else self.renderer.prompt(prompt)
        if not rendered.input_ids:
            raise ChatwrightError("the prompt has no tokens; give a conversation with at least one message")
        if len(rendered.input_ids) > self.context:
            raise ChatwrightError(
                f"the prompt has {len(rendered.input_ids)} tokens and the model's context is {self.context}; shorten it"
            )
        return rendered

    def _numbered(self, number: int, prompt: Sequence[Message] | Rendered) -> Rendered:
        try:
            return self.render(prompt)
        except ChatwrightError as error:
            raise ChatwrightError(f"prompt {number}: {error}") from error

    def _uniforms(self, prompts: Sequence[Rendered], sampling: Sampling, n: int) -> list[np.ndarray | None]:
        """For every prompt [n, max_new_tokens] random numbers, decided by its content; None for greedy answers."""
        if sampling.temperature == 0:
            return [None] * len(prompts)
        seen: Counter[bytes] = Counter()
        streams: list[np.ndarray | None] = []
        for prompt in prompts:
            key = _digest(prompt)
            samples = range(seen[key], seen[key] + n)
            streams.append(
                np.stack([stream_of_uniforms(sampling.seed, key, i, sampling.max_new_tokens) for i in samples])
            )
            seen[key] += n
        return streams

    def _start(
        self, prompts: Sequence[Rendered], uniforms: Sequence[np.ndarray | None], sampling: Sampling, n: int
    ) -> "_Batch":
        numbers = None if sampling.temperature == 0 else np.concatenate([part for part in uniforms if part is not None])
        rows = []
        for prompt in prompts:
            # The last token needs no place in the context, as nothing follows it.
            room = min(sampling.max_new_tokens, self.context - len(prompt.input_ids) + 1)
            rows += [_Row(room) for _ in range(n)]
        batch = self.renderer.collate(list(prompts), side="left")
        return _Batch(self.model, self.renderer, batch, rows, numbers, sampling)

    def _complete(self, row: "_Row", sampling: Sampling) -> Completion:
        text = self.renderer.decode(self._said(row.tokens))
        for stop in sampling.stop:
            text = text.split(stop, 1)[0]
        return Completion(row.tokens, text, row.logprobs, row.finish or "length")

    def _said(self, tokens: list[int]) -> list[int]:
        """The tokens without a stop token at the end."""
        return tokens[:-1] if tokens and tokens[-1] in self.renderer.stop_ids else tokens

    def _settled(self, tokens: list[int], stops: tuple[str, ...]) -> str:
        """The text so far, as much of it as no further token can change."""
        # The bytes of an unfinished character decode to replacement characters.
        text = self.renderer.decode(self._said(tokens)).rstrip("\ufffd")
        unsure = 0
        for stop in stops:
            if stop in text:
                return text[: text.index(stop)]
            unsure = max([unsure, *(size for size in range(1, len(stop)) if text.endswith(stop[:size]))])
        return text[: len(text) - unsure]

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """The model in evaluation mode and with the attention that decodes fastest; afterwards as it was.

        For one query a row SDPA is faster than the matrix products of "eager" attention (by 15% for a model of 4 layers
        of width 256 on a CPU), while for training short sequences on a CPU it is the other way round.
        """
        training = [module for module in self.model.modules() if module.training]
        decoder = self.model.get_decoder()
        attention = decoder.config._attn_implementation
        self.model.eval()
        if attention == "eager" and decoder._supports_sdpa:
            decoder.set_attn_implementation("sdpa")
        try:
            yield
        finally:
            decoder.set_attn_implementation(attention)
            for module in training:
                module.training = True


@dataclass
class _Row:
    """An answer that grows."""

    room: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None


class _Batch:
    """Rows that are decoded together, with their cache. Live row i of the tensors is ``rows[live[i]]``."""

    @torch.inference_mode()
    def __init__(
        self,
        model: PreTrainedModel,
        renderer: Renderer,
        batch: dict[str, Tensor],
        rows: list[_Row],
        uniforms: np.ndarray | None,
        sampling: Sampling,
    ):
        self.model, self.renderer, self.sampling = model, renderer, sampling
        self.rows = rows
        self.live = list(range(len(rows)))
        self.count = 0
        self.tail = max([len(stop.encode()) for stop in sampling.stop], default=0)

        device = model.device
        self.unsaid = torch.tensor(sorted(renderer.unsaid), dtype=torch.long, device=device)
        inputs = {name: value.to(device) for name, value in batch.items() if name != "loss_mask"}
        mask = inputs["attention_mask"]
        prompts, self.length = mask.shape
        if mask.all():
            inputs.pop("attention_mask")
        room = max(row.room for row in rows)
        self.cache = roomy_cache(model.config, min(room, ROOM))
        output = model(**inputs, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.logits = output.logits[:, -1]
        self.uniforms = None if uniforms is None else torch.from_numpy(uniforms).to(device)
        # Written out for the longest answer, so that a step only takes a longer slice. None when nothing is padded.
        self.mask = None if mask.all() else torch.cat([mask, mask.new_ones(prompts, room)], 1)
        self.positions = mask.sum(1, keepdim=True)
        if len(rows) > prompts:
            self._select(torch.arange(prompts, device=device).repeat_interleave(len(rows) // prompts), prompts=True)

    @torch.inference_mode()
    def step(self) -> bool:
        """Draw the next token of every live row and feed it to the model; False when no row is left."""
        # A placeholder without its media would be a row that no forward pass accepts again.
        logits = distribution(self.logits.index_fill(1, self.unsaid, float("-inf")), self.sampling)
        uniforms = None if self.uniforms is None else self.uniforms[:, self.count]
        tokens, logprobs = draw(logits, uniforms)
        self.count += 1
        going = []
        drawn = zip(self.live, tokens.tolist(), logprobs.tolist(), strict=True)
        for place, (index, token, logprob) in enumerate(drawn):
            row = self.rows[index]
            if row.finish:
                continue
            row.tokens.append(token)
            row.logprobs.append(logprob)
            if token in self.renderer.stop_ids or self._stopped(row):
                row.finish = "stop"
            elif len(row.tokens) >= row.room:
                row.finish = "length"
            else:
                going.append(place)
        if not going:
            return False
        # A finished row costs what a live one does, and leaving costs a copy of the cache: let a quarter leave at once.
        if len(going) <= 0.75 * len(self.live):
            kept = torch.tensor(going, device=tokens.device)
            self.live = [self.live[place] for place in going]
            tokens = tokens[kept]
            self._select(kept)
        self.length += 1
        output = self.model(
            input_ids=tokens[:, None],
            attention_mask=None if self.mask is None else self.mask[:, : self.length],
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.logits = output.logits[:, -1]
        self.positions = self.positions + 1
        return True

    def _select(self, indices: Tensor, prompts: bool = False) -> None:
        """Keep (or repeat) the given rows; of the prompts alone when their rows are first made."""
        self.cache.reorder_cache(indices)
        self.positions = self.positions[indices]
        if self.mask is not None:
            self.mask = self.mask[indices]
        if prompts:
            self.logits = self.logits[indices]
        elif self.uniforms is not None:
            self.uniforms = self.uniforms[indices]

    def _stopped(self, row: _Row) -> bool:
        """Whether the last token completes a stop text; a text of k bytes spans at most k tokens of a byte or more."""
        if not self.sampling.stop:
            return False
        text = self.renderer.decode(row.tokens[-self.tail - 1 :])
        return any(stop in text for stop in self.sampling.stop)


def _digest(prompt: Rendered) -> bytes:
    """What identifies a prompt: its tokens and its media."""
    digest = hashlib.blake2b(np.asarray(prompt.input_ids, dtype=np.int64).tobytes(), digest_size=16)
    for name in sorted(prompt.media):
        digest.update(name.encode())
        digest.update(prompt.media[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.digest()
