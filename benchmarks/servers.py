"""Servers in processes of their own, and where the findings go."""

import importlib.metadata
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from chatwright.files import write

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PASSWORD = "a password that is long"
FINDINGS = Path(__file__).with_name("load.json")
PATIENCE = 120  # seconds until a server is up


@dataclass
class Server:
    url: str
    model: str  # as its API calls it
    link: str = ""  # with which the first owner joins
    key: str = ""


@contextmanager
def chatwright(folder: Path, *options: str) -> Iterator[Server]:
    """`chatwright serve` with a new database, ``chat.db`` in a folder; SIGTERM ends it."""
    command = [sys.executable, "-m", "chatwright", "serve", MODEL, "--port", "0"]
    with _running([*command, "--database", str(folder / "chat.db"), *options], folder) as (process, log):
        while not (found := re.search(r"(\S+) at (http://\S+) \(API[^$]*(/join/\S+)", log.read_text())):
            _check(process, log)
        server = Server(found[2], found[1], found[3])
        _wait(server.url, process, log)
        yield server


@contextmanager
def transformers_serve(model: Path, folder: Path, *options: str) -> Iterator[Server]:
    """`transformers serve` with a checkpoint."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model), "--port", str(port)]
    with _running([*command, "--host", "127.0.0.1", *options], folder) as (process, log):
        server = Server(f"http://127.0.0.1:{port}", str(model))
        _wait(server.url, process, log)
        yield server


class Person(httpx.AsyncClient):
    """Somebody with a browser, from an address of their own."""

    def __init__(self, url: str, address: str = "127.0.0.1"):
        # Shorter than the server keeps an idle connection: it must not be used just as it is closed.
        limits = httpx.Limits(keepalive_expiry=2)
        transport = httpx.AsyncHTTPTransport(local_address=address, limits=limits)
        super().__init__(base_url=url, transport=transport, headers={"Origin": url}, timeout=None)

    async def join(self, link: str, name: str) -> None:
        """Make the account that a link is for, and stay signed in."""
        await self._look(link)
        response = await self.post(link, data={"name": name, "password": PASSWORD})
        assert response.status_code == 303, response.text
        await self._look("/settings")

    async def _look(self, page: str) -> None:
        """Open a page; what is sent from now on comes from that page."""
        found = re.search(r'<meta name="csrf" content="(\w+)">', (await self.get(page)).raise_for_status().text)
        assert found, page
        self.headers["X-CSRF-Token"] = found[1]


def record(name: str, found: dict[str, Any]) -> None:
    """Put a finding into `FINDINGS`, with the machine and the versions that it was made with."""
    versions = {one: importlib.metadata.version(one) for one in ("torch", "transformers", "uvicorn", "fastapi")}
    about = {"cores": os.cpu_count(), "processor": _processor(), "python": platform.python_version(), **versions}
    before = json.loads(FINDINGS.read_text()) if FINDINGS.exists() else {}
    write(FINDINGS, json.dumps({**before, name: {**found, "machine": about}}, indent=1) + "\n")


def _processor() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.processor()


@contextmanager
def _running(command: list[str], folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    log = folder / f"{Path(command[0]).name}-{time.monotonic_ns()}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=dict(os.environ))
    try:
        yield process, log
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(10 * PATIENCE):
        _check(process, log)
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            continue
    raise SystemExit(f"{url} is not up after {PATIENCE} seconds:\n{log.read_text()}")


def _check(process: subprocess.Popen[bytes], log: Path) -> None:
    time.sleep(0.1)
    if process.poll() is not None:
        raise SystemExit(f"the server has ended:\n{log.read_text()}")
