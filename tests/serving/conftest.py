"""A running server with the tiny assistant."""

from collections.abc import Callable, Iterator

import openai
import pytest
from tests.serving.clients import CHEAP, HASHED, LIMITS, Running, serve

from chatwright.feedback import accounts
from chatwright.feedback.tables import User
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.serving.app import create_app
from chatwright.serving.served import Model, Served


@pytest.fixture(autouse=True)
def _cheap_passwords(monkeypatch) -> None:
    """What argon2 costs is tried in tests of accounts."""
    monkeypatch.setattr(accounts, "hasher", CHEAP)
    monkeypatch.setattr(accounts, "NOBODY", HASHED)


@pytest.fixture
def start(database) -> Iterator[Callable[..., Running]]:
    """Starts a server with an engine, and with settings other than the usual ones."""
    stops = []

    def started(engine: Engine, **settings) -> Running:
        sampling = Sampling(max_new_tokens=40, temperature=1.0)
        settings = {"queue": 3, "limits": LIMITS, "sampling": sampling, "rate": 6000, **settings}
        served = Served(Model(engine, "tiny", "a" * 64), database, **settings)
        app = create_app(served)
        url, stop = serve(app)
        stops.append(stop)
        with database.writing() as session:
            session.add(user := User(name="owner", password_hash=HASHED, role="owner", pseudonym="annotator-owner"))
            session.flush()
        with database.writing(user.id) as session:
            _, key = accounts.create_key(session, "tests")
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
        return Running(url, app, served.service, engine, served, database, key, client)

    yield started
    for stop in stops:
        stop()


@pytest.fixture
def running(start, assistant, renderer) -> Running:
    return start(Engine(assistant, renderer, batch_size=4))


@pytest.fixture
def endless(renderer, monkeypatch) -> None:
    """No answer stops by itself."""
    monkeypatch.setattr(renderer, "stop_ids", set())
