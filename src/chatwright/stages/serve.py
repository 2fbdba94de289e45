"""Serving an assistant: OpenAI's API over the engine, for many clients at once."""

import hmac
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import uvicorn

from chatwright.data.render import Renderer
from chatwright.errors import ChatwrightError
from chatwright.generation.engine import Engine
from chatwright.generation.service import Service
from chatwright.models.load import checkpoint_of, load_model
from chatwright.serving.app import create_app
from chatwright.serving.openai import Served
from chatwright.stages.base import Stage
from chatwright.terminal import console
from chatwright.training.loop import best_device


@dataclass
class Serve(Stage):
    """Serve an assistant to clients of OpenAI's API.

    Args:
        model: a checkpoint, an artifact, or the name of a pretrained model.
        alias: what clients call it; by default the name of its folder.
        host: the address to listen at; 0.0.0.0 is reached from other machines.
        port: the port to listen at; 0 takes a free one.
        api_key: what clients have to send; by default a new one is made up and printed.
        batch_size: answers written at the same time.
        queue: requests that may wait; more are told to come again.
    """

    artifact: ClassVar[bool] = False

    model: str
    alias: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str = ""
    batch_size: int = 32
    queue: int = 128

    def run(self, out: Path) -> None:
        try:
            listener = socket.create_server((self.host, self.port))
        except OSError as error:
            raise ChatwrightError(
                f"{self.host}:{self.port}: {error.strerror}; choose another --host or --port"
            ) from error
        folder = checkpoint_of(self.model)
        engine = Engine(load_model(folder).to(best_device()), Renderer.load(folder), self.batch_size)
        key = self.api_key or f"cw-{secrets.token_urlsafe(32)}"
        if not key.isascii():
            raise ChatwrightError("api_key has characters that no HTTP header can carry; use letters and digits")
        name = self.alias or Path(self.model).name
        app = create_app(
            Served(Service(engine, self.queue), name),
            lambda sent: hmac.compare_digest(sent.encode(), key.encode()),
        )
        console.print(f"{name} at http://{self.host}:{listener.getsockname()[1]}/v1")
        if not self.api_key:
            console.print(f"API key:   {key}", soft_wrap=True)
        with listener:
            uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run([listener])
