"""ms-swift at its best settings on a CPU: bf16, no gradient checkpointing; started as its own command line does."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pieces
import torch
from swift import __version__
from swift.pipelines.train.rlhf import SwiftRLHF
from swift.pipelines.train.sft import SwiftSft
from swift.rewards import ORM, orms
from swift.template import TemplateMeta, register_template
from transformers import TrainerCallback

TEMPLATES = {"llama": "chatml", "qwen3": "demo"}  # by the type of the model: SmolLM2's, the demo's
register_template(
    TemplateMeta(
        "demo", prefix=[], prompt=["<|user|>{{QUERY}}<|end|><|assistant|>"], chat_sep=["<|end|>"], suffix=["<|end|>"],
        system_prefix=["<|system|>{{SYSTEM}}<|end|>"],
    )
)  # fmt: skip


class Length(ORM):
    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        return [pieces.length_reward(text) for text in completions]


class Steps(TrainerCallback):
    """Ends a piece after so many steps."""

    steps, amount = 1, 1.0
    talk: pieces.Pieces

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.talk.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.talk.step(self.steps, self.amount)


class Timed:
    """What the pipelines add a callback through: the PPO trainer forgets those that are named in the arguments."""

    def train(self, trainer: Any) -> Any:
        trainer.add_callback(Steps())
        return super().train(trainer)  # type: ignore[misc]


class TimedSft(Timed, SwiftSft):
    pass


class TimedRLHF(Timed, SwiftRLHF):
    pass


def conversations(given: Any, out: Path) -> list[str]:
    rows = [{"messages": row["prompt"] + row["completion"]} for row in pieces.rows(given.data / "conversations.jsonl")]
    Steps.steps, Steps.amount = len(rows) // pieces.BATCH, pieces.supervised(given.data)
    return [*written(out, rows), "--per_device_train_batch_size", str(pieces.BATCH)]


def pairs(given: Any, out: Path) -> list[str]:
    rows = [
        {"messages": row["prompt"] + row["chosen"], "rejected_response": row["rejected"][0]["content"]}
        for row in pieces.rows(given.data / "pairs.jsonl")
    ]
    Steps.steps, Steps.amount = len(rows) // pieces.BATCH, len(rows)
    return [*written(out, rows), "--rlhf_type", "rm", "--per_device_train_batch_size", str(pieces.BATCH)]


def prompts(given: Any, out: Path, at_once: int) -> list[str]:
    rows = [{"messages": row["prompt"]} for row in pieces.rows(given.data / "prompts.jsonl")]
    return [
        *written(out, rows), "--max_completion_length", str(pieces.NEW_TOKENS), "--temperature", "1",
        "--per_device_train_batch_size", str(at_once),
    ]  # fmt: skip


def grpo(given: Any, out: Path) -> list[str]:
    orms["length"] = Length
    return [
        *prompts(given, out, pieces.ROLLOUTS), "--rlhf_type", "grpo", "--reward_funcs", "length", "--beta", "0.04",
        "--num_generations", str(pieces.RESPONSES),
    ]  # fmt: skip


def ppo(given: Any, out: Path) -> list[str]:
    at_once = pieces.ROLLOUTS // 4  # as TRL's, whose trainer it is
    return [
        *prompts(given, out, at_once), "--gradient_accumulation_steps", "4", "--rlhf_type", "ppo",
        "--reward_model", str(scorer(given.model, out)), "--reward_model_type", model_type(given.model),
        "--num_ppo_epochs", "1", "--num_mini_batches", "1", "--local_rollout_forward_batch_size", str(at_once),
        "--num_sample_generations", "0",
    ]  # fmt: skip


def scorer(model: Path, out: Path) -> Path:
    """A reward model of the same size: the model with a head."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = out / "reward"
    AutoModelForSequenceClassification.from_pretrained(model, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def model_type(model: Path) -> str:
    return json.loads((model / "config.json").read_text())["model_type"]


def written(out: Path, rows: list[dict[str, Any]]) -> list[str]:
    path = out / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--dataset", str(path)]


if __name__ == "__main__":
    given = pieces.arguments()
    torch.set_num_threads(given.threads)
    Steps.talk = pieces.Pieces(f"ms-swift {__version__}")  # from here on, what trainers print is not for the driver
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        work = {"sft": conversations, "reward": pairs, "grpo": grpo, "ppo": ppo}[given.work]
        arguments = [
            *work(given, out), "--model", str(given.model), "--model_type", model_type(given.model),
            "--template", TEMPLATES[model_type(given.model)],
            "--tuner_type", "full", "--torch_dtype", "float32", "--bf16", "true", "--fp16", "false",
            "--use_cpu", "true", "--gradient_checkpointing", "false", "--max_length", str(pieces.MAX_LENGTH),
            "--num_train_epochs", "10000", "--learning_rate", "1e-6", "--lr_scheduler_type", "constant",
            "--save_strategy", "no", "--eval_strategy", "no", "--report_to", "none", "--split_dataset_ratio", "0",
            "--output_dir", str(out / "run"), "--logging_steps", "1000000",
        ]  # fmt: skip
        (TimedSft if given.work == "sft" else TimedRLHF)(arguments).main()
