"""Every stage that trains or works in chunks, on data so small that it takes a second or two."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.conftest import LINES, picture

from chatwright.data.records import Demonstration, Document, Message, Part, Prompt
from chatwright.data.store import save
from chatwright.models.adapters import Adapter
from chatwright.stages.align import Align
from chatwright.stages.annotate import Annotate
from chatwright.stages.base import Stage
from chatwright.stages.bestofn import BestOfN
from chatwright.stages.compare import Compare
from chatwright.stages.evaluate import Evaluate
from chatwright.stages.prefer import Prefer
from chatwright.stages.pretrain import Pretrain
from chatwright.stages.reward import Reward
from chatwright.stages.rl import RL
from chatwright.stages.sft import SFT
from chatwright.stages.tokenizer import Tokenizer
from chatwright.stages.vision import Vision
from chatwright.training.loop import Training

SHORTNESS, MORE = "tests.pipeline:shortness", "tests.pipeline:more"


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


def write_data(folder: Path) -> None:
    save([Document((Part.of_text(f"{line} {i}"),)) for i in range(8) for line in LINES], folder / "documents.parquet")
    captions = [Document((Part.of_image(picture(i)), Part.of_text(LINES[i % 4]))) for i in range(24)]
    save(captions, folder / "captions.parquet")
    # The longer answers are about pictures: rows being sorted, a step's first micro-batch is mostly without any.
    talks = [
        Demonstration((Message.of("user", "What?", *pictures), Message.of("assistant", LINES[i % 4])))
        for i, pictures in enumerate([[] if i % 2 else [picture(i)] for i in range(24)])
    ]
    save(talks, folder / "demonstrations.parquet")


STAGES: dict[str, Callable[[Path], Stage]] = {
    "tokenizer": lambda made: Tokenizer(made / "documents.parquet", 320),
    "pretrain": lambda made: Pretrain(
        made / "tokenizer", made / "documents.parquet", 32, 2, 4, 128, 8, 8, training=course(optimizer="muon")
    ),
    "vision": lambda made: Vision(made / "captions.parquet", [8, 16, 32], 32, 8, 8, training=course()),
    "align": lambda made: Align(
        made / "vision", made / "pretrain", made / "captions.parquet", 32, 8, 6, 8, 6,
        contrastive=course(), projector=course(),
    ),
    "sft": lambda made: SFT(
        str(made / "align"), made / "demonstrations.parquet", 8, 3, 4, eye_rate=0.5, training=course()
    ),
    "lora": lambda made: SFT(
        str(made / "align"), made / "demonstrations.parquet", 8, 4, 3, adapter=Adapter("lora"),
        training=course(precision="bf16", activation_checkpointing="full"),
    ),
    "annotate": lambda made: Annotate(
        str(made / "sft"), made / "demonstrations.parquet", responses=4, max_new_tokens=8, heldout=0.3, chunk=2
    ),
    "reward": lambda made: Reward(
        str(made / "sft"), made / "annotate/comparisons.parquet", made / "annotate/comparisons_heldout.parquet",
        made / "demonstrations.parquet", batch_size=2, epochs=2, training=course(),
    ),
    "rl": lambda made: RL(
        str(made / "sft"), made / "demonstrations.parquet", str(made / "reward"),
        pretraining=made / "documents.parquet", pretraining_batch=4, iterations=2, rollouts=8, epochs=2, minibatches=2,
        max_new_tokens=8, training=course(),
    ),
    "dapo": lambda made: RL(
        str(made / "sft"), made / "demonstrations.parquet", verifier=SHORTNESS, environment=MORE, turns=2,
        method="dapo", responses=4, iterations=3, rollouts=8, minibatches=2, max_new_tokens=16,
        adapter=Adapter("lora", dropout=0.0),
        training=course(precision="bf16", activation_checkpointing="selective"),
    ),
    "prefer": lambda made: Prefer(
        str(made / "sft"), made / "annotate/comparisons.parquet", made / "annotate/comparisons_heldout.parquet", "dpo",
        batch_size=2, epochs=2, training=course(),
    ),
    "bestofn": lambda made: BestOfN(
        str(made / "sft"), made / "demonstrations.parquet", str(made / "reward"), n=4, max_new_tokens=32, chunk=4
    ),
    "compare": lambda made: Compare(
        {"sft": str(made / "sft"), "rl": str(made / "rl")}, made / "demonstrations.parquet", "sft", SHORTNESS,
        max_new_tokens=8, chunk=4,
    ),
    "evaluate": lambda made: Evaluate(
        str(made / "rl"), made / "demonstrations.parquet", max_new_tokens=8, batch_size=1
    ),
}  # fmt: skip


def course_of(out: Path) -> list[dict[str, float]]:
    """The lines of metrics of an artifact."""
    log = out / "metrics.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
