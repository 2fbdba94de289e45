"""A stage killed with SIGKILL at random points and started again ends in the same bytes as one left alone."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.conftest import LINES, picture

from chatwright.data.records import Demonstration, Document, Message, Part, Prompt
from chatwright.data.store import save
from chatwright.models.adapters import Adapter
from chatwright.stages.align import Align
from chatwright.stages.annotate import Annotate
from chatwright.stages.base import Stage, execute
from chatwright.stages.evaluate import Evaluate
from chatwright.stages.prefer import Prefer
from chatwright.stages.pretrain import Pretrain
from chatwright.stages.reward import Reward
from chatwright.stages.rl import RL
from chatwright.stages.sft import SFT
from chatwright.stages.tokenizer import Tokenizer
from chatwright.stages.vision import Vision
from chatwright.training.loop import Training

# A clean process that has imported everything: its children start at once and have run no thread yet.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.invariants.test_resume"])

KILLS = 3


def course(**changes) -> Training:
    """A checkpoint after every step, so that a kill finds one at any point; a precision that no stopwatch chooses."""
    fixed = {"learning_rate": 1e-2, "checkpoint_seconds": 0.0, "log_every": 1, "precision": "fp32"}
    return Training(**{**fixed, **changes})


def shortness(prompt: Prompt, text: str) -> float:
    """What the policy is paid for where no reward model judges."""
    return -float(len(text))


def more(prompt: Prompt, turns: Sequence[Message]) -> Message:
    """What answers the policy between its turns."""
    return Message.of("user", "?")


def _execute(stage: Stage, out: Path) -> None:
    import torch

    torch.set_num_threads(1)
    execute(stage, out)


def run(stage: Stage, out: Path, kill_after: float | None = None) -> bool:
    """Run a stage in a process of its own; kill it ``kill_after`` seconds after it began.

    Returns:
        Whether it finished.
    """
    process = context.Process(target=_execute, args=(stage, out))
    process.start()
    if kill_after is not None:
        while process.is_alive() and not (out / "settings.yaml").exists():
            time.sleep(0.005)
        process.join(kill_after)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Data, and every stage run once without interruption."""
    folder = tmp_path_factory.mktemp("made")
    save([Document((Part.of_text(f"{line} {i}"),)) for i in range(8) for line in LINES], folder / "documents.parquet")
    captions = [Document((Part.of_image(picture(i)), Part.of_text(LINES[i % 4]))) for i in range(24)]
    save(captions, folder / "captions.parquet")
    talks = [
        Demonstration((Message.of("user", "What?", picture(i)), Message.of("assistant", LINES[i % 4])))
        for i in range(24)
    ]
    save(talks, folder / "demonstrations.parquet")
    for name in STAGES:
        assert run(STAGES[name](folder), folder / name)
    return folder


STAGES: dict[str, Callable[[Path], Stage]] = {
    "tokenizer": lambda made: Tokenizer(made / "documents.parquet", 320),
    "pretrain": lambda made: Pretrain(
        made / "tokenizer", made / "documents.parquet", 32, 2, 4, 128, 8, 8, training=course(optimizer="muon")
    ),
    "vision": lambda made: Vision(made / "captions.parquet", [8, 16, 32], 32, 8, 24, training=course()),
    "align": lambda made: Align(
        made / "vision", made / "pretrain", made / "captions.parquet", 32, 8, 12, 8, 12,
        contrastive=course(), projector=course(),
    ),
    "sft": lambda made: SFT(
        str(made / "align"), made / "demonstrations.parquet", 8, 4, 8, training=course(precision="bf16")
    ),
    "lora": lambda made: SFT(
        str(made / "align"), made / "demonstrations.parquet", 8, 4, 8, adapter=Adapter("lora"), training=course()
    ),
    "annotate": lambda made: Annotate(
        str(made / "sft"), made / "demonstrations.parquet", responses=4, max_new_tokens=8, heldout=0.3, chunk=2
    ),
    "reward": lambda made: Reward(
        str(made / "sft"), made / "annotate/comparisons.parquet", made / "annotate/comparisons_heldout.parquet",
        made / "demonstrations.parquet", batch_size=2, epochs=4, training=course(),
    ),
    "rl": lambda made: RL(
        str(made / "sft"), made / "demonstrations.parquet", str(made / "reward"),
        pretraining=made / "documents.parquet", pretraining_batch=4, iterations=3, rollouts=8, epochs=2, minibatches=4,
        max_new_tokens=8, training=course(),
    ),
    "dapo": lambda made: RL(
        str(made / "sft"), made / "demonstrations.parquet", verifier="tests.invariants.test_resume:shortness",
        environment="tests.invariants.test_resume:more", turns=2, method="dapo", responses=4, iterations=3, rollouts=8,
        minibatches=2, max_new_tokens=16, training=course(),
    ),
    "prefer": lambda made: Prefer(
        str(made / "sft"), made / "annotate/comparisons.parquet", made / "annotate/comparisons_heldout.parquet", "kto",
        batch_size=2, epochs=4, training=course(),
    ),
    "evaluate": lambda made: Evaluate(
        str(made / "rl"), made / "demonstrations.parquet", max_new_tokens=8, batch_size=1
    ),
}  # fmt: skip
TIMED = ("card.md", "metrics.jsonl")  # these hold times


@pytest.mark.parametrize("name", [name for name in STAGES if name != "tokenizer"])
def test_killed_and_resumed_gives_the_same_bytes(made, tmp_path, name):
    rng = random.Random(name)
    out, stage = tmp_path / name, STAGES[name](made)
    seconds = json.loads((made / name / "DONE").read_text())["seconds"]
    interrupted = sum(not run(stage, out, rng.uniform(0.1, 0.9) * seconds / KILLS) for _ in range(KILLS))
    assert interrupted, "no kill came in time to prove anything"
    if not (out / "DONE").exists():
        assert run(stage, out)
    expected = json.loads((made / name / "DONE").read_text())["files"]
    found = json.loads((out / "DONE").read_text())["files"]
    assert {k: v for k, v in found.items() if k not in TIMED} == {k: v for k, v in expected.items() if k not in TIMED}
    assert _steps(out) == _steps(made / name)


def _steps(out: Path) -> list[int]:
    log = out / "metrics.jsonl"
    return [json.loads(line)["step"] for line in log.read_text().splitlines()] if log.exists() else []
