"""Opening the database of people and their feedback, and the transactions in which everything happens.

    database = Database("chat.db")  # or "postgresql://user@host/name"
    with database.writing(person) as session:
        conversations.rename(session, conversation, "Pears")

SQLite has one writer at a time. A lock file hands the turn to the next, across threads and processes, so that SQLite
never has to refuse anybody; readers see the last commit and wait for nobody (WAL). PostgreSQL has as many writers as
there are people: two writers of one person wait for each other.

A transaction is made for one person, checks what that person may touch, and writes into the journal what it changed. It
is on disk when the block ends, and nothing of it when the block ends with an error or the process is killed.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, func, insert, inspect, make_url, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DatabaseError, DataError, IntegrityError, OperationalError
from sqlalchemy.orm import Session, UOWTransaction

from chatwright.errors import ChatwrightError
from chatwright.feedback.tables import TOLD, ApiKey, Base, Conversation, Evaluation, File, Journal, Message, Part, User
from chatwright.files import locked

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY = 60_000  # ms that SQLite waits for programs that know nothing of our lock file, such as its own shell
MIGRATING = 4_207_849_484  # of PostgreSQL's advisory locks
DEADLOCK = "40P01"  # PostgreSQL's code; two people who change each other's accounts at once

Owned = TypeVar("Owned", Conversation, Message, File, ApiKey, Evaluation)


class NotAllowed(ChatwrightError):
    """Nobody is signed in, or the role does not permit it."""


class NotFound(ChatwrightError):
    """There is no such thing, or it is somebody else's: the two look the same from outside."""


class Conflict(ChatwrightError):
    """It contradicts what is there already."""


class TooMuch(ChatwrightError):
    """More than an account may keep."""


class Transaction(Session):
    """What one person does in one piece. Everything that touches somebody's data asks `own` for it, or `require`."""

    person: User | None = None

    @property
    def actor(self) -> User:
        """The person who acts.

        Raises:
            NotAllowed: nobody is signed in, or the account is closed.
        """
        if self.person is None or not self.person.active:
            raise NotAllowed("nobody is signed in; sign in first")
        return self.person

    def require(self, *roles: str) -> User:
        """The person who acts, who must have one of these roles."""
        if self.actor.role not in roles:
            raise NotAllowed(f"this is for the roles {', '.join(roles)}; ask one of them")
        return self.actor

    def own(self, kind: type[Owned], key: UUID) -> Owned:
        """The object with that id, which must be the actor's.

        Raises:
            NotFound: there is none, or it is not the actor's.
        """
        query = select(kind).where(kind.id == key)
        query = query.join(Conversation, Conversation.id == Message.conversation_id) if kind is Message else query
        holder: Any = Conversation if kind is Message else kind
        found = self.scalar(query.where(holder.owner_id == self.actor.id))
        if found is None:
            raise NotFound(f"there is no such {kind.__name__.lower()} of yours; it may have been deleted")
        return found


class Database:
    """People's data in one SQLite file or one PostgreSQL database, brought up to date when it is opened.

    Args:
        url: the path of a SQLite file, which is made if it is not there, or the URL of a database on a PostgreSQL
            server (``postgresql://user@host/name``; libpq's ``PGPASSWORD`` and ``~/.pgpass`` keep passwords out of it).

    Raises:
        ChatwrightError: it cannot be opened, or was made by a newer version.
    """

    def __init__(self, url: str) -> None:
        self.url = parse(url)
        self.name = self.url.render_as_string(hide_password=True)
        self.file = Path(self.url.database or "") if self.url.drivername == "sqlite" else None
        self.engine = self._engine()
        options: dict[str, Any] = (
            {"writes": False} if self.file else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        )
        self._reader = self.engine.execution_options(**options)
        try:
            with self._turn():
                self._migrate()
        except (DatabaseError, sqlite3.DatabaseError) as error:
            reason = str(getattr(error, "orig", error)).strip().splitlines()[0]
            raise ChatwrightError(f"{self.name}: cannot be opened ({reason}); check its name and its rights") from None

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def reading(self, person: UUID | None = None) -> Iterator[Transaction]:
        """Look at one state of the data; writing is an error."""
        with Transaction(self._reader, expire_on_commit=False) as session, plain_errors():
            session.person = session.get(User, person) if person else None
            yield session

    @contextmanager
    def writing(self, person: UUID | None = None) -> Iterator[Transaction]:
        """Change the data, wholly or not at all. Keep it short: with SQLite everybody else waits. What was loaded can
        still be read afterwards.

        Args:
            person: the id of who acts; None for what the program itself does.

        Raises:
            Conflict: it would break a rule of the data, or somebody else was quicker.
        """
        with self._turn(), Transaction(self.engine, expire_on_commit=False) as session, plain_errors():
            if person:  # PostgreSQL: alone among the writers of this person
                session.person = session.get(User, person, with_for_update={"key_share": True})
            yield session
            session.commit()

    def state(self) -> str:
        """What changes whenever the data do."""
        with self.reading() as session:
            count, last, at = session.execute(select(func.count(), func.max(Journal.id), func.max(Journal.at))).one()
            return f"{count} changes, the last {last} at {at and at.isoformat()}"

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Be SQLite's only writer."""
        with locked(self.file, wait=True) if self.file else nullcontext():
            yield

    def _engine(self) -> Engine:
        # Parameters are what people write: they must not get into messages of errors, and so into logs.
        if self.file is None:
            arguments = {"client_encoding": "utf8"}  # whatever the database's own, which _migrate looks at
            return create_engine(self.url, hide_parameters=True, pool_pre_ping=True, connect_args=arguments)
        if not self.file.parent.is_dir():
            raise ChatwrightError(f"{self.file}: the folder {self.file.parent} does not exist; make it")
        try:
            # For its owner's eyes alone. An existing one is not touched: closing it would drop SQLite's locks.
            os.close(os.open(self.file, os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            raise ChatwrightError(f"{self.file}: {error.strerror}; choose another place for the database") from error
        # As many connections as threads ask for: waiting for one would be the same failure by another name.
        engine = create_engine(self.url, hide_parameters=True, max_overflow=-1)
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine

    def _migrate(self) -> None:
        if self.file:
            raw = self.engine.raw_connection()
            raw.cursor().execute("PRAGMA journal_mode = WAL")  # remembered in the file
            raw.close()
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with self.engine.begin() as connection:
            if not self.file:
                connection.execute(select(func.pg_advisory_xact_lock(MIGRATING)))
                encoding = connection.scalar(text("SHOW server_encoding"))
                if encoding != "UTF8":
                    raise ChatwrightError(
                        f"{self.name}: is encoded in {encoding}; use createdb --encoding UTF8 --template template0"
                    )
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise ChatwrightError(
                    f"{self.name}: made by another version of Chatwright ({error}); use that or a newer one"
                ) from error


def parse(url: str) -> URL:
    """The URL of a database; a bare path is a SQLite file."""
    try:
        parsed = make_url(url) if "://" in url else URL.create("sqlite", database=url)
    except ArgumentError as error:
        raise ChatwrightError(
            "the database's URL cannot be read; write a path or postgresql://user@host/name"
        ) from error
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        return parsed.set(drivername="postgresql")
    if backend != "sqlite" or parsed.database in (None, "", ":memory:"):
        raise ChatwrightError(
            f"{backend} {parsed.database}: give the path of a SQLite file or postgresql://user@host/name"
        )
    return parsed.set(drivername="sqlite")


@contextmanager
def plain_errors() -> Iterator[None]:
    """Say which rule was broken, without the row that broke it: that is what somebody wrote."""
    try:
        yield
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) == DEADLOCK:
            raise Conflict("somebody else was changing the same; try again") from None
        raise
    except (IntegrityError, DataError) as error:
        diagnosis = getattr(error.orig, "diag", None)
        rule = (diagnosis.constraint_name or diagnosis.sqlstate or "bad value") if diagnosis else error.orig
        raise Conflict(f"the database refuses this ({rule}); load what is there and try again") from None


def _set_up_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # Transactions begin where we say, not where Python's sqlite3 guesses.
    connection.create_function("lower", 1, lambda value: value and value.lower(), deterministic=True)  # not ASCII alone
    for pragma in (
        f"busy_timeout = {BUSY}",
        "foreign_keys = ON",
        "synchronous = FULL",  # A commit survives a power failure too.
        "secure_delete = ON",  # What people delete is overwritten.
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", True)
    connection.exec_driver_sql(f"PRAGMA query_only = {'OFF' if writes else 'ON'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@event.listens_for(Transaction, "before_flush")
def _check_texts(session: Transaction, _: UOWTransaction, __: Any) -> None:
    for thing in (*session.new, *session.dirty):
        for name, value in vars(thing).items():
            if isinstance(value, str):
                check_text(name, value)


def check_text(name: str, value: str) -> None:
    """Refuse what no database keeps and JSON can smuggle in: NUL characters and halves of surrogate pairs."""
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ChatwrightError(f"{name}: holds a character that is no text (NUL or a surrogate); remove it")


@event.listens_for(Transaction, "after_flush")
def _write_journal(session: Transaction, _: UOWTransaction) -> None:
    """One line for every row that was added, changed or removed."""
    lines = []
    for action, things in (("added", session.new), ("changed", session.dirty), ("removed", session.deleted)):
        for thing in things:
            if isinstance(thing, Journal | Part):  # Parts come and go with their message.
                continue
            state = inspect(thing)
            columns = [column.key for column in state.mapper.column_attrs]
            names = [name for name in columns if state.attrs[name].history.has_changes()]
            if action == "changed" and not names:
                continue
            told = {name: _plain(getattr(thing, name)) for name in names if name in TOLD}
            lines.append(
                {
                    "actor_id": session.person and session.person.id,
                    "action": action,
                    "kind": thing.__tablename__,
                    "subject_id": thing.id,
                    "fields": {name: told.get(name) for name in names} if action == "changed" else told,
                }
            )
    if lines:
        session.connection().execute(insert(Journal), lines)


def _plain(value: Any) -> str | bool | None:
    return value if isinstance(value, bool | None) else str(value)


def copy(source: Database, target: Database) -> int:
    """Copy everything into an empty database, of the same kind or the other.

    Returns:
        The number of rows.

    Raises:
        ChatwrightError: the target is not empty.
    """
    count = 0
    with source.reading() as old, target.writing() as new:
        if new.scalar(select(func.count()).select_from(Journal)):
            raise ChatwrightError(f"{target.name}: is not empty; copy into a new database")
        for table in Base.metadata.sorted_tables:
            # Parents before their children.
            order = (table.c.conversation_id, table.c.number) if table.name == "messages" else table.primary_key.columns
            rows = old.execute(select(table).order_by(*order).execution_options(yield_per=50))
            for some in rows.mappings().partitions():
                new.connection().execute(insert(table), [dict(row) for row in some])
                count += len(some)
        if not target.file:  # The next line of the journal gets the next number.
            new.execute(text("SELECT setval(pg_get_serial_sequence('journal', 'id'), max(id)) FROM journal"))
    return count
