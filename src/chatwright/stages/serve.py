"""Serving an assistant to many at once: a chat page, and OpenAI's API."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import ClassVar, TypeVar

import torch
import uvicorn

from chatwright.data.render import Renderer
from chatwright.errors import ChatwrightError
from chatwright.evaluation.artifacts import assistant_of
from chatwright.feedback import accounts
from chatwright.feedback.database import Database
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.models.load import checkpoint_of, fingerprint, load_model
from chatwright.models.precision import dtype_of
from chatwright.serving.app import create_app
from chatwright.serving.served import Model, Served
from chatwright.stages.base import Stage
from chatwright.terminal import console
from chatwright.training.loop import best_device

KEPT_BYTES = 2**30  # for the next turns of conversations

Result = TypeVar("Result")


@dataclass
class Serve(Stage):
    """Serve an assistant: a chat page, and OpenAI's API.

    The first start prints a link with which the first owner makes an account. On SIGHUP the model is opened again: what
    its name stands for by then takes over, and answers that were begun are ended by the model that began them.

    Args:
        model: a checkpoint, an artifact, the folder of a run (of which the last assistant is meant), or the name of a
            pretrained model.
        database: of accounts and conversations: the path of a SQLite file, which is made if it is not there, or
            ``postgresql://user@host/name``.
        alias: what clients call it; by default the name of its folder.
        host: the address to listen at; 0.0.0.0 is reached from other machines.
        port: the port to listen at; 0 takes a free one.
        batch_size: answers written at the same time.
        queue: requests that may wait; more are told to come again.
        rate: requests that one account may make in a minute.
        quota: MiB of files that one account may keep.
        temperature: of the chat page's answers.
        max_new_tokens: the longest answer on the chat page.
        precision: of the model's weights and sums: fp32, bf16, int8 (on a CPU; faster, a little less exact), or auto:
            bf16 on a GPU, and on a CPU whichever of fp32 and bf16 a short trial finds faster.
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
    quota: int = 1024
    temperature: float = 0.7
    max_new_tokens: int = 512
    precision: str = "auto"
    compare_every: int = 10

    def run(self, out: Path) -> None:
        if self.rate < 1:
            raise ChatwrightError(f"rate is {self.rate}; give at least 1 request a minute")
        if self.quota < 1:
            raise ChatwrightError(f"quota is {self.quota}; give at least 1 MiB")
        if self.compare_every < 0:
            raise ChatwrightError(f"compare_every is {self.compare_every}; give 0 (never) or more")
        sampling = Sampling(self.max_new_tokens, self.temperature)
        try:
            listener = socket.create_server((self.host, self.port))
        except OSError as error:
            raise ChatwrightError(
                f"{self.host}:{self.port}: {error.strerror}; choose another --host or --port"
            ) from error
        database = Database(self.database)
        dtype = _in_passing(lambda: dtype_of(self.precision, best_device(), self.batch_size))
        served = Served(
            _in_passing(lambda: self._opened(dtype)),
            database,
            queue=self.queue,
            sampling=sampling,
            compare_every=self.compare_every,
            rate=self.rate,
            quota=self.quota * 2**20,
        )
        self._follow(served, dtype)
        url = f"http://{self.host}:{listener.getsockname()[1]}"
        console.print(f"{served.model.name} at {url} (API: {url}/v1)", soft_wrap=True)
        if secret := accounts.first_owner_link(database):
            console.print(f"make the first account within a day: {url}/join/{secret}", soft_wrap=True)
        with listener:
            uvicorn.Server(uvicorn.Config(create_app(served), log_level="warning", access_log=False)).run([listener])
        database.close()

    def _opened(self, dtype: torch.dtype) -> Model:
        name = assistant_of(self.model)
        # A link that is pointed elsewhere meanwhile must not give the weights of one and the hash of another.
        folder = checkpoint_of(name).resolve()
        model = load_model(folder, dtype).to(best_device())
        engine = Engine(
            model, Renderer.load(folder), self.batch_size, kept_bytes=KEPT_BYTES, int8=self.precision == "int8"
        )
        return Model(engine, self.alias or Path(name).name, fingerprint(folder))

    def _follow(self, served: Served, dtype: torch.dtype) -> None:
        """Open the model again on every SIGHUP, as often as that is sent; what cannot be opened changes nothing."""
        wanted: SimpleQueue[int] = SimpleQueue()  # can be written to wherever a signal interrupts the program
        at_terminal = os.isatty(0)

        def asked(signum: int, _: FrameType | None) -> None:
            if at_terminal and not os.isatty(0):  # nobody asks: the terminal was closed
                signal.raise_signal(signal.SIGTERM)
            wanted.put(signum)

        def work() -> None:
            while wanted.get():
                try:
                    served.swap(model := _in_passing(lambda: self._opened(dtype)))
                    console.print(f"{model.name} is served now, checkpoint {model.checkpoint[:12]}", soft_wrap=True)
                except (ChatwrightError, OSError, RuntimeError, ValueError) as error:
                    line = " ".join(str(error).split())
                    print(f"chatwright: {line}; {served.model.name} is served as before", file=sys.stderr, flush=True)

        threading.Thread(target=work, name="open again", daemon=True).start()
        signal.signal(signal.SIGHUP, asked)


def _in_passing(function: Callable[[], Result]) -> Result:
    """What a function gives, called in a thread of its own that ends with it.

    OpenMP keeps a team for every thread that has computed. As soon as there are more of them than processors, they
    sleep between two pieces of work, and decoding, of thousands of small pieces a token, is a sixth slower.
    """
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function).result()
