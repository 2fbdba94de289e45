"""Reinforcement learning from human feedback: PPO, with or without the pretraining mix (PPO-ptx)."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from chatwright.data.records import Document, Prompt
from chatwright.data.render import Rendered, Renderer
from chatwright.data.store import load
from chatwright.errors import ChatwrightError
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.models.eyes import TOWERS, freeze_eye, restore_eye
from chatwright.models.heads import RewardModel
from chatwright.models.load import attention_for, checkpoint_of, load_model, token_logprobs
from chatwright.objectives.feedback.mathematics import (
    explained_variance,
    gae,
    kl_k1,
    kl_k3,
    token_rewards,
    whiten,
)
from chatwright.objectives.feedback.ppo import PPO
from chatwright.objectives.feedback.rollouts import Rollouts, gather
from chatwright.stages.base import Stage
from chatwright.training.loop import Training, best_device, fit, to_device

METRICS = ("score", "reward", "kl", "kl_k3", "length", "unfinished", "explained_variance")


@dataclass
class RL(Stage):
    """Optimise a policy against a reward model by PPO, kept near where it began; PPO-ptx when ``pretraining`` is given.

    Writes ``model/``. ``metrics.jsonl`` has, beside the losses, of every response: ``score`` (of the reward model),
    ``reward`` (score, penalty and KL cost together), ``kl`` and ``kl_k3`` (nats a response, from where it began),
    ``length`` (tokens), ``unfinished``; and ``entropy``, ``clip_fraction``, ``explained_variance`` and
    ``fresh_log_ratio`` (the largest before any update: zero but for rounding).

    Args:
        model: what the policy begins as, and is kept near to: the fine-tuned model.
        reward: a reward model; the critic begins as a copy of it.
        prompts: to answer.
        pretraining: documents whose next tokens the policy goes on predicting.
        pretraining_coefficient: of that mean cross-entropy. pretraining_batch: documents in a step.
        iterations: rounds of sampling and learning. rollouts: responses sampled in each.
        epochs: passes over them. minibatches: steps in a pass. micro_batch: responses computed at once, 0 for all.
        sampling_batch: responses sampled at once.
        max_new_tokens: longest response. temperature: of the sampling and of all probabilities.
        kl_coefficient: what a nat of KL from the beginning costs.
        unfinished_penalty: taken from the score of a response that does not come to an end.
        whiten_rewards: scale them to variance one, over all tokens of a round.
        discount, gae_lambda: of the advantages.
        clip, value_clip: how far ratio and values may move within a round. value_coefficient: of the critic's loss.
        max_length: longer prompts and documents, in tokens, are left out.
        seed: of the order of the prompts and of the sampling.
        training: settings of the loop. In any precision but fp32 the fresh ratio is one only up to rounding.
    """

    model: str
    reward: str
    prompts: Path
    pretraining: Path | None = None
    pretraining_coefficient: float = 0.5
    pretraining_batch: int = 32
    iterations: int = 20
    rollouts: int = 256
    epochs: int = 1
    minibatches: int = 4
    micro_batch: int = 32
    sampling_batch: int = 128
    max_new_tokens: int = 24
    temperature: float = 1.0
    kl_coefficient: float = 0.05
    unfinished_penalty: float = 1.0
    whiten_rewards: bool = True
    discount: float = 1.0
    gae_lambda: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    value_coefficient: float = 0.1
    max_length: int = 512
    seed: int = 0
    training: Training = field(
        default_factory=lambda: Training(learning_rate=2e-4, warmup=0.05, decay="linear", precision="fp32")
    )

    def run(self, out: Path) -> None:
        if self.rollouts % self.minibatches:
            raise ChatwrightError(
                f"rollouts={self.rollouts} cannot be split into minibatches={self.minibatches}; use a multiple"
            )
        if self.temperature <= 0:
            raise ChatwrightError(f"temperature={self.temperature}: exploring takes a temperature above 0")
        torch.manual_seed(self.seed)
        folder = checkpoint_of(self.model)
        renderer = Renderer.load(folder)
        prompts = self._prompts(renderer)
        texts = self._texts(renderer)
        attention = attention_for([len(prompt) + self.max_new_tokens for prompt in prompts])
        policy = load_model(folder, attention=attention)
        scorer = RewardModel.load(self.reward, attention=attention)
        if len(scorer.backbone.get_input_embeddings().weight) != len(policy.get_input_embeddings().weight):
            raise ChatwrightError(f"{self.reward}: has another vocabulary than {self.model}; train it from that model")
        reference, critic = copy.deepcopy(policy), copy.deepcopy(scorer)
        rows = share_eye([policy, reference, scorer.backbone, critic.backbone], [*prompts, *texts])
        objective = PPO(
            policy,
            critic,
            renderer,
            self.temperature,
            self.clip,
            self.value_clip,
            self.value_coefficient,
            self.pretraining_coefficient,
        )
        loader = Experience(self, objective, reference, scorer, rows[: len(prompts)], rows[len(prompts) :])
        fit(objective, loader, self.training, out, "rl")
        restore_eye(policy)
        objective.save(out / "model")

    def _prompts(self, renderer: Renderer) -> list[Rendered]:
        """As many as the run will ask, in the order in which it does."""
        records = load(self.prompts, Prompt)
        order = np.random.default_rng(self.seed).permutation(len(records))[: self.iterations * self.rollouts]
        rows = [renderer.prompt(records[int(i)].messages) for i in order]
        kept = [row for row in rows if len(row) <= self.max_length]
        if not kept:
            raise ChatwrightError(f"{self.prompts}: no prompt within max_length={self.max_length}; raise it")
        return kept

    def _texts(self, renderer: Renderer) -> list[Rendered]:
        if self.pretraining is None:
            return []
        documents = load(self.pretraining, Document)
        most = self.iterations * self.epochs * self.minibatches * self.pretraining_batch
        order = np.random.default_rng(self.seed).permutation(len(documents))[:most]
        rows = [renderer.document(documents[int(i)]) for i in order]
        kept = [row for row in rows if len(row) <= self.max_length]
        if not kept:
            raise ChatwrightError(f"{self.pretraining}: no document within max_length={self.max_length}; raise it")
        return kept


class Experience:
    """The loop's loader: lets the policy answer, judges the answers, and deals them out as minibatches.

    The prompts, the sampling and the order of minibatches follow from the seed and the number of the round alone; the
    rollouts of the round under way are part of the state, so a resumed run goes on with the very same.
    """

    def __init__(
        self,
        settings: RL,
        objective: PPO,
        reference: PreTrainedModel,
        scorer: RewardModel,
        prompts: Sequence[Rendered],
        texts: Sequence[Rendered],
    ) -> None:
        self.settings, self.objective, self.prompts, self.texts = settings, objective, prompts, texts
        self.device = best_device()
        self.reference, self.scorer = reference.to(self.device).eval(), scorer.to(self.device).eval()
        self.renderer = objective.renderer
        self.buffer = Rollouts.empty(settings.rollouts, settings.max_new_tokens, len(METRICS))
        self.per_round = settings.epochs * settings.minibatches
        self.step = 0

    def __len__(self) -> int:
        return self.settings.iterations * self.per_round

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        while self.step < len(self):
            number, place = divmod(self.step, self.per_round)
            if place == 0:
                self._explore(number)
            step = self._minibatch(number, place)
            self.step += 1
            yield step

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, **self.buffer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = int(state["step"])
        self.buffer.load_state_dict({name: value for name, value in state.items() if name != "step"})

    def _explore(self, number: int) -> None:
        """Fill the buffer: answers to the prompts of round ``number`` with all that PPO needs to know about them."""
        settings, buffer = self.settings, self.buffer
        first = number * settings.rollouts
        chosen = [(first + i) % len(self.prompts) for i in range(settings.rollouts)]
        prompts = [self.prompts[i] for i in chosen]
        sampling = Sampling(settings.max_new_tokens, settings.temperature, seed=_seed(settings.seed, number))
        engine = Engine(self.objective.policy, self.renderer, settings.sampling_batch)
        completions = [answers[0] for answers in engine.generate(prompts, sampling)]
        buffer.prompts[:] = torch.tensor(chosen)
        buffer.lengths[:] = torch.tensor([len(completion.tokens) for completion in completions])
        for row, completion in enumerate(completions):
            buffer.tokens[row, : len(completion.tokens)] = torch.tensor(completion.tokens)
            buffer.logprobs[row] = 0
            buffer.logprobs[row, : len(completion.tokens)] = torch.tensor(completion.logprobs)
        mask = buffer.mask
        unfinished = torch.tensor([float(completion.finish_reason == "length") for completion in completions])
        scores, reference = self._judge(mask)
        kl = torch.where(mask, kl_k1(buffer.logprobs, reference), 0.0)
        rewards = token_rewards(scores - settings.unfinished_penalty * unfinished, kl, mask, settings.kl_coefficient)
        total = rewards.sum(1)
        if settings.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        advantages, buffer.returns[:] = gae(rewards, buffer.values, mask, settings.discount, settings.gae_lambda)
        buffer.advantages[:] = whiten(advantages, mask)
        explained = explained_variance(buffer.values, buffer.returns, mask)
        k3 = torch.where(mask, kl_k3(buffer.logprobs, reference), 0.0).sum(1)
        reported = (scores, total, kl.sum(1), k3, buffer.lengths.float(), unfinished, explained.expand_as(total))
        buffer.metrics[:] = torch.stack(reported, 1)

    @torch.no_grad()
    def _judge(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [N] and reference log-probabilities [N, R] of the buffer's answers; fills in their values."""
        rows = [self._row(i) for i in range(len(mask))]
        scores, reference = torch.zeros(len(mask)), torch.zeros(mask.shape)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        size = self.settings.micro_batch or 64
        for chosen in (order[i : i + size] for i in range(0, len(order), size)):
            batch = self.renderer.collate([rows[i] for i in chosen])
            inputs, said = to_device(batch, self.device), mask[chosen]
            logprobs, _ = token_logprobs(self.reference, inputs, self.settings.temperature, self.renderer.unsaid)
            values = self.objective.critic.values(inputs)
            scores[chosen] = self.scorer.scores(inputs).cpu()
            reference[chosen] = gather(logprobs.cpu(), batch["loss_mask"], said)
            self.buffer.values[chosen] = gather(values.cpu(), batch["loss_mask"], said)
        return scores, reference

    def _row(self, i: int) -> Rendered:
        tokens = self.buffer.tokens[i, : self.buffer.lengths[i]].tolist()
        return self.renderer.answered(self.prompts[int(self.buffer.prompts[i])], tokens)

    def _minibatch(self, number: int, place: int) -> list[dict[str, Any]]:
        """The micro-batches of step ``place`` of round ``number``."""
        settings = self.settings
        epoch, part = divmod(place, settings.minibatches)
        order = np.random.default_rng((settings.seed, number, epoch)).permutation(settings.rollouts)
        rows = np.split(order, settings.minibatches)[part].tolist()
        rows.sort(key=lambda i: len(self._row(i)))
        size = settings.micro_batch or len(rows)
        step = []
        for chosen in (rows[i : i + size] for i in range(0, len(rows), size)):
            batch = self.renderer.collate([self._row(i) for i in chosen])
            step.append(self.buffer.attach(batch, chosen, METRICS, fresh=place == 0))
        return step + self._mix(int(self.buffer.lengths[rows].sum()))

    def _mix(self, tokens: int) -> list[dict[str, Any]]:
        """Micro-batches of pretraining material for a step of so many response tokens."""
        if not self.texts:
            return []
        count = self.settings.pretraining_batch
        rows = [self.texts[(self.step * count + i) % len(self.texts)] for i in range(count)]
        scale = torch.tensor(tokens / sum(sum(row.loss_mask[1:]) for row in rows))
        size = self.settings.micro_batch or count
        parts = (rows[i : i + size] for i in range(0, count, size))
        return [{**self.renderer.collate(part), "pretraining.scale": scale} for part in parts]


def share_eye(models: Sequence[PreTrainedModel], rows: Sequence[Rendered]) -> list[Rendered]:
    """Freeze the eyes of all models; where they are one and the same, let it look at every picture only once."""
    eyes = [getattr(model.base_model, name) for model in models for name in TOWERS if hasattr(model.base_model, name)]
    for eye in eyes:
        eye.requires_grad_(False)
    weights = [eye.state_dict() for eye in eyes]
    same = all(torch.equal(weights[0][name], other[name]) for other in weights[1:] for name in weights[0])
    if len(eyes) < len(models) or not same:
        return list(rows)
    for model in models[1:]:
        freeze_eye(model, [])
    return freeze_eye(models[0], rows)


def _seed(seed: int, number: int) -> int:
    """A seed of its own for every round."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
