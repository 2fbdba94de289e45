"""People, talks and databases for tests."""

from uuid import UUID, uuid4

import psycopg

from chatwright.feedback import conversations
from chatwright.feedback.conversations import Content, Origin
from chatwright.feedback.database import Database
from chatwright.feedback.tables import User

ORIGIN = Origin("tiny", "a" * 64, {"temperature": 1.0}, "stop", 3, 2)


def empty(server: str) -> str:
    """The URL of an empty PostgreSQL database: a schema of its own, which is made sooner than a database."""
    name = f"chat_{uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    return f"{server}&options=-csearch_path%3D{name}"


def person(database: Database, name: str, role: str = "user", consent: bool = False):
    """The id of a new account; its password is none."""
    with database.writing() as session:
        user = User(name=name, password_hash="none", role=role, pseudonym=f"annotator-{name}", consent=consent)
        session.add(user)
        session.flush()
        return user.id


def text(words: str) -> list[Content]:
    return [Content("text", words)]


def talk(session, *turns: str, title: str = "a talk", key: UUID | None = None):
    """A conversation whose turns are the user's and the assistant's by turns; the ids of the messages."""
    conversation = conversations.create(session, key or uuid4(), title).id
    keys = []
    for i, words in enumerate(turns):
        role, origin = ("assistant", ORIGIN) if i % 2 else ("user", None)
        parent = keys[-1] if keys else None
        keys.append(conversations.add(session, conversation, uuid4(), parent, role, text(words), origin).id)
    return conversation, keys
