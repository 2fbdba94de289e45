"""Serving an assistant to many at once: a chat page, and OpenAI's API."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import uvicorn

from chatwright.data.render import Renderer
from chatwright.errors import ChatwrightError
from chatwright.feedback import accounts
from chatwright.feedback.database import Database
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.generation.service import Service
from chatwright.models.load import checkpoint_of, fingerprint, load_model
from chatwright.serving.app import create_app
from chatwright.serving.served import Served
from chatwright.stages.base import Stage
from chatwright.terminal import console
from chatwright.training.loop import best_device


@dataclass
class Serve(Stage):
    """Serve an assistant: a chat page, and OpenAI's API.

    The first start prints a link with which the first owner makes an account.

    Args:
        model: a checkpoint, an artifact, or the name of a pretrained model.
        database: of accounts and conversations: the path of a SQLite file, which is made if it is not there, or
            ``postgresql://user@host/name``.
        alias: what clients call it; by default the name of its folder.
        host: the address to listen at; 0.0.0.0 is reached from other machines.
        port: the port to listen at; 0 takes a free one.
        batch_size: answers written at the same time.
        queue: requests that may wait; more are told to come again.
        rate: requests that one account may make in a minute.
        temperature: of the chat page's answers.
        max_new_tokens: the longest answer on the chat page.
        compare_every: the chat page shows two answers, and asks which is better, to every so many-th question of a
            person; 0 never.
    """

    artifact: ClassVar[bool] = False

    model: str
    database: str = "chat.db"
    alias: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    batch_size: int = 32
    queue: int = 128
    rate: int = 1200
    temperature: float = 0.7
    max_new_tokens: int = 512
    compare_every: int = 10

    def run(self, out: Path) -> None:
        if self.rate < 1:
            raise ChatwrightError(f"rate is {self.rate}; give at least 1 request a minute")
        if self.compare_every < 0:
            raise ChatwrightError(f"compare_every is {self.compare_every}; give 0 (never) or more")
        sampling = Sampling(self.max_new_tokens, self.temperature)
        try:
            listener = socket.create_server((self.host, self.port))
        except OSError as error:
            raise ChatwrightError(
                f"{self.host}:{self.port}: {error.strerror}; choose another --host or --port"
            ) from error
        database, folder = Database(self.database), checkpoint_of(self.model)
        engine = Engine(load_model(folder).to(best_device()), Renderer.load(folder), self.batch_size)
        served = Served(
            Service(engine, self.queue),
            self.alias or Path(self.model).name,
            database,
            fingerprint(folder),
            sampling=sampling,
            compare_every=self.compare_every,
            rate=self.rate,
        )
        url = f"http://{self.host}:{listener.getsockname()[1]}"
        console.print(f"{served.name} at {url} (API: {url}/v1)", soft_wrap=True)
        if secret := accounts.first_owner_link(database):
            console.print(f"make the first account within a day: {url}/join/{secret}", soft_wrap=True)
        with listener:
            uvicorn.Server(uvicorn.Config(create_app(served), log_level="warning", access_log=False)).run([listener])
        database.close()
