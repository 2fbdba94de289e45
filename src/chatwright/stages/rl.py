"""Reinforcement learning from feedback: PPO and its kin, with or without the pretraining mix."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from chatwright.data.records import Document, Prompt
from chatwright.data.render import Rendered, Renderer
from chatwright.data.store import load
from chatwright.errors import ChatwrightError
from chatwright.feedback.verifiers import Verifier, function_of
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.models.adapters import Adapter, adapt
from chatwright.models.eyes import TOWERS, freeze_eye, restore_eye
from chatwright.models.heads import RewardEnsemble, RewardModel, load_scorer, score_all
from chatwright.models.load import attention_for, checkpoint_of, load_model, token_logprobs
from chatwright.objectives.feedback.mathematics import explained_variance, kl_k1, kl_k3
from chatwright.objectives.feedback.methods import ONLINE, check, make
from chatwright.objectives.feedback.policy_gradient import PolicyGradient
from chatwright.objectives.feedback.ppo import PPO
from chatwright.objectives.feedback.rollouts import Rollouts, gather
from chatwright.stages.base import Stage
from chatwright.terminal import console
from chatwright.training.loop import Training, best_device, fit, to_device

METRICS = (
    "score", "reward", "reward_model", "verifier", "gold", "kl", "kl_k3", "length", "unfinished", "equal_scores",
    "explained_variance",
)  # fmt: skip
RESAMPLES = 3  # times that other prompts are tried where all responses are worth the same

Judge = RewardModel | RewardEnsemble | Verifier | None


@dataclass
class RL(Stage):
    """Optimise a policy on what it says itself: ppo, grpo, dr_grpo, dapo, rloo, reinforce_pp or online_dpo.

    What a response is worth says a reward model, a plain Python function, or the sum of both. PPO-ptx is ppo with
    ``pretraining``; the other methods take it too.

    Writes ``model/``. ``metrics.jsonl`` has, beside the losses, of every response: ``score`` (with penalty), and its
    parts ``reward_model`` and ``verifier``; ``reward`` (score and KL cost together); ``gold``; ``kl`` and ``kl_k3``
    (nats a response, from where it began); ``length`` (tokens); ``unfinished``; ``equal_scores`` (responses to
    prompts from whose responses nothing is to be learned, all being worth the same); and ``entropy``,
    ``clip_fraction``, ``explained_variance`` (of a critic) and ``fresh_log_ratio`` (the largest before any update: zero
    but for rounding).

    Args:
        model: what the policy begins as, and is kept near to: the fine-tuned model.
        prompts: to answer.
        reward: a reward model, or a list of them, of which the lowest score counts (Coste et al. 2023); the critic
            begins as a copy of the first.
        verifier: a function of a `Prompt` and a text that gives a number, as ``package.module:function`` or
            ``file.py:function``; ``chatwright.data.truth:correct`` checks answers to the questions of the demo.
        gold: another such function or reward model, which is reported and never learned from.
        patience: rounds in a row without a better gold before the run ends, the policy then exploiting what it is paid
            for; 0 never ends it.
        method: how to learn; each is described in ``objectives/feedback``.
        options: numbers in the place of the method's defaults, such as ``{kl_coefficient: 0.1, clip: 0.1}``.
        pretraining: documents whose next tokens the policy goes on predicting.
        pretraining_coefficient: of that mean cross-entropy. pretraining_batch: documents in a step.
        iterations: rounds of sampling and learning. rollouts: responses sampled in each.
        responses: to each prompt; 0 takes the method's number.
        epochs: passes over them. minibatches: steps in a pass. micro_batch: responses computed at once, 0 for all.
        sampling_batch: responses sampled at once.
        max_new_tokens: longest response. temperature: of the sampling and of all probabilities.
        unfinished_penalty: taken from the score of a response that does not come to an end.
        max_length: longer prompts and documents, in tokens, are left out.
        seed: of the order of the prompts, of the sampling, and of an adapter's first weights.
        adapter: learn that alone instead of the whole model; saved for `peft` in ``adapter/``, and in ``model/``.
        training: settings of the loop. In any precision but fp32 the fresh ratio is one only up to rounding.
    """

    model: str
    prompts: Path
    reward: str | list[str] = ""
    verifier: str = ""
    gold: str = ""
    patience: int = 0
    method: str = "ppo"
    options: dict[str, float] = field(default_factory=dict)
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
        self._check_sizes()
        torch.manual_seed(self.seed)
        folder = checkpoint_of(self.model)
        renderer = self.adapter.prepare(Renderer.load(folder))
        records, prompts = self._prompts(renderer)
        texts = self._texts(renderer)
        attention = attention_for([len(prompt) + self.max_new_tokens for prompt in prompts])
        policy = load_model(folder, attention=attention)
        judges = [self._judge_of(name, policy, attention) for name in (self.reward, self.verifier, self.gold)]
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
        loader = Experience(self, objective, reference, judges, asked, rows[len(prompts) :], as_begun)
        fit(objective, loader, self.training, out, "rl")
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

    def _judge_of(self, name: str | list[str], policy: PreTrainedModel, attention: str) -> Judge:
        if not name:
            return None
        if isinstance(name, str) and ":" in name:
            return function_of(name)
        scorer = load_scorer(name, attention)
        words = len(policy.get_input_embeddings().weight)
        if any(len(member.backbone.get_input_embeddings().weight) != words for member in members_of(scorer)):
            raise ChatwrightError(f"{name}: has another vocabulary than {self.model}; train it from that model")
        return scorer

    def _prompts(self, renderer: Renderer) -> tuple[list[Prompt], list[Rendered]]:
        """As many as the run will ask, in the order in which it does."""
        records = load(self.prompts, Prompt)
        rounds = self.iterations * (1 + RESAMPLES * ONLINE[self.method].resamples)
        order = np.random.default_rng(self.seed).permutation(len(records))[: rounds * self.rollouts // self.group]
        asked = [(records[int(i)], renderer.prompt(records[int(i)].messages)) for i in order]
        kept = [(record, row) for record, row in asked if len(row) <= self.max_length]
        if not kept:
            raise ChatwrightError(f"{self.prompts}: no prompt within max_length={self.max_length}; raise it")
        return [record for record, _ in kept], [row for _, row in kept]

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

    Args:
        judges: the reward model, the verifier and the gold, each None where there is none.
        prompts: records with their rows. texts: pretraining material.
        as_begun: within it the reference is what the policy began as; for a policy that is its own reference.
    """

    def __init__(
        self,
        settings: RL,
        objective: PolicyGradient,
        reference: PreTrainedModel,
        judges: Sequence[Judge],
        prompts: Sequence[tuple[Prompt, Rendered]],
        texts: Sequence[Rendered],
        as_begun: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.settings, self.objective, self.prompts, self.texts = settings, objective, prompts, texts
        self.as_begun = as_begun
        self.device = best_device()
        self.reference = reference.to(self.device).eval()
        self.judges = [
            judge.to(self.device).eval() if isinstance(judge, torch.nn.Module) else judge for judge in judges
        ]
        self.renderer = objective.renderer
        self.buffer = Rollouts.empty(settings.rollouts, settings.max_new_tokens, len(METRICS), settings.group)
        self.per_round = settings.epochs * settings.minibatches
        absent = {name for name, judge in zip(METRICS[2:5], judges, strict=True) if judge is None}
        absent |= set() if objective.has_critic else {"explained_variance"}
        self.reported = ["" if name in absent else name for name in METRICS]
        self.step = 0
        self.best_gold = torch.tensor(-torch.inf)
        self.rounds_since = 0

    def __len__(self) -> int:
        return self.settings.iterations * self.per_round

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        while self.step < len(self):
            number, place = divmod(self.step, self.per_round)
            if place == 0:
                self._explore(number)
                if self._hacking():
                    console.print(f"rl: ended after {number} rounds: gold has not risen for {self.rounds_since} rounds")
                    return
            step = self._minibatch(number, place)
            self.step += 1
            yield step

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "best_gold": self.best_gold,
            "rounds_since": self.rounds_since,
            **self.buffer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.rounds_since = int(state["step"]), int(state["rounds_since"])
        self.best_gold = state["best_gold"].clone()
        self.buffer.load_state_dict({name: state[name] for name in self.buffer.state_dict()})

    def _hacking(self) -> bool:
        """Whether gold has stopped rising while the policy learns what it is paid for."""
        gold = self.buffer.metrics[:, METRICS.index("gold")].mean()
        self.rounds_since = 0 if gold > self.best_gold else self.rounds_since + 1
        self.best_gold = torch.maximum(self.best_gold, gold)
        return 0 < self.settings.patience <= self.rounds_since

    def _explore(self, number: int) -> None:
        """Fill the buffer: answers to the prompts of round ``number`` with all that the method has to know of them."""
        settings, buffer, group = self.settings, self.buffer, self.settings.group
        asked = settings.rollouts // group
        buffer.prompts[:] = torch.arange(number * asked, (number + 1) * asked).repeat_interleave(group)
        buffer.prompts.remainder_(len(self.prompts))
        parts = torch.zeros(3, settings.rollouts)
        unfinished, rows = torch.zeros(settings.rollouts), torch.arange(settings.rollouts)
        for attempt in range(1 + RESAMPLES * self.objective.resamples):
            if attempt:
                others = np.random.default_rng((settings.seed, number, attempt)).integers(
                    len(self.prompts), size=len(rows) // group
                )
                buffer.prompts[rows] = torch.from_numpy(others).repeat_interleave(group)
            texts = self._answer(rows, number, attempt, unfinished)
            parts[:, rows] = self._score(rows, texts)
            scores = parts[0] + parts[1] - settings.unfinished_penalty * unfinished
            equal = (scores.view(-1, group).amax(1) == scores.view(-1, group).amin(1)).repeat_interleave(group)
            rows = equal.nonzero().squeeze(1)
            if not len(rows):
                break
        mask = buffer.mask
        self._look_back(mask)
        kl = torch.where(mask, kl_k1(buffer.logprobs, buffer.reference), 0.0)
        total = self.objective.credit(buffer, scores, kl)
        explained = explained_variance(buffer.values, buffer.returns, mask)
        k3 = torch.where(mask, kl_k3(buffer.logprobs, buffer.reference), 0.0).sum(1)
        reported = (
            scores, total, *parts, kl.sum(1), k3, buffer.lengths.float(), unfinished, equal.float() * (group > 1),
            explained.expand_as(total),
        )  # fmt: skip
        buffer.metrics[:] = torch.stack(reported, 1)

    def _answer(self, rows: Tensor, number: int, attempt: int, unfinished: Tensor) -> list[str]:
        """Let the policy answer the prompts of the buffer's ``rows``."""
        settings, buffer = self.settings, self.buffer
        sampling = Sampling(
            settings.max_new_tokens,
            settings.temperature,
            seed=_seed(settings.seed, number, *([attempt] if attempt else [])),
        )
        engine = Engine(self.objective.policy, self.renderer, settings.sampling_batch)
        prompts = [self.prompts[int(i)][1] for i in buffer.prompts[rows][:: settings.group]]
        completions = [answer for answers in engine.generate(prompts, sampling, settings.group) for answer in answers]
        buffer.logprobs[rows] = 0
        for row, completion in zip(rows.tolist(), completions, strict=True):
            length = len(completion.tokens)
            buffer.lengths[row] = length
            buffer.tokens[row, :length] = torch.tensor(completion.tokens)
            buffer.logprobs[row, :length] = torch.tensor(completion.logprobs)
            unfinished[row] = completion.finish_reason == "length"
        return [completion.text for completion in completions]

    def _score(self, rows: Tensor, texts: Sequence[str]) -> Tensor:
        """[3, rows]: what reward model, verifier and gold say of the buffer's ``rows``; 0 where there is none."""
        found = torch.zeros(3, len(rows))
        for place, judge in enumerate(self.judges):
            if isinstance(judge, RewardModel | RewardEnsemble):
                size = self.settings.micro_batch or 64
                found[place] = score_all(judge, self.renderer, [self._row(int(i)) for i in rows], size)
            elif judge is not None:
                asked = [self.prompts[int(i)][0] for i in self.buffer.prompts[rows]]
                found[place] = torch.tensor([float(judge(*pair)) for pair in zip(asked, texts, strict=True)])
        return found

    @torch.no_grad()
    def _look_back(self, mask: Tensor) -> None:
        """Fill in what the reference and, where there is one, the critic say of every token of the buffer."""
        rows = [self._row(i) for i in range(len(mask))]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        size = self.settings.micro_batch or 64
        for chosen in (order[i : i + size] for i in range(0, len(order), size)):
            batch = self.renderer.collate([rows[i] for i in chosen])
            inputs, said = to_device(batch, self.device), mask[chosen]
            with self.as_begun():
                logprobs, _ = token_logprobs(self.reference, inputs, self.settings.temperature, self.renderer.unsaid)
            self.buffer.reference[chosen] = gather(logprobs.cpu(), batch["loss_mask"], said)
            if isinstance(self.objective, PPO):
                values = self.objective.critic.values(inputs)
                self.buffer.values[chosen] = gather(values.cpu(), batch["loss_mask"], said)

    def _row(self, i: int) -> Rendered:
        tokens = self.buffer.tokens[i, : self.buffer.lengths[i]].tolist()
        return self.renderer.answered(self.prompts[int(self.buffer.prompts[i])][1], tokens)

    def _minibatch(self, number: int, place: int) -> list[dict[str, Any]]:
        """The micro-batches of step ``place`` of round ``number``; responses to a prompt stay together."""
        settings, group = self.settings, self.settings.group
        epoch, part = divmod(place, settings.minibatches)
        order = np.random.default_rng((settings.seed, number, epoch)).permutation(settings.rollouts // group)
        asked = np.split(order, settings.minibatches)[part].tolist()
        asked.sort(key=lambda i: max(len(self._row(row)) for row in range(i * group, (i + 1) * group)))
        rows = [row for i in asked for row in range(i * group, (i + 1) * group)]
        size = settings.micro_batch or len(rows)
        step = []
        for chosen in (rows[i : i + size] for i in range(0, len(rows), size)):
            batch = self.renderer.collate([self._row(i) for i in chosen])
            step.append(self.buffer.attach(batch, chosen, self.reported, fresh=place == 0))
        return step + self._mix(float(self.objective.weight(self.buffer.mask[rows])))

    def _mix(self, weight: float) -> list[dict[str, Any]]:
        """Micro-batches of pretraining material for a step whose rollouts weigh ``weight``."""
        if not self.texts:
            return []
        count = self.settings.pretraining_batch
        rows = [self.texts[(self.step * count + i) % len(self.texts)] for i in range(count)]
        scale = torch.tensor(weight / sum(sum(row.loss_mask[1:]) for row in rows))
        size = self.settings.micro_batch or count
        parts = (rows[i : i + size] for i in range(0, count, size))
        return [{**self.renderer.collate(part), "pretraining.scale": scale} for part in parts]


def members_of(judge: Judge) -> list[RewardModel]:
    """The reward models that a judge consists of."""
    if isinstance(judge, RewardEnsemble):
        return [cast(RewardModel, member) for member in judge.members]
    return [judge] if isinstance(judge, RewardModel) else []


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


def _seed(*numbers: int) -> int:
    """A seed of its own for every round and attempt."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
