"""Chatwright, as its stages put it together: the objectives with `fit`, and the engine."""

import copy
import math
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pieces
import torch

from chatwright.data import rankings
from chatwright.data.batches import Batches, lengths_of
from chatwright.data.records import Comparison, Message, Prompt
from chatwright.data.render import Renderer
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.models.heads import RewardModel
from chatwright.models.load import load_model
from chatwright.objectives.base import Objective
from chatwright.objectives.feedback.bradley_terry import BradleyTerry
from chatwright.objectives.feedback.dpo import DPO
from chatwright.objectives.feedback.grpo import GRPO
from chatwright.objectives.feedback.ppo import PPO
from chatwright.objectives.language.causal import CausalLanguageModel
from chatwright.stages.experience import Experience
from chatwright.stages.prefer import reference_logprobs
from chatwright.stages.rl import RL
from chatwright.training.loop import Loader, Training, fit

STEPS = 10_000  # more than the driver will ask for
TRAINING = Training(
    learning_rate=1e-6, warmup=0, decay="constant", precision="bf16", checkpoint_seconds=math.inf, log_every=STEPS
)
MICRO = pieces.BATCH // 2  # rows at once


class Timed:
    """A loader that asks the driver before every piece, ``steps`` optimiser steps of it."""

    def __init__(self, loader: Any, steps: int, amount: float) -> None:
        self.loader, self.steps, self.amount = loader, steps, amount
        self.pieces = pieces.Pieces("chatwright")
        self.share, self.state_dict, self.load_state_dict = loader.share, loader.state_dict, loader.load_state_dict

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        self.pieces.begin()
        for step in self.loader:
            yield step
            self.pieces.step(self.steps, self.amount)


def train(objective: Objective, loader: Loader) -> None:
    with tempfile.TemporaryDirectory() as out:
        fit(objective, loader, TRAINING, Path(out), "bench")


def sft(given: Namespace, renderer: Renderer) -> None:
    rows = [
        renderer.demonstration(_messages(row["prompt"] + row["completion"]))
        for row in pieces.rows(given.data / "conversations.jsonl")
    ]
    model = load_model(given.model)
    loader = Batches(rows, renderer.collate, pieces.BATCH, STEPS, 0, MICRO, lengths_of(rows))
    train(CausalLanguageModel(model, renderer), Timed(loader, len(rows) // pieces.BATCH, pieces.supervised(given.data)))


def reward(given: Namespace, renderer: Renderer) -> None:
    groups = _groups(given, renderer)
    model = load_model(given.model)
    _train_on_groups(BradleyTerry(RewardModel(model), renderer), groups, renderer)


def dpo(given: Namespace, renderer: Renderer) -> None:
    groups = _groups(given, renderer)
    objective = DPO(load_model(given.model), renderer)
    known = reference_logprobs(objective, [row for group in groups for row in group.rows])
    groups = [group._replace(reference=known[2 * i : 2 * i + 2]) for i, group in enumerate(groups)]
    _train_on_groups(objective, groups, renderer)


def _groups(given: Namespace, renderer: Renderer) -> list[rankings.Group]:
    comparisons = [
        Comparison(
            _messages(row["prompt"]), (row["chosen"][0]["content"], row["rejected"][0]["content"]), (0, 1), "", ""
        )
        for row in pieces.rows(given.data / "pairs.jsonl")
    ]
    return rankings.render_all(renderer, comparisons, pieces.MAX_LENGTH)


def _train_on_groups(objective: Objective, groups: list[rankings.Group], renderer: Renderer) -> None:
    lengths = [max(map(len, group.rows)) for group in groups]
    loader = Batches(groups, partial(rankings.collate, renderer), pieces.BATCH, STEPS, 0, MICRO, lengths)
    train(objective, Timed(loader, len(groups) // pieces.BATCH, len(groups)))


def reinforce(given: Namespace, renderer: Renderer, method: str) -> None:
    asked = [
        (Prompt(messages), renderer.prompt(messages))
        for messages in (_messages(row["prompt"]) for row in pieces.rows(given.data / "prompts.jsonl"))
    ]
    policy = load_model(given.model)
    reference = copy.deepcopy(policy)
    at_once = pieces.ROLLOUTS // 4 if method == "ppo" else 0  # four models beside those of a peer fill the memory
    settings = RL(
        str(given.model), given.data, method=method, iterations=STEPS, rollouts=pieces.ROLLOUTS, minibatches=1,
        micro_batch=at_once, sampling_batch=pieces.ROLLOUTS, max_new_tokens=pieces.NEW_TOKENS, training=TRAINING,
    )  # fmt: skip
    if method == "ppo":
        judge: Any = RewardModel(copy.deepcopy(policy))
        objective: Any = PPO(policy, renderer, 1.0, 0.5, copy.deepcopy(judge))
        judges = [judge, None, None]
    else:
        objective = GRPO(policy, renderer, 1.0, 0.5)
        judges = [None, lambda prompt, text: pieces.length_reward(text), None]
    train(objective, Timed(Experience(settings, objective, reference, judges, asked, []), 1, 1))


def sample(given: Namespace, renderer: Renderer) -> None:
    """Every answer has all its tokens: nothing ends one."""
    renderer.stop_ids = set()
    asked = [renderer.prompt(_messages(row["prompt"])) for row in pieces.rows(given.data / "prompts.jsonl")]
    engine = Engine(load_model(given.model, torch.bfloat16), renderer, given.rows)
    talk = pieces.Pieces("chatwright")
    while True:
        talk.begin()
        answers = engine.generate(asked[: given.rows], Sampling(pieces.NEW_TOKENS))
        talk.end(sum(len(one.tokens) for several in answers for one in several))


def _messages(rows: list[dict[str, str]]) -> tuple[Message, ...]:
    return tuple(Message.of(row["role"], row["content"]) for row in rows)  # type: ignore[arg-type]


if __name__ == "__main__":
    given = pieces.arguments()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    works: dict[str, Callable[[Namespace, Renderer], None]] = {
        "sft": sft,
        "reward": reward,
        "dpo": dpo,
        "grpo": lambda given, renderer: reinforce(given, renderer, "grpo"),
        "ppo": lambda given, renderer: reinforce(given, renderer, "ppo"),
        "sample": sample,
    }
    works[given.work](given, Renderer.load(given.model))
