"""How a program under test talks to the driver: one line of JSON for every piece of work, begun at the driver's word.

It runs in every peer's environment, so it needs the standard library alone.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

MAX_LENGTH = 512
BATCH = 8  # conversations or pairs in a step
RESPONSES = 8  # to a prompt
ROLLOUTS = 32  # in a step of reinforcement learning
NEW_TOKENS = 64


class Pieces:
    """Told of every piece where it begins and ends; ends the program when the driver has had enough."""

    def __init__(self, version: str) -> None:
        self.version = version
        self._lines = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what libraries print is not for the driver
        self._begun = 0.0
        self._done = 0

    def begin(self) -> None:
        print(json.dumps({"ready": self.version}), file=self._lines)
        if not sys.stdin.readline():
            os._exit(0)
        self._begun = time.perf_counter()

    def end(self, amount: float) -> None:
        """Args: amount: of what the work is counted in: supervised tokens, pairs, steps or generated tokens."""
        seconds = time.perf_counter() - self._begun
        print(json.dumps({"seconds": seconds, "amount": amount, "peak_rss": peak_rss()}), file=self._lines)

    def step(self, steps: int, amount: float) -> None:
        """One of the ``steps`` of a piece has been done; after the last the next piece begins."""
        self._done += 1
        if self._done % steps == 0:
            self.end(amount)
            self.begin()


def peak_rss() -> int:
    """The most bytes that this program has held; `getrusage` counts the driver, too, of which it began as a copy."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def arguments() -> argparse.Namespace:
    """What the driver tells every program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rows", type=int, default=1, help="answers written at once, where sampling is the work")
    return parser.parse_args()


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def supervised(data: Path) -> int:
    """Tokens of answers in all conversations, the end of the turn included; the templates of some peers add more."""
    return sum(row["supervised"] for row in rows(data / "conversations.jsonl"))


def length_reward(text: str) -> float:
    """A reward that costs nothing to compute and that differs between answers: how far from 200 characters."""
    return -abs(len(text) - 200) / 100
