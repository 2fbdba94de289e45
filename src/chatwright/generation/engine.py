"""The engine: cached, batched generation with the log-probabilities of what was sampled.

Everything that needs answers uses it: annotation, reinforcement learning, evaluation, chat and serving.

A prompt is read once (each picture is encoded once) for all its samples; answers that have ended make room for others
(`chatwright.generation.decoder`). Answers do not depend on the batch: prompts are padded on the left with positions
counted from their own first token, and every sample has its own stream of random numbers.
"""

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from transformers import PreTrainedModel

from chatwright.data.records import Message
from chatwright.data.render import Renderer
from chatwright.data.rendered import Rendered
from chatwright.errors import ChatwrightError
from chatwright.generation.constraint import Constraint
from chatwright.generation.decoder import Decoder, Request, Row
from chatwright.generation.sampling import Sampling, stream_of_uniforms
from chatwright.generation.weights import prepared

CACHE_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        tokens: what was sampled, the stop token included when there was one.
        text: the tokens as text, without special tokens, cut before a stop text; where the prompt ends with the
            beginning of the answer, the rest of the answer with the space before it.
        logprobs: a token's log-probability in nats, under exactly the distribution that it was drawn from (penalty,
            temperature, top-k and top-p applied, `Renderer.unsaid` excluded); for greedy answers that at temperature 1.
        finish_reason: "stop" at a stop token or stop text, "length" when the tokens or the context ran out.
        alternatives: at every place the most likely tokens with their log-probabilities, where they were asked for.
    """

    tokens: list[int]
    text: str
    logprobs: list[float]
    finish_reason: Literal["stop", "length"]
    alternatives: list[list[tuple[int, float]]] = field(default_factory=list)


class Engine:
    """Generates with any `transformers` causal language model, multimodal ones included.

    Args:
        model: used in its own dtype and on its own device; its training flags are restored after every call.
        renderer: turns conversations into the model's inputs and tokens into text.
        batch_size: rows decoded together. The n samples of one prompt stay together, also when they are more.
        cache_bytes: what the keys and values of all rows may take; a single prompt with its samples always may.
        kept_bytes: what those of answers that have ended may take besides, until the decoder is closed: a prompt that
            begins as another one did, answer included, is read from there on.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        renderer: Renderer,
        batch_size: int = 64,
        cache_bytes: int = CACHE_BYTES,
        kept_bytes: int = 0,
    ):
        self.model = model
        self.renderer = renderer
        self.batch_size = batch_size
        self.cache_bytes = cache_bytes
        self.kept_bytes = kept_bytes

    def generate(
        self,
        prompts: Sequence[Sequence[Message] | Rendered],
        sampling: Sampling | Sequence[Sampling] | None = None,
        n: int = 1,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """Answer every prompt n times.

        Args:
            prompts: conversations that end with the turn to answer or with the beginning of the answer, or what
                `Renderer.prompt` made of them.
            sampling: of all answers, or for each prompt one.
            progress: told the number of prompts answered whenever it has grown.

        Returns:
            For every prompt, in the order given, its n answers. A prompt that occurs k times gets the answers that it
            would get with n * k samples.

        Raises:
            ChatwrightError: a prompt is empty or longer than the model's context.
        """
        sampling = sampling or Sampling()
        each = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
        rendered = [self._numbered(number, prompt) for number, prompt in enumerate(prompts)]
        seen: Counter[bytes] = Counter()
        requests = []
        for prompt, one in zip(rendered, each, strict=True):
            requests.append(self.request(prompt, one, n, seen[prompt.digest]))
            seen[prompt.digest] += n
        # Neighbours in length share a batch, which saves padding; the longest first, so that memory runs out at once.
        waiting = deque(sorted(requests, key=lambda request: -len(request.prompt)))
        answered = 0
        with self.decoder() as decoder:
            while waiting or decoder.rows:
                decoder.admit(waiting)
                if decoder.step() and progress:
                    before, answered = answered, sum(request.ended for request in requests)
                    if answered > before:
                        progress(answered)
        return [[self.complete(row) for row in request.rows] for request in requests]

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
        request = self.request(self.render(messages), sampling)
        row, shown = request.rows[0], ""
        with self.decoder() as decoder:
            decoder.admit(deque([request]))
            while not decoder.step():
                text = self.settled(row)
                if text.startswith(shown) and len(text) > len(shown):
                    yield text[len(shown) :]
                    shown = text
        completion = self.complete(row)
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

    def latest(self, messages: Sequence[Message], room: int) -> tuple[Rendered, int]:
        """The prompt of a conversation of any length: its oldest turns are left out until an answer finds room.

        Args:
            messages: system messages first, the turn to answer last.
            room: tokens of the answer; half of the context at most is kept for it.

        Returns:
            The prompt, and how many turns of the user were left out; system messages and the last turn never are.

        Raises:
            ChatwrightError: as `render`; the last turn alone is longer than the context.
        """
        system = [message for message in messages if message.role == "system"]
        turns = [place for place, message in enumerate(messages) if message.role == "user"]
        most = self.context - min(room, self.context // 2)

        def since(turn: int) -> Rendered:
            return self.renderer.prompt([*system, *messages[turns[turn] :]])

        whole = since(0)
        if len(whole) <= most or len(turns) == 1:
            return self.render(whole), 0
        left_out = bisect_left(range(len(turns) - 1), True, lo=1, key=lambda turn: len(since(turn)) <= most)
        return self.render(since(left_out)), left_out

    def _numbered(self, number: int, prompt: Sequence[Message] | Rendered) -> Rendered:
        try:
            return self.render(prompt)
        except ChatwrightError as error:
            raise ChatwrightError(f"prompt {number}: {error}") from error

    def request(self, prompt: Rendered, sampling: Sampling, n: int = 1, first: int = 0) -> Request:
        """What a decoder takes: a prompt and n rows, which are the samples from number ``first`` on.

        A sample's random numbers are decided by the seed, the content of the prompt and its number.
        """
        # The last token needs no place in the context, as nothing follows it.
        room = min(sampling.max_new_tokens, self.context - len(prompt) + 1)
        rows: list[Row] = []
        for number in range(first, first + n):
            uniforms = stream_of_uniforms(sampling.seed, prompt.digest, number, room) if sampling.temperature else None
            constraint = None
            if sampling.form:
                constraint = Constraint(self.renderer, len(self.model.get_output_embeddings().weight), sampling.form)
            rows.append(Row(prompt, sampling, room, uniforms, constraint))
        return Request(prompt, rows)

    def complete(self, row: Row) -> Completion:
        """The answer of a row that has ended."""
        text = self.renderer.decode(self._said(row.tokens), row.prompt)
        for stop in row.sampling.stop:
            text = text.split(stop, 1)[0]
        finish: Literal["stop", "length"] = "stop" if row.finish == "stop" else "length"
        return Completion(row.tokens, text, row.logprobs, finish, row.alternatives)

    def _said(self, tokens: list[int]) -> list[int]:
        """The tokens without a stop token at the end."""
        return tokens[:-1] if tokens and tokens[-1] in self.renderer.stop_ids else tokens

    def settled(self, row: Row) -> str:
        """The text of a row so far, as much of it as no further token can change."""
        # The bytes of an unfinished character decode to replacement characters.
        text = self.renderer.decode(self._said(row.tokens), row.prompt).rstrip("\ufffd")
        unsure = 0
        for stop in row.sampling.stop:
            if stop in text:
                return text[: text.index(stop)]
            unsure = max([unsure, *(size for size in range(1, len(stop)) if text.endswith(stop[:size]))])
        return text[: len(text) - unsure]

    @contextmanager
    def decoder(self) -> Iterator[Decoder]:
        """A decoder, with the model in evaluation mode; afterwards as it was."""
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            with prepared(self.model, self.batch_size):
                yield Decoder(self.model, self.renderer, self.batch_size, self.cache_bytes, self.kept_bytes)
        finally:
            for module in training:
                module.training = True
