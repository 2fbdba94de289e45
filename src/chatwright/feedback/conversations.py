"""Conversations as people have them: trees of messages, where an edit or another answer is a new branch.

Every operation acts for the person of its transaction and refuses what is not theirs (`Transaction.own`).
Conversations and messages bear ids that the client makes, so that sending one again after a lost answer does not make a
second one. Messages of the assistant are for the program that has the model to add, never for a client.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast
from uuid import UUID

from sqlalchemy import Select, exists, func, or_, select
from sqlalchemy.orm import Session

from chatwright.data import records
from chatwright.data.records import Demonstration
from chatwright.errors import ChatwrightError
from chatwright.feedback.database import Conflict, NotFound, TooMuch, Transaction, check_text
from chatwright.feedback.tables import Conversation, Evaluation, File, Message, Part

QUOTA = 2**30  # bytes of files that an account may keep
FULL = "you have no room for this file; delete conversations with pictures, or files under /v1/files, and try again"

# What a message may answer; None is the beginning of a conversation.
FOLLOWS: dict[str, tuple[str | None, ...]] = {
    "system": (None,),
    "user": (None, "system", "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


@dataclass(frozen=True)
class Content:
    """A piece of content, as `data.records.Part`: a text, or in the place of its bytes the SHA-256 of a file that the
    writer has uploaded."""

    type: Literal["text", "image", "audio", "video"]
    text: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Origin:
    """Where an answer comes from.

    Attributes:
        model: its name. checkpoint: the SHA-256 that identifies its weights.
        sampling: the settings it was drawn with.
        finish_reason: stop, length, tool_calls or cancelled (somebody stopped it).
        prompt_tokens, completion_tokens: how many were read and said.
    """

    model: str
    checkpoint: str
    sampling: dict[str, Any]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


# ---- files


def upload(session: Transaction, data: bytes, type: str, quota: int = QUOTA) -> File:
    """Keep a file of the actor; the same bytes are kept once.

    Args:
        type: its media type, such as image/png, as the caller has found it in the bytes.
        quota: bytes that all files of the actor may have.

    Raises:
        TooMuch: they would have more.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    query = select(File).where(File.owner_id == session.actor.id, File.sha256 == sha256)
    if found := session.scalar(query):
        return found
    taken = session.scalar(select(func.sum(File.size)).where(File.owner_id == session.actor.id)) or 0
    if taken + len(data) > quota:
        raise TooMuch(FULL)
    file = File(owner_id=session.actor.id, sha256=sha256, type=type, size=len(data), data=data)
    session.add(file)
    session.flush()
    return file


def files(session: Transaction) -> Sequence[File]:
    """The actor's files, the newest first."""
    query = select(File).where(File.owner_id == session.actor.id)
    return session.scalars(query.order_by(File.created_at.desc())).all()


def download(session: Transaction, file: UUID) -> bytes:
    """What is in one of the actor's files."""
    return session.own(File, file).data


def file_of(session: Transaction, sha256: str) -> File:
    """The actor's file with these contents."""
    file = session.scalar(select(File).where(File.owner_id == session.actor.id, File.sha256 == sha256))
    if file is None:
        raise NotFound("there is no such file of yours; upload it first")
    return file


def delete_file(session: Transaction, file: UUID) -> None:
    """Remove one of the actor's files.

    Raises:
        Conflict: it stands in a message, which would not be what was said without it.
    """
    found = session.own(File, file)
    if session.scalar(select(exists().where(Part.file_id == file))):
        raise Conflict("this file stands in a conversation; delete the conversation, and it goes too")
    session.delete(found)


# ---- conversations


def create(session: Transaction, key: UUID, title: str) -> Conversation:
    """Begin a conversation; again with the same id, find it.

    Raises:
        Conflict: the id is in use elsewhere.
    """
    if before := session.get(Conversation, key):
        if before.owner_id != session.actor.id:
            raise Conflict("this id is in use; make another one")
        return before
    conversation = Conversation(id=key, owner_id=session.actor.id, title=title)
    session.add(conversation)
    session.flush()
    return conversation


def listed(session: Transaction, limit: int = 100, offset: int = 0) -> Sequence[Conversation]:
    """The actor's conversations, the latest to be spoken in first."""
    return session.scalars(_latest(session).limit(limit).offset(offset)).all()


def search(session: Transaction, words: str, limit: int = 100, offset: int = 0) -> Sequence[Conversation]:
    """The actor's conversations that hold these words in their title or in any message, whatever the case."""
    check_text("words", words)
    holds = (
        select(Message.id)
        .join(Part, Part.message_id == Message.id)
        .where(Message.conversation_id == Conversation.id)
        .where(Part.text.icontains(words, autoescape=True))
    )
    in_title = Conversation.title.icontains(words, autoescape=True)
    return session.scalars(_latest(session).where(or_(in_title, holds.exists())).limit(limit).offset(offset)).all()


def _latest(session: Transaction) -> Select[Conversation]:
    last = select(func.max(Message.created_at)).where(Message.conversation_id == Conversation.id).scalar_subquery()
    query = select(Conversation).where(Conversation.owner_id == session.actor.id)
    return query.order_by(func.coalesce(last, Conversation.created_at).desc(), Conversation.id)


def spoken_at(session: Transaction, keys: Sequence[UUID]) -> dict[UUID, datetime]:
    """When somebody last spoke in each of these conversations of the actor; when it began, where nobody has."""
    last = func.coalesce(func.max(Message.created_at), Conversation.created_at)
    query = select(Conversation.id, last).outerjoin(Message).group_by(Conversation.id)
    query = query.where(Conversation.id.in_(keys), Conversation.owner_id == session.actor.id)
    return dict(session.execute(query).all())


def rename(session: Transaction, conversation: UUID, title: str) -> None:
    session.own(Conversation, conversation).title = title


def delete(session: Transaction, conversation: UUID) -> None:
    """Remove a conversation for good: its messages, what was said about them, and files that stand nowhere else.

    A judgement quotes the conversation and means nothing without it, so it goes too. The journal keeps that a
    conversation with this id was there and who removed it.
    """
    found = session.own(Conversation, conversation)
    in_it = select(Part.file_id).join(Message).where(Message.conversation_id == conversation, Part.file_id.is_not(None))
    shown = set(session.scalars(in_it))
    session.delete(found)
    session.flush()
    for file in session.scalars(select(File).where(File.id.in_(shown))):
        if not session.scalar(select(exists().where(Part.file_id == file.id))):
            session.delete(file)


# ---- messages


def add(
    session: Transaction,
    conversation: UUID,
    key: UUID,
    parent: UUID | None,
    role: str,
    content: Sequence[Content],
    origin: Origin | None = None,
) -> Message:
    """Write a message; again with the same id and content, find it.

    Args:
        key: the message's id, made by who sends it.
        parent: the message that it answers, None at the beginning.
        origin: of an answer of the assistant, and of nothing else.

    Raises:
        Conflict: the id belongs to another message.
        NotFound: the conversation, the parent or a file is not there, or not the actor's.
        ChatwrightError: the message says nothing, or its role cannot follow that of its parent.
    """
    session.own(Conversation, conversation)
    if before := session.get(Message, key):
        written = [Content(part.type, part.text, part.file and part.file.sha256) for part in before.content]  # type: ignore[arg-type]
        if (before.conversation_id, before.parent_id, before.role, written) != (conversation, parent, role, [*content]):
            raise Conflict("this id belongs to another message; make another one")
        return before
    above = session.get(Message, parent) if parent else None
    if parent and (above is None or above.conversation_id != conversation):
        raise NotFound("there is no such message to answer in this conversation; load it again")
    if (above and above.role) not in FOLLOWS.get(role, ()):
        raise ChatwrightError(
            f"a message of the {role} cannot follow {above.role if above else 'nothing'}; choose its parent"
        )
    if (role == "assistant") != (origin is not None):
        raise ChatwrightError("the assistant's messages, and no others, have an origin; give it to those")
    if role != "assistant" and not any(one.sha256 or (one.text or "").strip() for one in content):
        raise ChatwrightError("the message says nothing; write something")
    count = session.scalar(select(func.max(Message.number)).where(Message.conversation_id == conversation)) or 0
    message = Message(
        id=key,
        conversation_id=conversation,
        parent_id=parent,
        number=count + 1,
        role=role,
        content=[_part(session, place, one) for place, one in enumerate(content)],
        **(vars(origin) if origin else {}),
    )
    session.add(message)
    session.flush()
    return message


def _part(session: Transaction, place: int, content: Content) -> Part:
    if content.type == "text":
        return Part(place=place, type="text", text=content.text)
    file = file_of(session, content.sha256 or "")
    if file.type.split("/")[0] != content.type:
        raise NotFound(f"there is no such {content.type} of yours; upload it first")
    return Part(place=place, type=content.type, file=file)


def edit(session: Transaction, message: UUID, key: UUID, content: Sequence[Content]) -> Message:
    """Write a message anew as another branch beside the first, which stays; ``key`` is the new one's id."""
    before = session.own(Message, message)
    if before.role == "assistant":
        raise ChatwrightError("what the assistant said stays as it is; correct it, or ask for another answer")
    return add(session, before.conversation_id, key, before.parent_id, before.role, content)


def read(session: Transaction, conversation: UUID) -> Sequence[Message]:
    """All messages of a conversation in the order in which they were written; parents come before children."""
    return _messages(session, session.own(Conversation, conversation).id)


def path(session: Transaction, message: UUID) -> list[Message]:
    """The messages from the beginning to this one."""
    leaf = session.own(Message, message)
    return ancestry(session, leaf.id)


def branches(session: Transaction, message: UUID) -> Sequence[Message]:
    """A message and the others in its place, in the order in which they were written."""
    one = session.own(Message, message)
    same = Message.parent_id == one.parent_id if one.parent_id else Message.parent_id.is_(None)
    query = select(Message).where(Message.conversation_id == one.conversation_id, same)
    return session.scalars(query.order_by(Message.number)).all()


def answered(session: Transaction) -> int:
    """How many messages of the actor's conversations have an answer."""
    query = select(func.count(Message.parent_id.distinct())).join(Conversation)
    query = query.where(Conversation.owner_id == session.actor.id, Message.role == "assistant")
    return session.scalar(query) or 0


def ancestry(session: Session, message: UUID) -> list[Message]:
    """The messages from the beginning to this one, whoever wrote them."""
    chain = select(Message.id, Message.parent_id).where(Message.id == message).cte("chain", recursive=True)
    chain = chain.union_all(select(Message.id, Message.parent_id).join(chain, Message.id == chain.c.parent_id))
    return [*session.scalars(select(Message).join(chain, Message.id == chain.c.id).order_by(Message.number))]


def _messages(session: Session, conversation: UUID) -> Sequence[Message]:
    return session.scalars(
        select(Message).where(Message.conversation_id == conversation).order_by(Message.number)
    ).all()


# ---- as records


def records_of(messages: Iterable[Message]) -> tuple[records.Message, ...]:
    """Messages with the bytes of their files, as every stage and the engine read them."""
    return tuple(
        records.Message(
            cast(records.Role, message.role),
            tuple(
                records.Part(cast(Any, part.type), text=part.text, media=part.file.data if part.file else None)
                for part in message.content
            ),
        )
        for message in messages
    )


def export(session: Transaction) -> Iterator[Demonstration]:
    """Everything that the actor wrote, was answered and judged: one conversation for every branch.

    ``data.store.save`` writes them as JSONL. ``meta`` says what is known beside the text; a branch that nobody answered
    is there too, and is read back as a `Prompt`.
    """
    everything = select(Conversation).where(Conversation.owner_id == session.actor.id)
    for conversation in session.scalars(everything.order_by(Conversation.created_at, Conversation.id)):
        messages = _messages(session, conversation.id)
        judged: dict[UUID, list[dict[str, Any]]] = {}
        query = select(Evaluation).join(Message, Message.id == Evaluation.message_id)
        for evaluation in session.scalars(query.where(Message.conversation_id == conversation.id)):
            judged.setdefault(evaluation.message_id, []).append(_facts(evaluation))
        by_id = {message.id: message for message in messages}
        inner = {message.parent_id for message in messages}
        for leaf in (message for message in messages if message.id not in inner):
            line = [leaf]
            while line[0].parent_id:
                line.insert(0, by_id[line[0].parent_id])
            told = [{**_facts(message), "evaluations": judged.get(message.id, [])} for message in line]
            meta = {"conversation": str(conversation.id), "title": conversation.title, "messages": told}
            yield Demonstration(records_of(line), meta)


def _facts(row: Message | Evaluation) -> dict[str, Any]:
    """What a row says, but for content that stands elsewhere and whose it is."""
    hidden = {"owner_id", "conversation_id", "number"}
    names = {column.key for column in row.__mapper__.column_attrs} - hidden
    found = {name: getattr(row, name) for name in sorted(names)}
    return {
        name: value if isinstance(value, str | int | bool | dict | list) else str(value)
        for name, value in found.items()
        if value is not None
    }
