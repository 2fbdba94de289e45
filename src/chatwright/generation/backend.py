"""What answers prompts: the built-in engine or a server, behind the same two calls."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from chatwright.data.records import Message
from chatwright.data.render import Renderer
from chatwright.data.rendered import Rendered
from chatwright.errors import ChatwrightError
from chatwright.generation.decoder import Row
from chatwright.generation.sampling import Sampling


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


class Backend(ABC):
    """Answers conversations; what all backends do with prompts and answers is here.

    Args:
        renderer: turns conversations into the model's inputs and tokens into text.
        batch_size: answers written together.
    """

    def __init__(self, renderer: Renderer, batch_size: int) -> None:
        self.renderer, self.batch_size = renderer, batch_size

    @property
    @abstractmethod
    def context(self) -> int:
        """The longest sequence that the model reads, in tokens."""

    @abstractmethod
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

    @abstractmethod
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

    def complete(self, row: Row) -> Completion:
        """The answer of a row that has ended."""
        text = self.renderer.decode(self._said(row.tokens), row.prompt)
        for stop in row.sampling.stop:
            text = text.split(stop, 1)[0]
        finish: Literal["stop", "length"] = "stop" if row.finish == "stop" else "length"
        return Completion(row.tokens, text, row.logprobs, finish, row.alternatives)

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

    def _asked(
        self,
        prompts: Sequence[Sequence[Message] | Rendered],
        sampling: Sampling | Sequence[Sampling] | None,
        n: int,
    ) -> list[tuple[Rendered, Sampling, int]]:
        """Every prompt rendered, its sampling, and how many answers the same prompt gets before."""
        sampling = sampling or Sampling()
        each = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
        rendered = [self._numbered(number, prompt) for number, prompt in enumerate(prompts)]
        seen: Counter[bytes] = Counter()
        asked = []
        for prompt, one in zip(rendered, each, strict=True):
            asked.append((prompt, one, seen[prompt.digest]))
            seen[prompt.digest] += n
        return asked

    def _numbered(self, number: int, prompt: Sequence[Message] | Rendered) -> Rendered:
        try:
            return self.render(prompt)
        except ChatwrightError as error:
            raise ChatwrightError(f"prompt {number}: {error}") from error

    def _room(self, prompt: Rendered, sampling: Sampling) -> int:
        """How many tokens an answer may have; the last one is not read, so it needs no place in the context."""
        return min(sampling.max_new_tokens, self.context - len(prompt) + 1)

    def _spoken(self, row: Row, steps: Iterable[object]) -> Generator[str, None, Completion]:
        """What `stream` gives of a row that grows with every step."""
        shown = ""
        for _ in steps:
            text = self.settled(row)
            if text.startswith(shown) and len(text) > len(shown):
                yield text[len(shown) :]
                shown = text
        completion = self.complete(row)
        if rest := completion.text[len(shown) :]:
            yield rest
        return completion

    def _said(self, tokens: list[int]) -> list[int]:
        """The tokens without a stop token at the end."""
        return tokens[:-1] if tokens and tokens[-1] in self.renderer.stop_ids else tokens
