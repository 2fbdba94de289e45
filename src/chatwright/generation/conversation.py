"""A policy and an environment in conversation: what reinforcement learning learns from."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from chatwright.data.records import Message, Prompt
from chatwright.data.rendered import Rendered
from chatwright.feedback.environments import Environment, reply_of
from chatwright.generation.backend import Backend, Completion
from chatwright.generation.sampling import Sampling


@dataclass
class Conversation:
    """What follows a prompt.

    tokens: of all turns, with what the chat template puts around them. said: as long, True at the policy's, its stop
    tokens included. logprobs: as long, in nats, as of `Completion`; 0 at the others'. turns: the messages, the last
    being the policy's. finished: it came to its end, and not to that of the tokens or the context.
    """

    prompt: Prompt
    row: Rendered
    tokens: list[int] = field(default_factory=list)
    said: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[Message] = field(default_factory=list)
    finished: bool = False

    @property
    def text(self) -> str:
        """What the policy said last."""
        return self.turns[-1].text

    def hear(self, completion: Completion) -> None:
        """A turn of the policy."""
        self._add(completion.tokens, completion.logprobs, True)
        self.turns.append(Message.of("assistant", completion.text))
        self.finished = completion.finish_reason == "stop"

    def reply(self, tokens: list[int], message: Message) -> None:
        """A turn of the environment."""
        self._add(tokens, [0.0] * len(tokens), False)
        self.turns.append(message)

    def _add(self, tokens: list[int], logprobs: list[float], said: bool) -> None:
        self.tokens += tokens
        self.logprobs += logprobs
        self.said += [said] * len(tokens)


def converse(
    backend: Backend,
    prompts: Sequence[tuple[Prompt, Rendered]],
    sampling: Sampling,
    n: int = 1,
    environment: Environment | None = None,
    turns: int = 1,
) -> list[Conversation]:
    """Let the policy answer every prompt n times, and go on where an environment replies.

    The environment is asked after every turn that the policy ended with an end of turn, but for the last that it may
    have. Special tokens in what it says become plain text. Where a reply leaves no room for another token of the policy
    it is not said, and the conversation is not finished.

    Args:
        prompts: records with what the renderer made of them.
        sampling: ``max_new_tokens`` counts all that follows the prompt.
        turns: the most that the policy may have.

    Returns:
        Those to one prompt together, n of them.

    Raises:
        ChatwrightError: as `Backend.generate`, `reply_of` or `Renderer.between`.
    """
    drawn = backend.generate([row for _, row in prompts], sampling, n)
    everything = [Conversation(*asked) for asked in prompts for _ in range(n)]
    for conversation, completion in zip(everything, (one for answers in drawn for one in answers), strict=True):
        conversation.hear(completion)
    going = everything
    for _ in range(turns - 1):
        going = [one for one in going if environment and _goes_on(backend, one, environment, sampling.max_new_tokens)]
        if not going:
            break
        rows = [backend.renderer.answered(one.row, one.tokens) for one in going]
        left = [replace(sampling, max_new_tokens=sampling.max_new_tokens - len(one.tokens)) for one in going]
        for conversation, (completion,) in zip(going, backend.generate(rows, left), strict=True):
            conversation.hear(completion)
    return everything


def _goes_on(backend: Backend, conversation: Conversation, environment: Environment, longest: int) -> bool:
    """Whether the policy is to speak again; if so, the conversation now ends with what it is to answer."""
    if conversation.tokens[-1] != backend.renderer.end_id:  # cut off, or an end of text, which ends the conversation
        return False
    prompt, turns = conversation.prompt, conversation.turns
    reply = reply_of(environment, prompt, tuple(turns))
    if reply is None:
        return False
    reply = Message.of(reply.role, backend.renderer.plain(reply.text))
    tokens = backend.renderer.between([*prompt.messages, *turns[:-1]], reply)
    length = len(conversation.tokens) + len(tokens)
    conversation.finished = length < longest and len(conversation.row) + length <= backend.context
    if conversation.finished:
        conversation.reply(tokens, reply)
    return conversation.finished
