"""How many tokens a second the server gives to 16 clients, beside `transformers serve` with the same checkpoint.

    make load    or    python benchmarks/throughput.py [--rounds 3] [--turns 3] [--tokens 128]

Each server is started anew for every round, ours and theirs in turn, each alone on the machine. 16 clients hold a
conversation each, with the same questions: chat completions, streamed, greedy, each turn with all that was said before.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from servers import MODEL, Person, Server, chatwright, record, transformers_serve

from chatwright.models.load import checkpoint_of

CLIENTS = 16
# The fastest of what it offers here; see docs/serving.md. By itself it takes 60% of the memory for its cache.
THEIRS = ("--continuous-batching", "--cb-num-blocks", "96", "--cb-max-batch-tokens", "2048")


@dataclass
class Answer:
    """What was said, the seconds to the first words of it, and its tokens as the server counts them."""

    text: str
    first: float
    tokens: int


SUBJECTS = (
    "a dog that learns to swim", "the history of bread", "how rivers are made", "a day in a small town by the sea",
    "why the sky is blue", "an old clock that runs backwards", "how to grow tomatoes", "two friends who build a boat",
)  # fmt: skip

QUESTIONS = ("Write a long text about {}.", "Go on, with more details.", "Now write it for children.", "Explain it.")


async def ask(client: httpx.AsyncClient, server: Server, messages: list[dict[str, str]], tokens: int) -> Answer:
    body = {
        "model": server.model, "messages": messages, "max_tokens": tokens, "temperature": 0, "stream": True,
        # The other one always tells the usage and refuses to be asked for it.
        **({"stream_options": {"include_usage": True}} if server.key else {}),
    }  # fmt: skip
    begun, first, text, count = time.perf_counter(), 0.0, "", 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if not line or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            for choice in chunk["choices"]:
                text += choice["delta"].get("content") or ""
            first = first or (time.perf_counter() - begun if text else 0)
            if chunk.get("usage"):
                count = chunk["usage"]["completion_tokens"]
    assert count, "the server has told no usage"
    return Answer(text, first, count)


async def measure(server: Server, turns: int, tokens: int) -> dict[str, float]:
    if server.link:
        async with Person(server.url) as owner:
            await owner.join(server.link, "owner")
            server.key = (await owner.post("/api/keys", json={"name": "load"})).json()["key"]
    headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=server.url, headers=headers, limits=limits, timeout=None) as client:
        found: list[Answer] = []

        async def talk(number: int, turns: int, tokens: int) -> None:
            messages = []
            for question in QUESTIONS[:turns]:
                subject = f"{SUBJECTS[number % len(SUBJECTS)]}, part {number // len(SUBJECTS) + 1}"
                messages.append({"role": "user", "content": question.format(subject)})
                found.append(await ask(client, server, messages, tokens))
                messages.append({"role": "assistant", "content": found[-1].text})

        await asyncio.gather(*(talk(number, 1, 4) for number in range(CLIENTS)))  # to warm up
        found.clear()

        begun = time.perf_counter()
        await asyncio.gather(*(talk(number, turns, tokens) for number in range(CLIENTS)))
        seconds = time.perf_counter() - begun
    firsts, tokens = [answer.first for answer in found], sum(answer.tokens for answer in found)
    return {
        "tokens_per_second": tokens / seconds,
        "first_token_p50": statistics.median(firsts),
        "first_token_p95": statistics.quantiles(firsts, n=20)[-1],
        "tokens": tokens,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=3, help=f"of each conversation, at most {len(QUESTIONS)}")
    parser.add_argument("--tokens", type=int, default=128, help="the longest answer")
    parser.add_argument("--only", choices=["ours", "theirs"])
    parser.add_argument("--options", default="", help="of the server that is measured --only")
    asked = parser.parse_args()
    model, options = checkpoint_of(MODEL), asked.options.split()
    servers: dict[str, Callable[[Path], AbstractContextManager[Server]]] = {
        "ours": lambda folder: chatwright(folder, *options),
        "theirs": lambda folder: transformers_serve(model, folder, *(options or THEIRS)),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in servers if asked.only in (None, name)}
    for round in range(asked.rounds):
        for name, results in found.items():
            with tempfile.TemporaryDirectory() as folder, servers[name](Path(folder)) as server:
                results.append(one := asyncio.run(measure(server, asked.turns, asked.tokens)))
            told = ", ".join(f"{what} {value:.4g}" for what, value in one.items())
            print(f"round {round + 1}, {name}: {told}", flush=True)
    if asked.only:
        return
    medians: dict[str, Any] = {
        name: {what: statistics.median(one[what] for one in results) for what in results[0]}
        for name, results in found.items()
    }
    rates = {name: [one["tokens_per_second"] for one in results] for name, results in found.items()}
    ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates["theirs"], strict=True)]
    summary = {"ratio": statistics.median(ratios), "ratios": ratios, **medians}
    record("throughput", {"clients": CLIENTS, "theirs_options": THEIRS, "rounds": asked.rounds, **summary})
    print(f"{CLIENTS} clients: {summary['ratio']:.2f} times the tokens a second of transformers serve")


if __name__ == "__main__":
    main()
