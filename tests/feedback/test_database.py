"""The database itself, SQLite and PostgreSQL: rules, journal, many writers, kills, migrations, copies."""

import hashlib
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, func, inspect, select, text
from sqlalchemy.exc import DBAPIError
from tests.feedback.people import ORIGIN, empty, person, talk

from chatwright.errors import ChatwrightError
from chatwright.feedback import accounts, conversations, evaluations
from chatwright.feedback.database import MIGRATIONS, Conflict, Database, copy, parse
from chatwright.feedback.tables import Base, Evaluation, File, Journal, Message, Part, User

ROOT = Path(__file__).parents[2]


def writer(url, errors, *arguments):
    """Start tests/feedback/writer.py; what goes wrong there is added to the file ``errors``."""
    command = [sys.executable, "-m", "tests.feedback.writer", url, *map(str, arguments)]
    with errors.open("a") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=file, text=True)


@pytest.fixture
def board(database):
    """A person, and a conversation to write into."""
    ann = person(database, "ann")
    with database.writing(ann) as session:
        return ann, conversations.create(session, uuid4(), "board").id


def test_fifty_writers_at_once_all_write_and_nobody_is_refused(database, url, board, tmp_path):
    ann, conversation = board
    errors = tmp_path / "errors"
    writers = [writer(url, errors, ann, conversation, 25, 2) for _ in range(2)]
    while any(process.poll() is None for process in writers):
        with database.reading(ann) as session:  # A reader beside them sees a consistent conversation.
            numbers = [message.number for message in conversations.read(session, conversation)]
        assert numbers == list(range(1, len(numbers) + 1))
        time.sleep(0.05)
    acknowledged = {UUID(line) for process in writers for line in process.communicate()[0].split()}
    assert errors.read_text() == ""
    with database.reading(ann) as session:
        assert {message.id for message in conversations.read(session, conversation)} == acknowledged
    assert len(acknowledged) == 100


def test_a_kill_in_the_middle_loses_nothing_that_was_acknowledged(database, url, board, tmp_path):
    ann, conversation = board
    process = writer(url, tmp_path / "errors", ann, conversation, 4, 1_000_000)
    acknowledged = [process.stdout.readline() for _ in range(40)]
    os.kill(process.pid, signal.SIGKILL)
    acknowledged += process.communicate()[0].split("\n")[:-1]
    keys = {UUID(line.strip()) for line in acknowledged}
    with Database(url).reading(ann) as session:
        written = {message.id: message.text for message in conversations.read(session, conversation)}
        journal = session.scalars(select(Journal.subject_id).where(Journal.kind == "messages")).all()
    assert len(keys) >= 40 and keys <= written.keys()
    assert len(written) <= len(keys) + 4  # One that each thread had committed and not yet said.
    assert all(words == f"written by {key}" for key, words in written.items())
    assert set(journal) == written.keys()
    with database.writing(ann) as session:  # The killed writer's turn is over.
        conversations.rename(session, conversation, "after")


def test_the_journal_is_only_added_to(database, board):
    with database.reading() as session:
        before = session.scalar(select(func.count()).select_from(Journal))
    attempts = ["UPDATE journal SET actor_id = NULL", "DELETE FROM journal"]
    if database.file:
        attempts.append(
            "INSERT OR REPLACE INTO journal VALUES"
            " (1, '2026-01-01', NULL, 'added', 'x', '00000000000000000000000000000000', '{}')"
        )
    else:
        attempts.append("TRUNCATE journal")
    for attempt in attempts:
        with database.engine.connect() as connection, pytest.raises(DBAPIError, match="journal refuses"):
            connection.execute(text(attempt))
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Journal)) == before > 0


def test_the_journal_says_who_changed_what_and_never_what_was_written(database):
    ann = person(database, "ann")
    with database.writing(ann) as session:
        conversation, (_, answer) = talk(session, "my secret question", "a secret answer", title="secret")
        evaluations.thumb(session, answer, False, ["wrong"], "secret reason")
        conversations.rename(session, conversation, "another secret")
        conversations.delete(session, conversation)
    with database.reading() as session:
        lines = session.scalars(select(Journal).where(Journal.actor_id == ann).order_by(Journal.id)).all()
        everything = str([[line.action, line.kind, line.fields] for line in lines])
    assert [(line.action, line.kind) for line in lines] == [
        ("added", "conversations"),
        ("added", "messages"),
        ("added", "messages"),
        ("added", "evaluations"),
        ("changed", "conversations"),
        ("removed", "conversations"),
    ]
    assert lines[4].fields == {"title": None} and "secret" not in everything


def test_messages_stay_what_they_were(database):
    with database.writing(person(database, "ann")) as session:
        talk(session, "How many dogs?", "three")
    for attempt in ("UPDATE messages SET model = 'better'", "UPDATE parts SET text = 'forged'"):
        with database.engine.connect() as connection, pytest.raises(DBAPIError, match="refuses UPDATE"):
            connection.execute(text(attempt))


def test_wrong_states_are_refused_by_the_database_itself(database):
    ann, bob = person(database, "ann"), person(database, "bob")
    with database.writing(ann) as session:
        here, (asked, answer) = talk(session, "How many dogs?", "three")
        _, (_, other) = talk(session, "And cats?", "two")
    origin = vars(ORIGIN)
    message = {"conversation_id": here, "number": 9}
    judged = {"owner_id": ann, "prompt_id": asked, "message_id": answer}
    picture = {"owner_id": ann, "sha256": "b" * 64, "type": "image/png", "data": b"123"}
    for wrong in [
        Message(id=uuid4(), **message, role="assistant", parent_id=asked),  # by no model
        Message(id=uuid4(), **message, role="user", parent_id=answer, **origin),  # a user's, by a model
        Message(id=uuid4(), **message, role="user", parent_id=other),  # the parent is of another conversation
        Message(id=uuid4(), **message, role="assistant", **origin),  # an answer to nothing
        Message(id=uuid4(), **message, role="robot", parent_id=answer),
        Message(id=uuid4(), **{**message, "number": 1}, role="user"),  # the same place in the order
        Part(message_id=asked, place=5, type="image", text="no picture"),
        Part(message_id=asked, place=5, type="text"),
        Evaluation(**judged, kind="comparison", other_id=other, verdict="tie"),  # answers to different messages
        Evaluation(**judged, kind="comparison", other_id=answer, verdict="tie"),  # with itself
        Evaluation(**judged, kind="thumb"),  # which way?
        Evaluation(**judged, kind="correction", text=""),
        Evaluation(**judged, kind="correction", text="x", good=True),
        File(**picture, size=4),  # it is 3
        User(name="bob", password_hash="x", role="user", pseudonym="y"),
        User(name="eve", password_hash="x", role="king", pseudonym="y"),
        User(name="", password_hash="x", role="user", pseudonym="y"),
    ]:
        with pytest.raises(Conflict), database.writing() as session:
            session.add(wrong)
    with database.writing() as session:
        session.add(File(**picture, size=3))  # The same rows without the fault are taken.
        session.add(Message(id=uuid4(), **message, role="assistant", parent_id=asked, **origin))
        session.add(Evaluation(**judged, kind="correction", text="x"))
    with pytest.raises(Conflict), database.writing() as session:
        session.add(Evaluation(**judged, kind="correction", text="a second opinion of the same person"))
    with database.writing() as session:
        session.add(Evaluation(**{**judged, "owner_id": bob}, kind="correction", text="somebody else's"))


def test_what_people_write_is_in_no_error_and_no_log(database, caplog):
    caplog.set_level(logging.DEBUG)
    ann = person(database, "ann")
    with database.writing(ann) as session:
        conversation, keys = talk(session, "private words", "private answer")
    with pytest.raises(Conflict) as caught, database.writing() as session:
        session.add(Part(message_id=keys[0], place=0, type="text", text="private words"))
    with pytest.raises(DBAPIError) as broken, database.writing(ann) as session:
        session.execute(text("SELECT :words FROM nowhere"), {"words": "private words"})
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
    assert "private" not in str(caught.value) + str(broken.value) + caplog.text
    with pytest.raises(ChatwrightError, match="no text"), database.writing(ann) as session:
        conversations.rename(session, conversation, "\ud800 broken \0")


def test_reading_cannot_write(database):
    ann = person(database, "ann")
    with pytest.raises(DBAPIError), database.reading(ann) as session:
        conversations.create(session, uuid4(), "title")
    with database.writing(ann) as session:
        conversations.create(session, uuid4(), "title")


def config(connection):
    made = Config()
    made.set_main_option("script_location", str(MIGRATIONS))
    made.attributes["connection"] = connection
    return made


def checks(engine):
    """The rules of every table; SQLite's and PostgreSQL's own way of writing them."""
    found = inspect(engine)
    return {table: {rule["name"]: rule["sqltext"] for rule in found.get_check_constraints(table)} for table in TABLES}


TABLES = sorted(Base.metadata.tables)


def test_the_migrations_make_what_the_program_expects(database, request, tmp_path):
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    direct = tmp_path / "direct.db" if database.file else empty(request.getfixturevalue("server"))
    engine = create_engine(parse(str(direct)))
    Base.metadata.create_all(engine)
    assert checks(engine) == checks(database.engine)
    engine.dispose()


def test_data_of_the_first_revision_come_through(url):
    if "://" not in url:
        Path(url).touch()
    engine = create_engine(parse(url))
    with engine.begin() as connection:
        command.upgrade(config(connection), "0001")
        key, at = str(uuid4()), "2026-11-01 12:00:00+00:00"
        row = f"'{key if '://' in url else UUID(key).hex}', 'ann', '-', 'user', true, false, 'p', '{at}'"
        connection.execute(text(f"INSERT INTO users VALUES ({row})"))
        plain = hashlib.sha256(b"secret").hexdigest()
        row = f"'{UUID(int=1).hex}', '{plain}', 'owner', NULL, '{at}', '2126-01-01 00:00:00+00:00'"
        connection.execute(text(f"INSERT INTO links VALUES ({row})"))
        row = f"'{at}', NULL, 'added', 'users', '{key if '://' in url else UUID(key).hex}', '{{}}'"
        names = "at, actor_id, action, kind, subject_id, fields"
        connection.execute(text(f"INSERT INTO journal ({names}) VALUES ({row})"))
    engine.dispose()
    opened = Database(url)
    owner = accounts.accept(opened, "secret", "boss", "a password")
    with opened.writing(owner) as session:
        link = accounts.reset_link(session, UUID(key))
    assert accounts.reset_password(opened, link, "another password") == "ann"
    with opened.reading(UUID(key)) as session:
        assert (session.actor.name, session.actor.role, session.actor.consent) == ("ann", "user", False)
        assert session.actor.created_at.isoformat() == "2026-11-01T12:00:00+00:00"
        kinds = session.scalars(select(Journal.kind).order_by(Journal.id)).all()
        assert kinds[:2] == ["users", "users"] and "password_resets" in kinds
    opened.close()
    Database(url).close()  # Once more there is nothing to do.


def test_a_database_of_a_newer_version_is_left_alone(database, url):
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ChatwrightError, match="another version"):
        Database(url)


@pytest.mark.parametrize("back", [False, True])
def test_everything_moves_from_sqlite_to_postgresql_and_back(server, tmp_path, back):
    urls = [str(tmp_path / "chat.db"), empty(server)]
    source, target = (Database(url) for url in (urls[::-1] if back else urls))
    ann = person(source, "ann")
    with source.writing(ann) as session:
        conversations.upload(session, b"\x89PNG picture", "image/png")
        conversation, keys = talk(session, "How many dogs? 几只狗？", "three", "And cats?", "two")
        evaluations.thumb(session, keys[1], True, ["correct"], "yes")
    rows = copy(source, target)
    for table in Base.metadata.sorted_tables:
        order = select(table).order_by(*table.primary_key.columns)
        with source.engine.connect() as old, target.engine.connect() as new:
            found = old.execute(order).all()
            assert new.execute(order).all() == found
            rows -= len(found)
    assert rows == 0
    with target.writing(ann) as session:  # The journal goes on behind its last line.
        conversations.rename(session, conversation, "moved")
    with pytest.raises(ChatwrightError, match="not empty"):
        copy(source, target)
    source.close(), target.close()


def test_postgresql_must_keep_every_language(server):
    name = f"ascii_{uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} ENCODING SQL_ASCII LOCALE 'C' TEMPLATE template0")
    with pytest.raises(ChatwrightError, match="createdb --encoding UTF8"):
        Database(server.replace("/postgres?", f"/{name}?"))


def test_wrong_urls_are_one_line(tmp_path):
    (tmp_path / "notes.txt").write_text("these are notes and no database, of more than some hundred bytes " * 9)
    for url, words in [
        (str(tmp_path / "no/chat.db"), "make it"),
        (str(tmp_path / "notes.txt"), "not a database"),
        ("mysql://host/name", "give the path"),
        ("sqlite://", "give the path"),
        ("postgresql://ann:secret@localhost:1/none", "cannot be opened"),
    ]:
        with pytest.raises(ChatwrightError, match=words) as caught:
            Database(url)
        assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_a_sqlite_file_is_for_its_owner_alone_and_forgets_what_is_deleted(tmp_path):
    database = Database(str(tmp_path / "chat.db"))
    ann = person(database, "ann")
    with database.writing(ann) as session:
        conversation, _ = talk(session, "unforgettable words")
    with database.writing(ann) as session:
        conversations.delete(session, conversation)
    database.close()
    assert (tmp_path / "chat.db").stat().st_mode & 0o077 == 0
    with sqlite3.connect(tmp_path / "chat.db") as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert b"unforgettable" not in (tmp_path / "chat.db").read_bytes()
