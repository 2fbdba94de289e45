"""What is kept about people: accounts, conversations as trees of messages, judgements, and a journal.

What must never be true of the data is a constraint of the database itself, so that no program can write it. Triggers,
made in ``migrations``, refuse to change a message once it is written, and to change or remove a line of the journal.
"""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    column,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

ROLES = ("owner", "admin", "annotator", "user")  # of accounts; those of messages are `data.records.ROLES`
VERDICTS = ("first", "second", "tie", "neither")  # neither: both answers are bad
FINISHED = ("stop", "length", "tool_calls", "cancelled")
REASONS = {
    True: ("correct", "helpful", "well_written", "other"),
    False: ("wrong", "not_followed", "unhelpful", "badly_written", "harmful", "other"),
}


class Moment(TypeDecorator[datetime]):
    """A time in UTC; SQLite, which keeps no time zone, gives it back with one too."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value and (value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC))


def now() -> datetime:
    return datetime.now(UTC)


def one_of(name: str, values: tuple[str, ...]) -> CheckConstraint:
    return CheckConstraint(column(name).in_(values), name=name)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012
        datetime: Moment,
        str: Text,
        dict[str, Any]: JSON(none_as_null=True),
        list[str]: JSON(none_as_null=True),
    }


def owner(**options: Any) -> Any:
    """Whose this is; it goes when the account goes."""
    return mapped_column(ForeignKey("users.id", ondelete="CASCADE"), **options)


def sha256(**options: Any) -> Any:
    """A SHA-256 in hexadecimal."""
    return mapped_column(String(64), **options)


class User(Base):
    """An account. ``consent``: may what this person writes and judges be used for training? ``pseudonym``: who judged,
    in exports. A password is kept as argon2 makes it."""

    __tablename__ = "users"
    __table_args__ = (one_of("role", ROLES), CheckConstraint("name <> ''", name="name"))

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    password_hash: Mapped[str] = mapped_column(String(256))
    role: Mapped[str] = mapped_column(String(16))
    active: Mapped[bool] = mapped_column(default=True)
    consent: Mapped[bool] = mapped_column(default=False)
    pseudonym: Mapped[str] = mapped_column(String(32), unique=True)
    created_at: Mapped[datetime] = mapped_column(default=now)


class Link(Base):
    """A link with which one person can make an account of ``role``; only the hash of its secret is kept. It is removed
    when it is used. The first owner's has nobody who made it, and there is only one such link."""

    __tablename__ = "links"
    __table_args__ = (
        one_of("role", ROLES),
        CheckConstraint("made_by IS NOT NULL OR role = 'owner'", name="made_by"),
        Index(
            "ix_links_first_owner",
            "role",
            unique=True,
            sqlite_where=column("made_by").is_(None),
            postgresql_where=column("made_by").is_(None),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    token_hash: Mapped[str] = sha256(unique=True)
    role: Mapped[str] = mapped_column(String(16))
    made_by: Mapped[UUID | None] = owner()
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime]


class PasswordReset(Base):
    """A link with which somebody whose password is lost sets another one; ``id`` is that of the account. Only the hash
    of its secret is kept. It is removed when it is used, or the password is changed otherwise."""

    __tablename__ = "password_resets"

    id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    token_hash: Mapped[str] = sha256(unique=True)
    made_by: Mapped[UUID] = owner()
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime]


class SignIn(Base):
    """A browser that is signed in; only the hash of its token is kept."""

    __tablename__ = "sessions"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    token_hash: Mapped[str] = sha256(unique=True)
    owner_id: Mapped[UUID] = owner(index=True)
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime]


class ApiKey(Base):
    """A key for programs; only its hash is kept, and its first characters to recognise it by."""

    __tablename__ = "api_keys"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    owner_id: Mapped[UUID] = owner(index=True)
    name: Mapped[str] = mapped_column(String(64))
    prefix: Mapped[str] = mapped_column(String(16))
    key_hash: Mapped[str] = sha256(unique=True)
    created_at: Mapped[datetime] = mapped_column(default=now)
    revoked_at: Mapped[datetime | None]


class File(Base):
    """A picture, sound or video that somebody uploaded, addressed by what is in it. It lies in the database: there is
    one thing to back up, and no name that a user made up ever touches the disk."""

    __tablename__ = "files"
    __table_args__ = (
        UniqueConstraint("owner_id", "sha256"),
        CheckConstraint("size = length(data)", name="size"),
        CheckConstraint("length(sha256) = 64", name="sha256"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    owner_id: Mapped[UUID] = owner()
    sha256: Mapped[str] = sha256()
    type: Mapped[str] = mapped_column(String(64))  # a media type, such as image/png
    size: Mapped[int]  # in bytes
    data: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)
    created_at: Mapped[datetime] = mapped_column(default=now)


class Conversation(Base):
    __tablename__ = "conversations"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    owner_id: Mapped[UUID] = owner(index=True)
    title: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Message(Base):
    """A node of a conversation's tree. ``number`` counts the messages of the conversation; a parent's is smaller.

    An answer knows the model and the hash of the checkpoint that gave it, its sampling settings and how it ended.
    """

    __tablename__ = "messages"
    __table_args__ = (
        UniqueConstraint("conversation_id", "number"),
        UniqueConstraint("conversation_id", "id"),  # for the parent, which is of the same conversation
        UniqueConstraint("parent_id", "id"),  # for comparisons, whose two answers have the same parent
        ForeignKeyConstraint(["conversation_id", "parent_id"], ["messages.conversation_id", "messages.id"]),
        one_of("role", ("system", "user", "assistant", "tool")),
        one_of("finish_reason", FINISHED),
        CheckConstraint("parent_id IS NOT NULL OR role IN ('system', 'user')", name="root"),
        CheckConstraint("parent_id <> id", name="parent"),
        CheckConstraint(
            "role = 'assistant' AND model IS NOT NULL AND checkpoint IS NOT NULL AND sampling IS NOT NULL"
            " AND finish_reason IS NOT NULL AND prompt_tokens IS NOT NULL AND completion_tokens IS NOT NULL"
            " OR role <> 'assistant' AND model IS NULL AND checkpoint IS NULL AND sampling IS NULL"
            " AND finish_reason IS NULL AND prompt_tokens IS NULL AND completion_tokens IS NULL",
            name="answer",
        ),
        CheckConstraint("prompt_tokens >= 0 AND completion_tokens >= 0", name="tokens"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    conversation_id: Mapped[UUID] = mapped_column(ForeignKey("conversations.id", ondelete="CASCADE"))
    parent_id: Mapped[UUID | None]
    number: Mapped[int]
    role: Mapped[str] = mapped_column(String(16))
    model: Mapped[str | None]
    checkpoint: Mapped[str | None] = sha256()
    sampling: Mapped[dict[str, Any] | None]
    finish_reason: Mapped[str | None] = mapped_column(String(16))
    prompt_tokens: Mapped[int | None]
    completion_tokens: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    content: Mapped[list["Part"]] = relationship(
        order_by="Part.place", lazy="selectin", cascade="all", passive_deletes=True
    )

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text or "" for part in self.content)


class Part(Base):
    """One piece of a message's content, as `data.records.Part`, with a file in the place of its bytes."""

    __tablename__ = "parts"
    __table_args__ = (
        CheckConstraint(
            "type = 'text' AND text IS NOT NULL AND file_id IS NULL"
            " OR type IN ('image', 'audio', 'video') AND text IS NULL AND file_id IS NOT NULL",
            name="content",
        ),
    )

    message_id: Mapped[UUID] = mapped_column(ForeignKey("messages.id", ondelete="CASCADE"), primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    type: Mapped[str] = mapped_column(String(16))
    text: Mapped[str | None]
    file_id: Mapped[UUID | None] = mapped_column(ForeignKey("files.id"), index=True)
    file: Mapped[File | None] = relationship(lazy="joined")


class Evaluation(Base):
    """What somebody thinks of an answer.

    thumb: is it ``good``, with ``reasons`` (`REASONS`) and a ``comment``. correction: ``text`` is what it should have
    said. comparison: ``message_id`` was shown first and ``other_id`` second, and ``verdict`` is one of `VERDICTS`.
    """

    __tablename__ = "evaluations"
    __table_args__ = (
        # Both are answers to the same prompt: children of the same message.
        ForeignKeyConstraint(["prompt_id", "message_id"], ["messages.parent_id", "messages.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(["prompt_id", "other_id"], ["messages.parent_id", "messages.id"], ondelete="CASCADE"),
        one_of("verdict", VERDICTS),
        CheckConstraint(
            "kind = 'thumb' AND good IS NOT NULL AND text IS NULL AND other_id IS NULL AND verdict IS NULL"
            " OR kind = 'correction' AND text <> '' AND text IS NOT NULL AND good IS NULL AND other_id IS NULL"
            " AND verdict IS NULL"
            " OR kind = 'comparison' AND other_id <> message_id AND other_id IS NOT NULL AND verdict IS NOT NULL"
            " AND good IS NULL AND text IS NULL",
            name="kind",
        ),
        Index(
            "ix_evaluations_one",
            "owner_id",
            "message_id",
            "kind",
            unique=True,
            sqlite_where=column("other_id").is_(None),
            postgresql_where=column("other_id").is_(None),
        ),
        UniqueConstraint("owner_id", "message_id", "other_id"),
        Index(None, "prompt_id", "message_id"),
        Index(None, "prompt_id", "other_id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    owner_id: Mapped[UUID] = owner()
    kind: Mapped[str] = mapped_column(String(16))
    prompt_id: Mapped[UUID]
    message_id: Mapped[UUID]
    other_id: Mapped[UUID | None]
    good: Mapped[bool | None]
    reasons: Mapped[list[str]] = mapped_column(default=list)
    comment: Mapped[str] = mapped_column(default="")
    text: Mapped[str | None]
    verdict: Mapped[str | None] = mapped_column(String(16))
    created_at: Mapped[datetime] = mapped_column(default=now)
    changed_at: Mapped[datetime] = mapped_column(default=now, onupdate=now)


class Journal(Base):
    """Who changed what and when, never the content of it. It names people by id, and keeps the ids of what is gone.

    ``action`` is added, changed or removed, ``kind`` a table. ``fields`` names what changed, with the new value where
    that is a matter of accounts (`TOLD`).
    """

    __tablename__ = "journal"
    __table_args__ = (one_of("action", ("added", "changed", "removed")), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    at: Mapped[datetime] = mapped_column(default=now)
    actor_id: Mapped[UUID | None]  # None: the program itself, or somebody who is not signed in
    action: Mapped[str] = mapped_column(String(16))
    kind: Mapped[str] = mapped_column(String(32))
    subject_id: Mapped[UUID]
    fields: Mapped[dict[str, Any]]


TOLD = {"role", "active", "consent", "revoked_at", "made_by"}
