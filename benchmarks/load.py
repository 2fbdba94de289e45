"""64 people who chat with the server at once, for five minutes.

    make load    or    python benchmarks/load.py [--seconds 300] [--chats 64]

A real `chatwright serve` with SQLite, asked through the routes of the chat page. Each person comes from an address of
their own, joins, and has one conversation after another about a dog with a name that no other dog has: what anybody is
told of another's dog was mixed up. At the end everything that was said is looked for: by everybody in what the page and
the export give them, and in the database; and every answer must have been given to a prompt as long as its
conversation.
Fails if anything was lost, mixed up or refused but by a 429, after which a client comes again.
"""

import argparse
import asyncio
import json
import re
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
from servers import MODEL, Person, Server, chatwright, record

from chatwright.data import records
from chatwright.data.render import Renderer
from chatwright.feedback.database import Database
from chatwright.feedback.tables import Conversation, Message, User
from chatwright.models.load import checkpoint_of

QUESTIONS = (
    "My dog is called {}. Please greet my dog by its name.",
    "What is the name of my dog?",
    "Write a short story about {}, my dog.",
    "Give {} some good advice, and call the dog by its name.",
)
# Fewer places than people, so that the queue is full now and then.
OPTIONS = ("--queue", "16", "--max_new_tokens", "128")
FIRST = (
    "Bral",
    "Dov",
    "Fen",
    "Gri",
    "Hul",
    "Jom",
    "Kev",
    "Lor",
    "Mip",
    "Nar",
    "Pom",
    "Rud",
    "Sil",
    "Tav",
    "Wob",
    "Zed",
)
SECOND = ("dako", "vex", "mik", "dus", "pol", "rig", "sem", "nab", "gand", "foth", "lup", "quin", "hest", "jarn", "tow")
NAMES = [first + second for second, first in product(SECOND, FIRST)]
ANY_NAME = re.compile("|".join(NAMES))


@dataclass
class Told:
    """A message as its sender has it."""

    role: str
    parent: str | None
    text: str


@dataclass
class Chatter:
    """Somebody who chats, and what they know of it."""

    number: int
    browser: Person
    conversations: dict[str, dict[str, Told]] = field(default_factory=dict)
    firsts: list[float] = field(default_factory=list)
    answers: int = 0
    greeted: int = 0
    refused: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def dog(self) -> str:
        return NAMES[self.number]

    async def chat(self, until: float) -> None:
        while time.perf_counter() < until:
            conversation, parent = str(uuid4()), None
            await self._done("PUT", f"/api/conversations/{conversation}", {"title": ""})
            said = self.conversations[conversation] = {}
            for question in QUESTIONS:
                asked, text = str(uuid4()), question.format(self.dog)
                body = {"parent": parent, "content": [{"type": "text", "text": text}]}
                await self._done("PUT", f"/api/conversations/{conversation}/messages/{asked}", body)
                said[asked] = Told("user", parent, text)
                parent = await self._answer(conversation, asked)
                if parent is None or time.perf_counter() > until:
                    break

    async def _done(self, method: str, path: str, body: dict[str, Any]) -> None:
        while True:
            response = await self.browser.request(method, path, json=body)
            if not await self._again(response):
                response.raise_for_status()
                return

    async def _again(self, response: httpx.Response) -> bool:
        """Whether a request was refused and may come again now."""
        if response.status_code == 429:
            self.refused += 1
            await asyncio.sleep(float(response.headers["retry-after"]))
        return response.status_code == 429

    async def _answer(self, conversation: str, asked: str) -> str | None:
        answer, begun, first = str(uuid4()), time.perf_counter(), 0.0
        body = {"parent": asked, "answers": [answer]}
        while True:
            async with self.browser.stream("POST", f"/api/conversations/{conversation}/answers", json=body) as response:
                if await self._again(response):
                    continue
                response.raise_for_status()
                async for line in response.aiter_lines():
                    if not line:
                        continue
                    first = first or time.perf_counter() - begun
                    event = json.loads(line.removeprefix("data: "))
                    self._check(event.get("answer") == answer, f"an event of another answer: {line[:200]}")
                    self._only_mine(line)
            break
        if "message" not in event:
            self.errors.append(f"an answer failed: {event}")
            return None
        message = event["message"]
        self._check((message["id"], message["parent"]) == (answer, asked), f"another message: {message}")
        text = message["content"][0]["text"]
        self.firsts.append(first)
        self.answers += 1
        self.greeted += self.dog in text
        self.conversations[conversation][answer] = Told("assistant", asked, text)
        return answer

    def _check(self, right: bool, error: str) -> None:
        if not right:
            self.errors.append(error)

    def _only_mine(self, text: str) -> None:
        others = set(ANY_NAME.findall(text)) - {self.dog}
        self._check(not others, f"{self.dog} is mixed up with {others}: {text[:300]}")

    async def look_back(self, others: "Chatter") -> None:
        """Everything is there, as it was told; and nothing of somebody else's."""
        listed = []
        while (page := (await self.browser.get(f"/api/conversations?offset={len(listed)}")).json())["more"]:
            listed += page["conversations"]
        listed += page["conversations"]
        self._check({one["id"] for one in listed} == set(self.conversations), "other conversations are listed")
        for conversation, said in self.conversations.items():
            found = (await self.browser.get(f"/api/conversations/{conversation}")).json()["messages"]
            there = {one["id"]: Told(one["role"], one["parent"], one["content"][0]["text"]) for one in found}
            self._check(there == said, f"conversation {conversation} is another one on the page")
        export = (await self.browser.get("/api/export")).text
        self._only_mine(export)
        lines = [json.loads(line) for line in export.strip().split("\n")]
        exported = {message["id"] for line in lines for message in line["meta"]["messages"]}
        for theirs in others.conversations:
            response = await self.browser.get(f"/api/conversations/{theirs}")
            self._check(response.status_code == 404, "somebody else's conversation is open")
        told = {key for said in self.conversations.values() for key in said}
        self._check(exported == told, "other messages are in the export")


def look_into(database: Database, chatters: list[Chatter], renderer: Renderer) -> list[str]:
    """What the database has that nobody was told, or has not that somebody was."""
    errors = []
    with database.reading() as session:
        names = {user.id: user.name for user in session.query(User)}
        owners = {one.id: names[one.owner_id] for one in session.query(Conversation)}
        messages = {message.id: message for message in session.query(Message)}
        expected = {
            UUID(key): (chatter, UUID(conversation), one)
            for chatter in chatters
            for conversation, said in chatter.conversations.items()
            for key, one in said.items()
        }
        if set(expected) != set(messages):
            errors.append(f"{len(expected)} messages were told, and {len(messages)} are in the database")
        for key, (chatter, conversation, one) in expected.items():
            kept = messages[key]
            if (kept.conversation_id, owners[conversation], kept.text) != (conversation, name_of(chatter), one.text):
                errors.append(f"message {key} of {name_of(chatter)} is another one in the database")
            if one.role == "assistant":
                path = [kept]
                while path[0].parent_id:
                    path.insert(0, messages[path[0].parent_id])
                prompt = [records.Message.of(turn.role, turn.text) for turn in path[:-1]]
                if len(renderer.prompt(prompt)) != kept.prompt_tokens:
                    errors.append(
                        f"message {key} answers a prompt of {kept.prompt_tokens} tokens, not its conversation"
                    )
    return errors


def name_of(chatter: Chatter) -> str:
    return f"person{chatter.number}"


async def measure(server: Server, count: int, seconds: float) -> tuple[list[Chatter], float]:
    """Everybody, and how long it took."""
    async with Person(server.url) as owner:
        await owner.join(server.link, "owner")
        chatters = []
        for number in range(count):
            link = (await owner.post("/api/invitations", json={"role": "user"})).raise_for_status().json()["link"]
            chatters.append(Chatter(number, Person(server.url, f"127.0.1.{number + 1}")))
            await chatters[-1].browser.join(link, name_of(chatters[-1]))
    print(f"{count} people have joined", flush=True)
    begun = time.perf_counter()
    await asyncio.gather(*(chatter.chat(begun + seconds) for chatter in chatters))
    spent = time.perf_counter() - begun
    await asyncio.gather(*(chatter.look_back(chatters[chatter.number - 1]) for chatter in chatters))
    for chatter in chatters:
        await chatter.browser.aclose()
    return chatters, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--chats", type=int, default=64, help=f"2 to {len(NAMES)}")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with chatwright(folder, *OPTIONS) as server:
            chatters, seconds = asyncio.run(measure(server, asked.chats, asked.seconds))
        database = Database(str(folder / "chat.db"))
        errors = [error for chatter in chatters for error in chatter.errors]
        errors += look_into(database, chatters, Renderer.load(checkpoint_of(MODEL)))
        with database.reading() as session:
            tokens = sum(message.completion_tokens or 0 for message in session.query(Message))
        database.close()
    firsts = [first for chatter in chatters for first in chatter.firsts]
    answers = sum(chatter.answers for chatter in chatters)
    found = {
        "chats_at_once": asked.chats,
        "seconds": seconds,
        "options": OPTIONS,
        "conversations": sum(len(chatter.conversations) for chatter in chatters),
        "answers": answers,
        "answers_with_the_dogs_name": sum(chatter.greeted for chatter in chatters),
        "refused_with_429_and_retried": sum(chatter.refused for chatter in chatters),
        "first_words_p50": statistics.median(firsts),
        "first_words_p95": statistics.quantiles(firsts, n=20)[-1],
        "tokens_per_second": tokens / seconds,
        "errors": len(errors),
    }
    record("chats", found)
    print(json.dumps(found, indent=1))
    if errors:
        raise SystemExit("\n".join(errors[:20]))


if __name__ == "__main__":
    main()
