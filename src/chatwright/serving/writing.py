"""Answers on the chat page, from the question to the saved message.

A task of its own writes each answer, so that it is saved however it ends: by itself, because somebody stopped it, or
because nobody watches any longer. Those who watch are told its text so far as HTML.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from fastapi.concurrency import run_in_threadpool

from chatwright.data import records
from chatwright.data.render import Renderer
from chatwright.data.rendered import Rendered
from chatwright.errors import ChatwrightError
from chatwright.feedback import conversations
from chatwright.feedback.conversations import Content, Origin
from chatwright.feedback.database import Conflict, NotFound, Transaction
from chatwright.feedback.tables import Conversation, Evaluation, Message
from chatwright.generation.sampling import Sampling
from chatwright.generation.service import Ticket
from chatwright.serving.events import EventStream, event_of
from chatwright.serving.markdown import to_html
from chatwright.serving.served import Model, Served

PAUSE = 0.1  # seconds between two looks at an answer
SHARE = 0.25  # of one processor, for making HTML of all answers that are being written


@dataclass(eq=False)
class Writing:
    """One answer: whose it is, what it answers, and how far it is.

    Attributes:
        begun: done when the decoder has taken it, or with why it could not.
        news: set whenever something has changed; so are those of ``watchers``, the events of who watches.
        ended: the last event that watchers are told.
    """

    key: UUID
    person: UUID
    conversation: UUID
    parent: UUID
    model: Model
    sampling: Sampling
    begun: asyncio.Future[None]
    task: asyncio.Task[None] = field(init=False)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    watchers: set[asyncio.Event] = field(default_factory=set)
    ticket: Ticket | None = None
    stopped: bool = False
    ended: dict[str, Any] | None = None

    def tell(self) -> None:
        for event in (self.news, *self.watchers):
            event.set()

    def stop(self) -> None:
        """End it where it is."""
        self.stopped = True
        if self.ticket:
            self.ticket.cancel()
        self.tell()

    @property
    def tokens(self) -> int:
        """How many are written so far."""
        return len(self.ticket.request.rows[0].tokens) if self.ticket else 0

    def event(self) -> str:
        """What those who watch are told now."""
        assert self.ticket
        return event_of({"answer": str(self.key), "html": to_html(text_of(self.ticket))})


def text_of(ticket: Ticket) -> str:
    """What is written so far; no database keeps a NUL."""
    (row,), engine = ticket.request.rows, ticket.engine
    whole = row.finish in ("stop", "length")
    return (engine.complete(row).text if whole else engine.settled(row)).replace("\0", "\ufffd")


class Writings:
    """All answers that are being written, by their id."""

    def __init__(self, served: Served):
        self.served = served
        self._running: dict[UUID, Writing] = {}

    async def begin(self, person: UUID, conversation: UUID, parent: UUID, keys: Sequence[UUID]) -> list[Writing]:
        """Have a message of a person answered, once for each id. An answer that is there already, or is being written,
        is not written again.

        Raises:
            ChatwrightError: it cannot be begun; then none of them is.
        """
        for one in [self._running[key] for key in keys if key in self._running]:
            if one.stopped:  # It may end without a word, so it is not joined.
                await asyncio.wait([one.task])
        found = [self._running.get(key) or self._started(key, person, conversation, parent) for key in keys]
        try:
            for one in found:
                if (one.person, one.conversation, one.parent) != (person, conversation, parent):
                    raise Conflict("this id belongs to another answer; make another one")
                await asyncio.shield(one.begun)
        except (ChatwrightError, asyncio.CancelledError):
            for one in found:
                if one.person == person and not one.watchers:
                    one.stop()
            raise
        return found

    def stop(self, person: UUID, conversation: UUID | None = None, answer: UUID | None = None) -> bool:
        """End what is being written for a person: all of it, in one conversation, or one answer; whether there was."""
        found = [
            one
            for one in self._running.values()
            if one.person == person and conversation in (None, one.conversation) and answer in (None, one.key)
        ]
        for one in found:
            one.stop()
        return bool(found)

    async def close(self) -> None:
        """Wait until what has ended is saved."""
        await asyncio.gather(*(one.task for one in self._running.values()))

    def watch(self, writings: Sequence[Writing]) -> EventStream:
        """Server-sent events until all have ended; what nobody watches any longer is stopped."""
        news = asyncio.Event()
        for one in writings:
            one.watchers.add(news)

        def leave() -> None:
            for one in writings:
                one.watchers.discard(news)
                if not one.watchers:
                    one.stop()

        return EventStream(self._events(writings, news), leave)

    async def _events(self, writings: Sequence[Writing], news: asyncio.Event) -> AsyncIterator[str]:
        told, waiting = dict.fromkeys(writings, 0), list(writings)
        news.set()
        while waiting:
            await news.wait()
            news.clear()
            before = time.perf_counter()
            for one in list(waiting):
                if one.ended:
                    waiting.remove(one)
                    yield event_of(one.ended)
                elif one.tokens > told[one]:
                    told[one] = one.tokens
                    yield await run_in_threadpool(one.event)
            spent = (time.perf_counter() - before) * len(self._running)
            await asyncio.sleep(min(max(PAUSE, spent / SHARE), 10 * PAUSE) if waiting else 0)

    def _started(self, key: UUID, person: UUID, conversation: UUID, parent: UUID) -> Writing:
        begun = asyncio.get_running_loop().create_future()
        sampling = replace(self.served.sampling, seed=secrets.randbits(31))
        one = Writing(key, person, conversation, parent, self.served.model, sampling, begun)
        self._running[key] = one
        one.task = asyncio.create_task(self._write(one))
        return one

    async def _write(self, one: Writing) -> None:
        """The life of one answer."""
        loop = asyncio.get_running_loop()

        def changed() -> None:
            loop.call_soon_threadsafe(one.tell)

        try:
            prompt = await run_in_threadpool(self._prompt, one)
            if isinstance(prompt, Rendered):
                one.ticket = self.served.service.submit(one.model.engine, prompt, one.sampling, 1, changed)
                if one.stopped:
                    one.stop()
                one.begun.set_result(None)
                while not one.ticket.ended:
                    await one.news.wait()
                    one.news.clear()
                one.ended = await run_in_threadpool(self._save, one, one.ticket)
            else:
                one.ended = prompt
        except ChatwrightError as error:
            one.ended = {"error": {"message": str(error)}}
            if not one.begun.done():
                one.begun.set_exception(error)
        finally:
            one.ended = one.ended or {"error": {"message": "the answer was lost; see the log, and ask again"}}
            if not one.begun.done():
                one.begun.set_result(None)
            del self._running[one.key]
            one.tell()

    def _prompt(self, one: Writing) -> Rendered | dict[str, Any]:
        """What the model is to answer; the last event where it has been answered. Nothing of the database is held
        while the answer is written."""
        with self.served.database.reading(one.person) as session:
            if before := session.get(Message, one.key):
                if (before.conversation_id, before.parent_id, before.role) != (
                    session.own(Conversation, one.conversation).id, one.parent, "assistant"
                ):  # fmt: skip
                    raise Conflict("this id belongs to another message; make another one")
                return self._last(session, before)
            path = conversations.path(session, one.parent)
            if path[-1].conversation_id != one.conversation:
                raise NotFound("there is no such message to answer in this conversation; load it again")
            if path[-1].role != "user":
                raise ChatwrightError("only what a person said is answered; choose such a message")
            messages = [plain(message, one.model.engine.renderer) for message in conversations.records_of(path)]
        return one.model.engine.latest(messages, one.sampling.max_new_tokens)[0]

    def _save(self, one: Writing, ticket: Ticket) -> dict[str, Any]:
        """Keep an answer that has ended; gives the last event."""
        if ticket.error:
            raise ChatwrightError(ticket.error)
        (row,), text = ticket.request.rows, text_of(ticket)
        if row.finish == "cancelled" and not (text or one.watchers):
            raise ChatwrightError("nobody waited for the answer; ask again")
        settings = {name: getattr(one.sampling, name) for name in ("temperature", "top_p", "max_new_tokens", "seed")}
        tokens = len(row.prompt), len(row.tokens)
        origin = Origin(one.model.name, one.model.checkpoint, settings, str(row.finish), *tokens)
        with self.served.database.writing(one.person) as session:
            content = [Content("text", text)]
            message = conversations.add(session, one.conversation, one.key, one.parent, "assistant", content, origin)
            return self._last(session, message)

    def _last(self, session: Transaction, message: Message) -> dict[str, Any]:
        """The event that tells an answer as it was saved, and whether the next question is to get two."""
        return {
            "answer": str(message.id),
            "message": shown(message, []),
            "compare_next": compare_next(session, self.served.compare_every),
        }


def compare_next(session: Transaction, every: int) -> bool:
    """Whether the actor's next question is to get two answers."""
    return every > 0 and (conversations.answered(session) + 1) % every == 0


def plain(message: records.Message, renderer: Renderer) -> records.Message:
    """A message in which special tokens are words like any others: people may write about them."""
    parts = (replace(part, text=renderer.plain(part.text)) if part.text else part for part in message.content)
    return records.Message(message.role, tuple(parts))


def shown(message: Message, given: Sequence[Evaluation]) -> dict[str, Any]:
    """A message as the page gets it, with what the person thinks of it."""
    by_kind = {evaluation.kind: evaluation for evaluation in given if evaluation.message_id == message.id}
    thumb, correction = by_kind.get("thumb"), by_kind.get("correction")
    return {
        "id": str(message.id),
        "parent": message.parent_id and str(message.parent_id),
        "role": message.role,
        "content": [
            {"type": part.type, "file": part.file.sha256}
            if part.file
            else {"type": "text", "text": part.text, "html": to_html(part.text or "")}
            for part in message.content
        ],
        "model": message.model,
        "finish_reason": message.finish_reason,
        "created": message.created_at.isoformat(),
        "evaluations": {
            "thumb": thumb and {"good": thumb.good, "reasons": thumb.reasons, "comment": thumb.comment},
            "correction": correction and {"text": correction.text},
        },
    }
