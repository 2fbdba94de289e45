"""The command itself: a server in a process of its own, until it is told to end, or killed."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
from tests.serving.clients import PASSWORD, Browser

from chatwright.errors import ChatwrightError
from chatwright.feedback.database import Database
from chatwright.feedback.tables import Message
from chatwright.files import digest
from chatwright.stages.serve import Serve


class Server:
    """`chatwright serve` on a free port."""

    def __init__(self, checkpoint: Path, folder: Path, *options: str, stdin: int | None = None):
        command = [sys.executable, "-m", "chatwright", "serve", str(checkpoint), "--port", "0", *options]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.log = folder / f"log-{uuid4().hex}"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, stdin=stdin, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        while not (found := re.search(r"at (http://\S+) \(API", self.log.read_text())):
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        self.url = found[1]
        self._up()

    def says(self, pattern: str) -> None:
        """Wait for a line of the log."""
        for _ in range(1000):
            if re.search(pattern, self.log.read_text()):
                return
            time.sleep(0.02)
        raise AssertionError(self.log.read_text())

    def _up(self) -> None:
        for _ in range(500):
            try:
                assert httpx.get(f"{self.url}/health").status_code == 200
                return
            except httpx.TransportError:
                time.sleep(0.02)
        raise AssertionError(self.log.read_text())


def test_a_server_is_told_to_end_and_killed_and_nothing_is_lost_or_told(checkpoint, tmp_path):
    server = Server(checkpoint, tmp_path, "--max_new_tokens", "100")
    (link,) = re.findall(r"http\S+(/join/\S+)", server.log.read_text())
    with Browser(server.url) as ann:
        assert ann.join(link, "ann").status_code == 303
        key = ann.post("/api/keys", json={"name": "mine"}).json()["key"]
        conversation, answer = ann.talk(), str(uuid4())
        asked = ann.say(conversation, "a secret about dogs")
        events = ann.events(conversation, asked, answer)
        first = next(events)
        server.process.send_signal(signal.SIGTERM)
        last = [first, *events][-1]
        assert last["message"]["finish_reason"] in ("stop", "length"), "an open stream is ended, not cut"
    assert server.process.wait(60) == -signal.SIGTERM
    # Whoever reads the log learns nothing: the link was for them, and it is used up.
    told = server.log.read_text()
    assert told.count(link) == 1
    said = last["message"]["content"][0]["text"]
    for secret in ("secret about", key, PASSWORD, ann.cookies["chatwright"], ann.headers["X-CSRF-Token"], "ann", said):
        assert secret not in told.replace(link, "")
    database = Database(str(tmp_path / "chat.db"))
    with database.reading() as session:
        kept = session.query(Message).order_by(Message.number).all()
        assert [message.text for message in kept] == ["a secret about dogs", said]
        assert kept[1].checkpoint == digest(checkpoint / "model.safetensors")
    # Now in the middle of everything. Each message that was acknowledged is there afterwards.
    server = Server(checkpoint, tmp_path)
    assert "/join/" not in server.log.read_text(), "there is an owner"
    acknowledged: list[str] = []

    def write() -> None:
        with Browser(server.url) as ann:
            ann.sign_in("ann")
            talk = ann.talk()
            try:
                while True:
                    acknowledged.append(ann.say(talk, "dog"))
            except httpx.TransportError:
                return

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(acknowledged) < 12:
        assert any(thread.is_alive() for thread in threads)
    server.process.kill()
    for thread in threads:
        thread.join()
    server.process.wait()
    with database.reading() as session:
        assert {str(key) for (key,) in session.query(Message.id)} >= set(acknowledged)
    database.close()


def test_a_signal_has_the_model_opened_again_while_answers_are_written(checkpoint, language_model, renderer, tmp_path):
    """What is served is a link, which is pointed at a model of another kind, and then at nothing."""
    other = tmp_path / "other"
    language_model.save_pretrained(other)
    renderer.tokenizer.save_pretrained(other)
    link = tmp_path / "assistant-in-use"
    link.symlink_to(checkpoint)
    terminal, stdin = os.openpty()
    server = Server(link, tmp_path, "--max_new_tokens", "100", stdin=stdin)

    def point(target: Path) -> None:
        (tmp_path / "new").symlink_to(target)
        (tmp_path / "new").rename(link)
        server.process.send_signal(signal.SIGHUP)

    with Browser(server.url) as ann:
        ann.join(re.findall(r"http\S+(/join/\S+)", server.log.read_text())[0], "ann")
        conversation = ann.talk()
        asked = ann.say(conversation, "How many dogs?")
        events = ann.events(conversation, asked)
        first = next(events)
        point(other)
        *_, before = [first, *events]
        server.says("assistant-in-use is served now")
        (after,) = ann.ask(conversation, asked)
        assert "This model reads text only." in ann.get("/").text
        point(tmp_path / "nowhere")
        server.says("assistant-in-use: no such folder; .*; assistant-in-use is served as before")
        (still,) = ann.ask(conversation, asked)
    os.close(stdin)
    os.close(terminal)
    server.process.send_signal(signal.SIGHUP)
    assert server.process.wait(60) == -signal.SIGTERM, "nobody asks for a model by closing the terminal"
    database = Database(str(tmp_path / "chat.db"))
    with database.reading() as session:
        made_by = [session.get(Message, UUID(event["answer"])).checkpoint for event in (before, after, still)]
    database.close()
    assert made_by == [digest(folder / "model.safetensors") for folder in (checkpoint, other, other)]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rate": 0}, "rate is 0"),
        ({"quota": 0}, "quota is 0"),
        ({"compare_every": -1}, "compare_every is -1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"precision": "fp4"}, "precision 'fp4' is not known"),
        ({"database": "no/such/folder/chat.db"}, "does not exist"),
        ({"host": "203.0.113.1"}, "choose another --host or --port"),
    ],
)
def test_wrong_settings_are_one_line(settings, says, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ChatwrightError, match=says):
        Serve(str(checkpoint), port=0, **settings).run(tmp_path)
