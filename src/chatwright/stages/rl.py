"""Reinforcement learning from feedback: PPO and its kin, with or without the pretraining mix."""

import copy
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from chatwright.data.records import Document, Prompt
from chatwright.data.render import Renderer
from chatwright.data.rendered import Rendered
from chatwright.data.store import load
from chatwright.errors import ChatwrightError
from chatwright.feedback.environments import Environment, Tools
from chatwright.feedback.judges import judge_of, members_of
from chatwright.feedback.verifiers import function_of
from chatwright.generation.backends.vllm import VLLM
from chatwright.models.adapters import Adapter, LowRank, adapt
from chatwright.models.eyes import restore_eye, share_eye
from chatwright.models.heads import RewardModel
from chatwright.models.load import checkpoint_of, load_model
from chatwright.objectives.feedback.methods import ONLINE, check, make
from chatwright.stages.answering import Published
from chatwright.stages.base import Stage
from chatwright.stages.experience import RESAMPLES, Experience
from chatwright.stages.workers import render_rows
from chatwright.training import distributed
from chatwright.training.loop import Training, fit


@dataclass
class RL(Stage):
    """Optimise a policy on what it says itself: ppo, grpo, dr_grpo, dapo, rloo, reinforce_pp or online_dpo.

    What a response is worth says a reward model, a plain Python function, or the sum of both. PPO-ptx is ppo with
    ``pretraining``; the other methods take it too. An environment, such as tools that the policy calls, may answer it,
    and it goes on: what is learned is what the policy said in all its turns, and never what the environment did.

    Writes ``model/``. ``metrics.jsonl`` has, beside the losses, of every response: ``score`` (with penalty), and its
    parts ``reward_model`` and ``verifier``; ``reward`` (score and KL cost together); ``gold``; ``kl`` and ``kl_k3``
    (nats a response, from where it began); ``length`` (tokens of all turns); ``unfinished``; ``turns`` (of the policy,
    where there is an environment); ``equal_scores`` (responses to prompts from whose responses nothing is to be
    learned, all being worth the same); and ``entropy``, ``clip_fraction``, ``explained_variance`` (of a critic) and
    ``fresh_log_ratio`` (the largest before any update: zero but for rounding).

    Args:
        model: what the policy begins as, and is kept near to: the fine-tuned model.
        prompts: to answer.
        reward: a reward model, or a list of them, of which the lowest score counts (Coste et al. 2023); the critic
            begins as a copy of the first.
        verifier: a function of a `Prompt` and a text that gives a number, as ``package.module:function`` or
            ``file.py:function``; ``chatwright.data.truth:correct`` checks answers to the questions of the demo.
            A verifier sees what the policy said last, a reward model the whole conversation.
        gold: another such function or reward model, which is reported and never learned from.
        patience: rounds in a row without a better gold before the run ends, the policy then exploiting what it is paid
            for; 0 never ends it.
        method: how to learn; each is described in ``objectives/feedback``.
        options: numbers in the place of the method's defaults, such as ``{kl_coefficient: 0.1, clip: 0.1}``.
        environment: a function of a `Prompt` and the messages since, named as a verifier is, that gives a message of a
            tool or user for the policy to answer, or None where the conversation is over.
        tools: Python functions, named likewise, which the policy may call; `Tools` is the environment then.
        turns: the most that the policy has, where there is an environment.
        pretraining: documents whose next tokens the policy goes on predicting.
        pretraining_coefficient: of that mean cross-entropy. pretraining_batch: documents in a step.
        iterations: rounds of sampling and learning. rollouts: responses sampled in each.
        responses: to each prompt; 0 takes the method's number.
        epochs: passes over them. minibatches: steps in a pass. micro_batch: responses computed at once, 0 for all.
        sampling_batch: responses sampled at once.
        server: URL of a vLLM server that answers for the policy, whose weights it takes from ``state/`` in every round
            (docs/scale.md); empty for the built-in engine.
        max_new_tokens: longest response, all its turns and what the environment says between them; a conversation that
            would be longer is unfinished. temperature: of the sampling and of all probabilities.
        unfinished_penalty: taken from the score of a response that does not come to an end; dapo has its own.
        max_length: longer prompts and documents, in tokens, are left out.
        seed: of the order of the prompts, of the sampling, and of an adapter's first weights.
        adapter: learn that alone instead of the whole model; saved for `peft` in ``adapter/``, and in ``model/``.
        training: settings of the loop. In bf16 the policy also answers in bf16; then the fresh ratio is one only up to
            rounding.
    """

    together: ClassVar[bool] = True

    model: str
    prompts: Path
    reward: str | list[str] = ""
    verifier: str = ""
    gold: str = ""
    patience: int = 0
    method: str = "ppo"
    options: dict[str, float] = field(default_factory=dict)
    environment: str = ""
    tools: str | list[str] = ""
    turns: int = 4
    pretraining: Path | None = None
    pretraining_coefficient: float = 0.5
    pretraining_batch: int = 32
    iterations: int = 20
    rollouts: int = 256
    responses: int = 0
    epochs: int = 1
    minibatches: int = 4
    micro_batch: int = 32
    sampling_batch: int = 128
    server: str = ""
    max_new_tokens: int = 24
    temperature: float = 1.0
    unfinished_penalty: float = 1.0
    max_length: int = 512
    seed: int = 0
    adapter: Adapter = field(default_factory=Adapter)
    training: Training = field(
        default_factory=lambda: Training(learning_rate=2e-4, warmup=0.05, decay="linear", precision="fp32")
    )

    def run(self, out: Path) -> None:
        check(ONLINE, self.method, self.options)
        if not (self.reward or self.verifier):
            raise ChatwrightError("nothing says what a response is worth; name a reward model or a verifier")
        if self.temperature <= 0:
            raise ChatwrightError(f"temperature={self.temperature}: exploring takes a temperature above 0")
        if self.patience and not self.gold:
            raise ChatwrightError(f"patience={self.patience}: nothing says what gold is; name a judge as gold")
        if self.server and self.adapter.method == "prompt":
            raise ChatwrightError(
                "a server cannot take the new tokens of prompt tuning; use lora, or leave server empty"
            )
        self._check_sizes()
        torch.manual_seed(self.seed)
        environment = self._environment()
        folder = checkpoint_of(self.model)
        renderer = self.adapter.prepare(Renderer.load(folder))
        if isinstance(environment, Tools):
            renderer = renderer.with_tools(environment.schemas)
        server = VLLM(self.server, renderer, self.sampling_batch) if self.server else None
        records, prompts = self._prompts(renderer)
        texts = self._texts(renderer)
        policy = load_model(folder)
        named = (self.reward, self.verifier, self.gold)
        judges = [judge_of(name, policy.config, policy.device) if name else None for name in named]
        parts: list[Any] = [policy, renderer, self.temperature, self.pretraining_coefficient]
        scorers = [member for judge in judges for member in members_of(judge)]
        if ONLINE[self.method].has_critic:
            first = members_of(judges[0])
            parts.append(copy.deepcopy(first[0] if first else RewardModel(policy)))
            scorers.append(parts[-1])
        adapted = adapt(policy, renderer, self.adapter) if self.adapter.method else None
        reference = policy if adapted else copy.deepcopy(policy)
        objective = make(ONLINE, self.method, self.options, *parts)
        seeing = [policy, *([] if adapted else [reference]), *(scorer.backbone for scorer in scorers)]
        rows = share_eye(seeing, [*prompts, *texts])
        asked = list(zip(records, rows[: len(prompts)], strict=True))
        as_begun = adapted.disabled if adapted else nullcontext
        plain = adapted.merged if isinstance(adapted, LowRank) else lambda: policy
        published = Published(server, plain, out / "state" / "published") if server else None
        loader = Experience(
            self, objective, reference, judges, asked, rows[len(prompts) :], as_begun, environment, published
        )
        fit(objective, loader, self.training, out, "rl")
        if not distributed.first():
            return
        restore_eye(policy)
        if adapted:
            adapted.finish(out / "adapter")
        objective.save(out / "model")

    @property
    def group(self) -> int:
        """Responses to a prompt."""
        return self.responses or ONLINE[self.method].responses

    def _check_sizes(self) -> None:
        if self.rollouts % self.minibatches:
            raise ChatwrightError(
                f"rollouts={self.rollouts} cannot be split into minibatches={self.minibatches}; use a multiple"
            )
        if self.group < 2 and ONLINE[self.method].grouped:
            raise ChatwrightError(f"{self.method} compares responses to a prompt; use responses=2 or more")
        for name in ("rollouts", "minibatches", "micro_batch"):
            size = self.rollouts // self.minibatches if name == "minibatches" else getattr(self, name)
            if size % self.group:
                raise ChatwrightError(
                    f"{name}={getattr(self, name)} would split the responses={self.group} to a prompt; use a multiple"
                )

    def _environment(self) -> Environment | None:
        tools = [name for name in ([self.tools] if isinstance(self.tools, str) else self.tools) if name]
        if not (tools or self.environment):
            return None
        if tools and self.environment:
            raise ChatwrightError("tools are an environment; name either, and let yours call the tools if it needs to")
        if self.turns < 2:
            raise ChatwrightError(f"turns={self.turns}: the policy could not answer its environment; use 2 or more")
        return Tools([function_of(name) for name in tools]) if tools else function_of(self.environment)

    def _prompts(self, renderer: Renderer) -> tuple[list[Prompt], list[Rendered]]:
        """As many as the run will ask, in the order in which it does."""
        records = load(self.prompts, Prompt)
        rounds = self.iterations * (1 + RESAMPLES * ONLINE[self.method].resamples)
        order = np.random.default_rng(self.seed).permutation(len(records))[: rounds * self.rollouts // self.group]
        asked = [records[int(i)] for i in order]
        rows = render_rows(partial(_prompt, renderer), asked)
        kept = [(record, row) for record, row in zip(asked, rows, strict=True) if len(row) <= self.max_length]
        if not kept:
            raise ChatwrightError(f"{self.prompts}: no prompt within max_length={self.max_length}; raise it")
        return [record for record, _ in kept], [row for _, row in kept]

    def _texts(self, renderer: Renderer) -> list[Rendered]:
        if self.pretraining is None:
            return []
        documents = load(self.pretraining, Document)
        most = self.iterations * self.epochs * self.minibatches * self.pretraining_batch
        order = np.random.default_rng(self.seed).permutation(len(documents))[:most]
        rows = render_rows(renderer.document, [documents[int(i)] for i in order])
        kept = [row for row in rows if len(row) <= self.max_length]
        if not kept:
            raise ChatwrightError(f"{self.pretraining}: no document within max_length={self.max_length}; raise it")
        return kept


def _prompt(renderer: Renderer, record: Prompt) -> Rendered:
    return renderer.prompt(record.messages)
