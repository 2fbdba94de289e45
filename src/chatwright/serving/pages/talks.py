"""What the chat page asks for: conversations, messages, answers, pictures and judgements, each person's own.

Routes that are plain functions run in a thread pool: the database never holds up the event loop.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from chatwright.data import media
from chatwright.errors import ChatwrightError
from chatwright.feedback import conversations, evaluations
from chatwright.feedback.conversations import Content
from chatwright.feedback.database import Transaction
from chatwright.feedback.tables import Conversation, Message
from chatwright.serving.answers import picture_of
from chatwright.serving.events import EventStream
from chatwright.serving.served import Served
from chatwright.serving.writing import Writings, shown

PAGE = 50  # conversations
TITLE = 60  # characters
VERDICTS = {"a": "first", "b": "second", "tie": "tie", "both_bad": "neither"}
NOTHING = Response(status_code=204)


def person_of(request: Request) -> UUID:
    """Who asks, as the gate has found out."""
    return request.state.person


Person = Annotated[UUID, Depends(person_of)]
Sha256 = Annotated[str, Path(pattern="^[0-9a-f]{64}$")]


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Titled(Asked):
    title: str = Field(max_length=200)


class TextPart(Asked):
    type: Literal["text"]
    text: str


class ImagePart(Asked):
    type: Literal["image"]
    file: str = Field(pattern="^[0-9a-f]{64}$")


class Said(Asked):
    parent: UUID | None
    content: list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]


class Question(Asked):
    parent: UUID
    answers: list[UUID] = Field(min_length=1, max_length=2)


class Thumb(Asked):
    good: bool
    reasons: list[str] = []
    comment: str = Field("", max_length=10_000)


class Correction(Asked):
    text: str


class Compared(Asked):
    a: UUID
    b: UUID
    verdict: Literal["a", "b", "tie", "both_bad"]


def routes(served: Served, writings: Writings) -> APIRouter:
    router, database, limits = APIRouter(prefix="/api"), served.database, served.limits

    def check_length(text: str) -> None:
        if len(text) > limits.characters:
            raise ChatwrightError(f"the text is longer than {limits.characters:,} characters; shorten it")

    # ---- conversations

    @router.get("/conversations")
    def listed(
        person: Person,
        query: Annotated[str, Query(max_length=1000)] = "",
        offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    ) -> dict[str, Any]:
        with database.reading(person) as session:
            if query.strip():
                found = conversations.search(session, query.strip(), PAGE + 1, offset)
            else:
                found = conversations.listed(session, PAGE + 1, offset)
            return {"conversations": _summaries(session, found[:PAGE]), "more": len(found) > PAGE}

    @router.put("/conversations/{conversation}")
    def begin(person: Person, conversation: UUID, asked: Titled) -> dict[str, Any]:
        with database.writing(person) as session:
            return _summary(session, conversations.create(session, conversation, asked.title))

    @router.patch("/conversations/{conversation}")
    def rename(person: Person, conversation: UUID, asked: Titled) -> dict[str, Any]:
        if not asked.title.strip():
            raise ChatwrightError("the title is empty; write something")
        with database.writing(person) as session:
            conversations.rename(session, conversation, asked.title)
            return _summary(session, session.own(Conversation, conversation))

    @router.delete("/conversations/{conversation}", status_code=204)
    async def delete(person: Person, conversation: UUID) -> None:
        def delete() -> None:
            with database.writing(person) as session:
                conversations.delete(session, conversation)

        await run_in_threadpool(delete)
        writings.stop(person, conversation)

    @router.get("/conversations/{conversation}")
    def read(person: Person, conversation: UUID) -> dict[str, Any]:
        with database.reading(person) as session:
            messages = conversations.read(session, conversation)
            given = evaluations.given(session, conversation)
            title = session.own(Conversation, conversation).title
        told = [shown(message, given) for message in messages]
        return {"id": str(conversation), "title": title, "messages": told}

    # ---- messages and answers

    @router.put("/conversations/{conversation}/messages/{message}")
    def say(person: Person, conversation: UUID, message: UUID, asked: Said) -> dict[str, Any]:
        content = [
            Content("text", part.text) if isinstance(part, TextPart) else Content("image", sha256=part.file)
            for part in asked.content
        ]
        text = "".join(part.text or "" for part in content)
        check_length(text)
        pictures = sum(part.type == "image" for part in content)
        if pictures and not served.model.pictures:
            raise ChatwrightError("this model reads no pictures; send text only")
        if pictures > limits.images or len(content) > limits.images + 1:
            raise ChatwrightError(f"more than {limits.images} pictures or several texts in a message; send fewer")
        with database.writing(person) as session:
            kept = conversations.add(session, conversation, message, asked.parent, "user", content)
            found = session.own(Conversation, conversation)
            if not found.title:
                found.title = title_of(text)
                session.flush()
            return {"message": shown(kept, []), "conversation": _summary(session, found)}

    @router.post("/conversations/{conversation}/answers", response_class=StreamingResponse)
    async def answer(person: Person, conversation: UUID, asked: Question) -> EventStream:
        begun = await writings.begin(person, conversation, asked.parent, list(dict.fromkeys(asked.answers)))
        return writings.watch(begun)

    @router.post("/answers/{answer}/stop", status_code=204)
    async def stop(person: Person, answer: UUID) -> None:
        if not writings.stop(person, answer=answer):
            await run_in_threadpool(ended, person, answer)

    def ended(person: UUID, answer: UUID) -> None:
        """Whoever stops an answer that ends at this moment has done nothing wrong."""
        with database.reading(person) as session:
            session.own(Message, answer)

    # ---- pictures

    @router.post(
        "/files",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            }
        },
    )
    async def upload(person: Person, request: Request) -> dict[str, Any]:
        return await run_in_threadpool(keep, person, await request.body())

    def keep(person: UUID, data: bytes) -> dict[str, Any]:
        width, height = picture_of(data, limits).size()
        with database.writing(person) as session:
            file = conversations.upload(session, data, media.type_of(data) or "", served.quota)
            return {"file": file.sha256, "type": file.type, "width": width, "height": height}

    @router.get("/files/{sha256}", response_class=Response)
    def download(person: Person, sha256: Sha256) -> Response:
        with database.reading(person) as session:
            file = conversations.file_of(session, sha256)
            headers = {"Cache-Control": "private, max-age=31536000, immutable"}
            return Response(file.data, media_type=file.type, headers=headers)

    # ---- judgements

    @router.put("/messages/{message}/thumb", status_code=204)
    def thumb(person: Person, message: UUID, asked: Thumb) -> None:
        with database.writing(person) as session:
            evaluations.thumb(session, message, asked.good, asked.reasons, asked.comment)

    @router.put("/messages/{message}/correction", status_code=204)
    def correct(person: Person, message: UUID, asked: Correction) -> None:
        check_length(asked.text)
        with database.writing(person) as session:
            evaluations.correct(session, message, asked.text)

    @router.delete("/messages/{message}/{kind}", status_code=204)
    def withdraw(person: Person, message: UUID, kind: Literal["thumb", "correction"]) -> None:
        with database.writing(person) as session:
            evaluations.withdraw_from(session, message, kind)

    @router.put("/comparisons", status_code=204)
    def compare(person: Person, asked: Compared) -> None:
        with database.writing(person) as session:
            evaluations.compare(session, asked.a, asked.b, VERDICTS[asked.verdict])

    return router


def title_of(text: str) -> str:
    """The first words of a text."""
    line = " ".join(text.split())
    if len(line) <= TITLE:
        return line
    words = line[: TITLE + 1].rpartition(" ")[0]
    return (words if len(words) > TITLE // 2 else line[:TITLE]) + "…"


def _summary(session: Transaction, conversation: Conversation) -> dict[str, Any]:
    return _summaries(session, [conversation])[0]


def _summaries(session: Transaction, found: Sequence[Conversation]) -> list[dict[str, Any]]:
    spoken = conversations.spoken_at(session, [one.id for one in found])
    return [{"id": str(one.id), "title": one.title, "updated": spoken[one.id].isoformat()} for one in found]
