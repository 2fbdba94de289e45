"""The engine: cached, batched generation with the log-probabilities of what was sampled.

Everything that needs answers uses it: annotation, reinforcement learning, evaluation, chat and serving.

A prompt is read once (each picture is encoded once) for all its samples; answers that have ended make room for others
(`chatwright.generation.decoder`). Answers do not depend on the batch: prompts are padded on the left with positions
counted from their own first token, and every sample has its own stream of random numbers.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager

from transformers import PreTrainedModel

from chatwright.data.records import Message
from chatwright.data.render import Renderer
from chatwright.data.rendered import Rendered
from chatwright.errors import ChatwrightError
from chatwright.generation.backend import Backend, Completion
from chatwright.generation.constraint import Constraint
from chatwright.generation.decoder import Decoder, Request, Row
from chatwright.generation.sampling import Sampling, stream_of_uniforms
from chatwright.generation.weights import layers_of, prepared

CACHE_BYTES = 4 * 2**30


class Engine(Backend):
    """Generates with any `transformers` causal language model, multimodal ones included.

    Args:
        model: used in its own dtype and on its own device; its training flags are restored after every call.
        renderer: turns conversations into the model's inputs and tokens into text.
        batch_size: rows decoded together. The n samples of one prompt stay together, also when they are more.
        cache_bytes: what the keys and values of all rows may take; a single prompt with its samples always may.
        kept_bytes: what those of answers that have ended may take besides, until the decoder is closed: a prompt that
            begins as another one did, answer included, is read from there on.
        int8: whether to compute from weights of 8 bits (`chatwright.generation.weights`).

    Raises:
        ChatwrightError: ``int8`` for a model that is elsewhere or computes in other numbers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        renderer: Renderer,
        batch_size: int = 64,
        cache_bytes: int = CACHE_BYTES,
        kept_bytes: int = 0,
        int8: bool = False,
    ):
        super().__init__(renderer, batch_size)
        if int8 and not layers_of(model):
            raise ChatwrightError(
                "8-bit weights need a CPU that multiplies bfloat16 (AVX-512); use precision fp32 or bf16"
            )
        self.model = model
        self.cache_bytes = cache_bytes
        self.kept_bytes = kept_bytes
        self.int8 = int8

    def generate(
        self,
        prompts: Sequence[Sequence[Message] | Rendered],
        sampling: Sampling | Sequence[Sampling] | None = None,
        n: int = 1,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        requests = [self.request(prompt, one, n, first) for prompt, one, first in self._asked(prompts, sampling, n)]
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
        request = self.request(self.render(messages), sampling or Sampling())
        with self.decoder() as decoder:
            decoder.admit(deque([request]))
            return (yield from self._spoken(request.rows[0], iter(decoder.step, request.rows)))

    @property
    def context(self) -> int:
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2**31

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

    def request(self, prompt: Rendered, sampling: Sampling, n: int = 1, first: int = 0) -> Request:
        """What a decoder takes: a prompt and n rows, which are the samples from number ``first`` on.

        A sample's random numbers are decided by the seed, the content of the prompt and its number.
        """
        room = self._room(prompt, sampling)
        rows: list[Row] = []
        for number in range(first, first + n):
            uniforms = stream_of_uniforms(sampling.seed, prompt.digest, number, room) if sampling.temperature else None
            constraint = None
            if sampling.form:
                constraint = Constraint(self.renderer, len(self.model.get_output_embeddings().weight), sampling.form)
            rows.append(Row(prompt, sampling, room, uniforms, constraint))
        return Request(prompt, rows)

    @contextmanager
    def decoder(self) -> Iterator[Decoder]:
        """A decoder, with the model in evaluation mode; afterwards as it was."""
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            with prepared(self.model, self.batch_size, self.int8):
                yield Decoder(self.model, self.renderer, self.batch_size, self.cache_bytes, self.kept_bytes)
        finally:
            for module in training:
                module.training = True
