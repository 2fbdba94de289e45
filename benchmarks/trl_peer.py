"""TRL at its best settings on a CPU: 1.16 for SFT, reward models, DPO and GRPO; 1.12, in front on the path, for PPO.

bf16 (autocast over fp32 weights, as ours), no gradient checkpointing, SFT packed.
"""

import tempfile
from typing import Any

import pieces
import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

COMMON: dict[str, Any] = {
    "use_cpu": True,
    "bf16": True,
    "gradient_checkpointing": False,
    "num_train_epochs": 10_000,
    "learning_rate": 1e-6,
    "lr_scheduler_type": "constant",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1_000_000,
}
FP32 = {"dtype": "float32"}


class Steps(TrainerCallback):
    """Ends a piece after so many steps; ``amount`` is what that is."""

    def __init__(self, steps: int, amount: float) -> None:
        self.pieces, self.steps, self.amount = pieces.Pieces(f"trl {trl.__version__}"), steps, amount

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.pieces.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.pieces.step(self.steps, self.amount)


def sft(given: Any, out: str) -> Any:
    from trl import SFTConfig, SFTTrainer

    rows = [
        {"prompt": row["prompt"], "completion": row["completion"]}
        for row in pieces.rows(given.data / "conversations.jsonl")
    ]
    config = SFTConfig(
        **COMMON, output_dir=out, packing=True, max_length=pieces.MAX_LENGTH, per_device_train_batch_size=2,
        model_init_kwargs=FP32,
    )  # fmt: skip
    trainer = SFTTrainer(str(given.model), args=config, train_dataset=Dataset.from_list(rows))
    trainer.add_callback(Steps(len(trainer.get_train_dataloader()), pieces.supervised(given.data)))
    return trainer


def reward(given: Any, out: str) -> Any:
    from trl import RewardConfig, RewardTrainer

    rows = pieces.rows(given.data / "pairs.jsonl")
    config = RewardConfig(
        **COMMON, output_dir=out, max_length=pieces.MAX_LENGTH, per_device_train_batch_size=pieces.BATCH,
        model_init_kwargs=FP32,
    )  # fmt: skip
    trainer = RewardTrainer(str(given.model), args=config, train_dataset=Dataset.from_list(rows))
    trainer.add_callback(Steps(len(rows) // pieces.BATCH, len(rows)))
    return trainer


def dpo(given: Any, out: str) -> Any:
    from trl import DPOConfig, DPOTrainer

    rows = pieces.rows(given.data / "pairs.jsonl")
    # All at once take more than 15 GB.
    config = DPOConfig(
        **COMMON, output_dir=out, max_length=pieces.MAX_LENGTH, per_device_train_batch_size=pieces.BATCH // 2,
        gradient_accumulation_steps=2, model_init_kwargs=FP32, precompute_ref_log_probs=True,
    )  # fmt: skip
    trainer = DPOTrainer(str(given.model), args=config, train_dataset=Dataset.from_list(rows))
    trainer.add_callback(Steps(len(rows) // pieces.BATCH, len(rows)))
    return trainer


def grpo(given: Any, out: str) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    def score(completions: list[Any], **_: Any) -> list[float]:
        return [pieces.length_reward(one[0]["content"]) for one in completions]

    rows = [{"prompt": row["prompt"]} for row in pieces.rows(given.data / "prompts.jsonl")]
    config = GRPOConfig(
        **COMMON, output_dir=out, per_device_train_batch_size=pieces.ROLLOUTS, num_generations=pieces.RESPONSES,
        max_completion_length=pieces.NEW_TOKENS, temperature=1.0, beta=0.04, loss_type="grpo", model_init_kwargs=FP32,
    )  # fmt: skip
    trainer = GRPOTrainer(str(given.model), reward_funcs=score, args=config, train_dataset=Dataset.from_list(rows))
    trainer.add_callback(Steps(1, 1))
    return trainer


def ppo(given: Any, out: str) -> Any:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(given.model, padding_side="left")
    rows = [{"input_ids": row["tokens"]} for row in pieces.rows(given.data / "prompts.jsonl")]
    at_once = pieces.ROLLOUTS // 4  # all of them take more than 13 GB
    config = PPOConfig(
        **COMMON | {"num_train_epochs": 1}, output_dir=out, total_episodes=10_000 * pieces.ROLLOUTS,
        per_device_train_batch_size=at_once, gradient_accumulation_steps=4, num_mini_batches=1, num_ppo_epochs=1,
        local_rollout_forward_batch_size=at_once, response_length=pieces.NEW_TOKENS, temperature=1.0,
        stop_token="eos", num_sample_generations=0,
    )  # fmt: skip
    policy, reference = (AutoModelForCausalLM.from_pretrained(given.model, **FP32) for _ in range(2))
    judge, critic = (
        AutoModelForSequenceClassification.from_pretrained(given.model, num_labels=1, **FP32) for _ in range(2)
    )
    trainer = PPOTrainer(
        args=config, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=judge,
        value_model=critic, train_dataset=Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows[:1]),
    )  # fmt: skip
    trainer.add_callback(Steps(1, 1))
    return trainer


if __name__ == "__main__":
    given = pieces.arguments()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as out:
        {"sft": sft, "reward": reward, "dpo": dpo, "grpo": grpo, "ppo": ppo}[given.work](given, out).train()
