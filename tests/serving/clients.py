"""Those who use a running server: programs with a key, and people with a browser."""

import asyncio
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID, uuid4

import httpx
import openai
import uvicorn
from argon2 import PasswordHasher
from fastapi import FastAPI

from chatwright.feedback.database import Database
from chatwright.feedback.tables import User
from chatwright.generation.engine import Engine
from chatwright.generation.service import Service
from chatwright.serving.answers import Limits
from chatwright.serving.served import Served

LIMITS = Limits(body=200_000, images=2, pixels=10_000, n=4, prompts=8, tokens=100, characters=2000)
PASSWORD = "a password that is long"
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
HASHED = CHEAP.hash(PASSWORD)


@dataclass
class Running:
    url: str
    app: FastAPI
    service: Service
    engine: Engine
    served: Served
    database: Database
    key: str
    client: openai.OpenAI

    @property
    def with_key(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def post(self, path: str, body: object, timeout: float = 30) -> httpx.Response:
        return httpx.post(self.url + path, json=body, headers=self.with_key, timeout=timeout)

    def person(self, name: str, role: str = "user") -> "Browser":
        """Somebody with an account who has signed in."""
        with self.database.writing() as session:
            session.add(user := User(name=name, password_hash=HASHED, role=role, pseudonym=f"annotator-{name}"))
            session.flush()
        browser = Browser(self.url, user.id)
        assert browser.sign_in(name).status_code == 303
        return browser


class Browser(httpx.Client):
    """Keeps cookies, and sends what a page of ours would send along."""

    def __init__(self, url: str, person: UUID | None = None):
        super().__init__(base_url=url, headers={"Origin": url, "Accept": "text/html,*/*"}, timeout=30)
        self.person = person

    def look(self, path: str) -> httpx.Response:
        """Open a page; what is sent from now on comes from that page."""
        response = self.get(path)
        if found := re.search(r'<meta name="csrf" content="(\w+)">', response.text):
            self.headers["X-CSRF-Token"] = found[1]
        return response

    def sign_in(self, name: str, password: str = PASSWORD) -> httpx.Response:
        self.look("/sign-in")
        response = self.post("/sign-in", data={"name": name, "password": password})
        self.look("/settings")
        return response

    def join(self, path: str, name: str, password: str = PASSWORD) -> httpx.Response:
        self.look(path)
        response = self.post(path, data={"name": name, "password": password})
        self.look("/settings")
        return response

    def talk(self, title: str = "") -> str:
        """The id of a new conversation."""
        conversation = str(uuid4())
        assert self.put(f"/api/conversations/{conversation}", json={"title": title}).status_code == 200
        return conversation

    def say(self, conversation: str, text: str, parent: str | None = None, *files: str) -> str:
        """The id of a new message."""
        message = str(uuid4())
        content = [*({"type": "image", "file": file} for file in files), {"type": "text", "text": text}]
        path = f"/api/conversations/{conversation}/messages/{message}"
        response = self.put(path, json={"parent": parent, "content": content})
        assert response.status_code == 200, response.text
        return message

    def ask(self, conversation: str, parent: str, *answers: str) -> list[dict]:
        """Have a message answered; the last event of each answer."""
        return [event for event in self.events(conversation, parent, *answers) if "html" not in event]

    def events(self, conversation: str, parent: str, *answers: str) -> Iterator[dict]:
        asked = {"parent": parent, "answers": answers or [str(uuid4())]}
        with self.stream("POST", f"/api/conversations/{conversation}/answers", json=asked) as response:
            assert response.status_code == 200, response.read()
            yield from events_of(response)

    def read(self, conversation: str) -> list[dict]:
        return self.get(f"/api/conversations/{conversation}").json()["messages"]


def leave_at_once(app: FastAPI, client: httpx.Client, path: str, body: object) -> None:
    """Ask for something, and be gone as soon as that is read; returns when all that follows is done."""
    request = client.build_request("POST", path, json=body)
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
    }  # fmt: skip
    received = iter([{"type": "http.request", "body": request.read()}])

    async def receive() -> dict:
        return next(received, {"type": "http.disconnect"})

    async def send(_: dict) -> None:
        await asyncio.sleep(0)

    async def call() -> None:
        await app(scope, receive, send)
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others, timeout=5)

    asyncio.run(call())


def events_of(response: httpx.Response) -> Iterator[dict]:
    for line in response.iter_lines():
        if line:
            yield httpx.Response(200, text=line.removeprefix("data: ")).json()


def serve(app: FastAPI) -> tuple[str, Callable[[], None]]:
    """The address of a running server, and what stops it."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)

    def stop() -> None:
        server.should_exit = True
        thread.join()
        listener.close()

    return f"http://127.0.0.1:{listener.getsockname()[1]}", stop


@contextmanager
def held(service: Service) -> Iterator[None]:
    """Nothing is written meanwhile."""
    release = threading.Event()
    service.call(lambda: release.wait(60))
    try:
        yield
    finally:
        release.set()


def soon(condition: Callable[[], object]) -> bool:
    for _ in range(200):
        if condition():
            return True
        time.sleep(0.01)
    return False


def idle(service: Service) -> bool:
    """Whether every row has left, soon."""
    return soon(lambda: all(line.idle for line in service._lines))
