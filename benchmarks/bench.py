"""Ours and its peers on the same work, turn and turn about, and what the machine itself can do.

    make bench          everything, with SmolLM2-135M and the demo's own model
    make bench-quick    a subset of works and peers, one turn each, within 8 minutes; the others' results stay

Every program runs in its own environment and process, and waits for its turn: ours, theirs, ours, theirs ... The first
turn of each is a warm-up and does not count. Writes results.json and results.svg beside this file.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import growth
import machine
import plot

import data

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parent / ".venv-bench"
UNITS = {
    "sft": "supervised tokens/s",
    "reward": "pairs/s",
    "dpo": "pairs/s",
    "grpo": "steps/s",
    "ppo": "iterations/s",
    "sample": "tokens/s",
}


@dataclass
class Peer:
    """A program beside this file, and the environment it runs in.

    works: of `UNITS`, with the arguments that name it to the program. path: what goes in front of the modules' path.
    models: that it can take.
    """

    name: str
    program: str
    environment: str
    works: dict[str, list[str]]
    path: str = ""
    models: tuple[str, ...] = (data.SMOLLM2, data.DEMO)

    @property
    def python(self) -> str:
        return str(ENVIRONMENTS / self.environment / "bin" / "python") if self.environment else sys.executable


TRL = ("sft", "reward", "dpo", "grpo")
SWIFT = ("sft", "reward", "grpo", "ppo")
OURS = Peer("Chatwright", "ours.py", "", {work: [work] for work in UNITS})
PEERS = [
    Peer("transformers generate", "transformers_peer.py", "", {"sample": ["generate"]}),
    Peer("transformers generate_batch", "transformers_peer.py", "", {"sample": ["generate_batch"]}),
    Peer("llama.cpp", "llama_peer.py", "llama-cpp", {"sample": ["sample"]}, models=(data.SMOLLM2,)),
    Peer("TRL", "trl_peer.py", "trl", {work: [work] for work in TRL}),
    Peer("TRL", "trl_peer.py", "trl", {"ppo": ["ppo"]}, str(ENVIRONMENTS / "trl-1.12")),
    Peer("ms-swift", "swift_peer.py", "ms-swift", {work: [work] for work in SWIFT}),
]
# One row at a time is what a chat is, 64 what reinforcement learning samples; llama-cpp-python writes one.
ROWS = {"llama.cpp": (1,), "transformers generate_batch": (64,)}
QUICK = {("TRL", "sft"), ("TRL", "dpo"), ("transformers generate", "sample"), ("llama.cpp", "sample")}


class Ended(Exception):
    """A program has ended before its work was done."""


@dataclass
class Program:
    """A running program; ``turn`` lets it do one piece."""

    process: subprocess.Popen[str]
    name: str
    version: str = ""
    rates: list[float] = field(default_factory=list)
    peak_rss: int = 0

    def turn(self, counts: bool) -> None:
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # it has ended, which reading tells
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        piece = self._line()
        self._line()  # it is ready for the next
        self.peak_rss = piece["peak_rss"]
        if counts:
            self.rates.append(piece["amount"] / piece["seconds"])

    def ready(self) -> None:
        self.version = self._line()["ready"]

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise Ended(f"{self.name} has ended with {self.process.wait()}; what it said is above")
        return json.loads(line)


@contextlib.contextmanager
def running(peer: Peer, work: str, rows: int, folder: Path, threads: int) -> Iterator[Program]:
    command = [peer.python, str(HERE / peer.program), *peer.works[work], "--model", str(folder / "model")]
    command += ["--data", str(folder), "--threads", str(threads), "--rows", str(rows)]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if peer.path:
        environment["PYTHONPATH"] = peer.path
    elif peer.environment:
        environment.pop("PYTHONPATH", None)
    process = subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    program = Program(process, f"{peer.name}, {work}")
    try:
        program.ready()
        yield program
    finally:
        if process.stdin:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()


def compare(model: str, peer: Peer, work: str, rows: int, folder: Path, threads: int, pairs: int) -> dict[str, Any]:
    """A row of the results: medians of the rates, and of the ratios of turns that followed each other.

    Args:
        folder: what `data` wrote for the model. rows: answers at once, where sampling is the work.
    """
    with running(OURS, work, rows, folder, threads) as ours, running(peer, work, rows, folder, threads) as theirs:
        for number in range(1 + pairs):
            for program in (ours, theirs):
                program.turn(counts=number > 0)
        ratios = [a / b for a, b in zip(ours.rates, theirs.rates, strict=True)]
        return {
            "work": f"{work}, {rows} rows" if work == "sample" else work,
            "model": model,
            "peer": peer.name,
            "version": theirs.version,
            "unit": UNITS[work],
            "ours": statistics.median(ours.rates),
            "theirs": statistics.median(theirs.rates),
            "ratio": {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)},
            "peak_rss_ratio": ours.peak_rss / theirs.peak_rss,
            "pairs": pairs,
        }


def comparisons(models: Iterable[str], quick: bool) -> Iterator[tuple[str, Peer, str, int]]:
    for model in models:
        for peer in PEERS:
            for work in peer.works:
                if model in peer.models and (not quick or (peer.name, work) in QUICK):
                    for rows in ROWS.get(peer.name, (1, 64)) if work == "sample" else (1,):
                        yield model, peer, work, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--pairs", type=int, help="turns of each program that count; 3, and 1 with --quick")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--only",
        nargs="*",
        help="works, peers and models of which 'work peer model' has one of these, or growth; the others' results stay",
    )
    parser.add_argument("--out", type=Path, default=HERE)
    given = parser.parse_args()
    given.pairs = given.pairs or (1 if given.quick else 3)
    folders = {
        model: data.main(ENVIRONMENTS / "data", model)
        for model in ((data.SMOLLM2,) if given.quick else (data.SMOLLM2, data.DEMO))
    }
    begun = time.monotonic()
    results: dict[str, Any] = {"threads": given.threads, "rows": [], "failed": {}}
    if (given.only or given.quick) and (given.out / "results.json").exists():
        results = json.loads((given.out / "results.json").read_text())

    def save() -> None:
        """After every part, so that nothing is lost of what takes long."""
        (given.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        plot.draw(results, given.out / "results.svg")

    for model, peer, work, count in comparisons(folders, given.quick):
        name = f"{work} {peer.name} {model}"
        if not given.only or any(part in name for part in given.only):
            try:
                row = compare(model, peer, work, count, folders[model], given.threads, given.pairs)
            except Ended as error:  # such as for want of memory
                print(f"{time.monotonic() - begun:6.0f} s  {error}", flush=True)
                results["failed"][name] = str(error)
                save()
                continue
            results["failed"].pop(name, None)
            others = [one for one in results["rows"] if any(one[key] != row[key] for key in ("work", "model", "peer"))]
            results["rows"] = [*others, row]
            shown = {key: value for key, value in row.items() if key not in ("version", "pairs")}
            print(f"{time.monotonic() - begun:6.0f} s  {json.dumps(shown)}", flush=True)
            save()
    if not given.quick and (not given.only or "growth" in given.only):
        results["growth"] = growth.measured(folders[data.SMOLLM2], given.threads)
        save()
    of_real = [row for row in results["rows"] if row["model"] == data.SMOLLM2]
    results["machine"] = machine.measured(folders[data.SMOLLM2], of_real, given.threads)
    print(json.dumps(results["machine"], indent=1), flush=True)
    save()


if __name__ == "__main__":
    main()
