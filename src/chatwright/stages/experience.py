"""The loader of reinforcement learning: what the policy says, judged, becomes minibatches."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from chatwright.data.batches import share_of
from chatwright.data.records import Prompt
from chatwright.data.rendered import Rendered
from chatwright.feedback.environments import Environment
from chatwright.feedback.judges import Judge, scores_of
from chatwright.generation.backend import Backend
from chatwright.generation.conversation import Conversation, converse
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.models.outputs import token_logprobs
from chatwright.models.precision import cast
from chatwright.objectives.feedback.mathematics import explained_variance, kl_k1, kl_k3
from chatwright.objectives.feedback.policy_gradient import PolicyGradient
from chatwright.objectives.feedback.ppo import PPO
from chatwright.objectives.feedback.rollouts import Rollouts, gather
from chatwright.stages.answering import Published
from chatwright.terminal import console
from chatwright.training import distributed
from chatwright.training.loop import best_device, to_device

if TYPE_CHECKING:
    from chatwright.stages.rl import RL

METRICS = (
    "score", "reward", "reward_model", "verifier", "gold", "kl", "kl_k3", "length", "unfinished", "turns",
    "equal_scores", "explained_variance",
)  # fmt: skip
T = TypeVar("T")
RESAMPLES = 3  # times that other prompts are tried where all responses are worth the same


class Experience:
    """The loop's loader: lets the policy answer, judges the answers, and deals them out as minibatches.

    The prompts, the sampling and the order of minibatches follow from the seed and the number of the round alone; the
    rollouts of the round under way are part of the state, so a resumed run goes on with the very same.

    Trained in bf16, the policy also answers in bf16, and the answers are judged so: what they are learned from are the
    log-probabilities of exactly the distribution that they were drawn from.

    Several processes divide the prompts of a round among themselves. Then all know all rollouts: what is computed over
    the whole round (advantages, their whitening) each computes for itself.

    Args:
        judges: the reward model, the verifier and the gold, each None where there is none.
        prompts: records with their rows. texts: pretraining material.
        as_begun: within it the reference is what the policy began as; for a policy that is its own reference.
        environment: what answers the policy between its turns.
        published: the policy on a server, which answers in its place.
    """

    def __init__(
        self,
        settings: "RL",
        objective: PolicyGradient,
        reference: PreTrainedModel,
        judges: Sequence[Judge | None],
        prompts: Sequence[tuple[Prompt, Rendered]],
        texts: Sequence[Rendered],
        as_begun: Callable[[], AbstractContextManager[None]] = nullcontext,
        environment: Environment | None = None,
        published: Published | None = None,
    ) -> None:
        self.settings, self.objective, self.prompts, self.texts = settings, objective, prompts, texts
        self.as_begun, self.environment, self.published = as_begun, environment, published
        self.device = best_device()
        precision = settings.training.precision
        self.bf16 = precision == "bf16" or (precision == "auto" and self.device.type != "cpu")
        self.reference = reference.to(self.device).eval()
        self.judges = [
            judge.to(self.device).eval() if isinstance(judge, torch.nn.Module) else judge for judge in judges
        ]
        self.renderer = objective.renderer
        self.buffer = Rollouts.empty(settings.rollouts, settings.max_new_tokens, len(METRICS), settings.group)
        self.per_round = settings.epochs * settings.minibatches
        absent = {name for name, judge in zip(METRICS[2:5], judges, strict=True) if judge is None}
        absent |= set() if objective.has_critic else {"explained_variance"}
        absent |= set() if environment else {"turns"}
        self.reported = ["" if name in absent else name for name in METRICS]
        self.step, self.rank, self.processes = 0, 0, 1
        self.best_gold = torch.tensor(-torch.inf)
        self.rounds_since = 0

    def __len__(self) -> int:
        return self.settings.iterations * self.per_round

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        while self.step < len(self):
            number, place = divmod(self.step, self.per_round)
            if place == 0:
                with self.objective.whole(), torch.autocast(self.device.type, torch.bfloat16, self.bf16):
                    self._explore(number)
                if self._hacking():
                    console.print(f"rl: ended after {number} rounds: gold has not risen for {self.rounds_since} rounds")
                    return
            step = self._minibatch(number, place)
            self.step += 1
            yield step

    def share(self, rank: int, size: int) -> None:
        """Answer, and yield from now on, only what falls to process ``rank`` of ``size``."""
        self.rank, self.processes = rank, size

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
        parts, rows = torch.zeros(3, settings.rollouts), torch.arange(settings.rollouts)
        penalty = 0 if self.objective.punishes_length else settings.unfinished_penalty
        unfinished, turns = torch.zeros(2, settings.rollouts)
        if self.published:
            with self._as_answering():
                self.published.update(number)
        for attempt in range(1 + RESAMPLES * self.objective.resamples):
            if attempt:
                others = np.random.default_rng((settings.seed, number, attempt)).integers(
                    len(self.prompts), size=len(rows) // group
                )
                buffer.prompts[rows] = torch.from_numpy(others).repeat_interleave(group)
            mine = self._share_of(rows)
            for some, said in self._answers(mine, number, attempt):
                unfinished[some] = torch.tensor([float(not one.finished) for one in said])
                turns[some] = torch.tensor([float(sum(turn.role == "assistant" for turn in one.turns)) for one in said])
                parts[:, some] = self._score(some, [one.text for one in said])
            for known in (unfinished, turns, parts.T, *buffer.said()):
                _exchange(known, rows, mine)
            scores = parts[0] + parts[1] - penalty * unfinished
            equal = (scores.view(-1, group).amax(1) == scores.view(-1, group).amin(1)).repeat_interleave(group)
            rows = equal.nonzero().squeeze(1)
            if not len(rows):
                break
        self._look_back()
        mask = buffer.mask
        kl = torch.where(mask, kl_k1(buffer.logprobs, buffer.reference), 0.0)
        total = self.objective.credit(buffer, scores, kl)
        explained = explained_variance(buffer.values, buffer.returns, mask)
        k3 = torch.where(mask, kl_k3(buffer.logprobs, buffer.reference), 0.0).sum(1)
        reported = (
            scores, total, *parts, kl.sum(1), k3, buffer.lengths.float(), unfinished, turns,
            equal.float() * (group > 1), explained.expand_as(total),
        )  # fmt: skip
        buffer.metrics[:] = torch.stack(reported, 1)

    def _share_of(self, rows: Tensor) -> Tensor:
        """Those of the buffer's ``rows`` that this process answers."""
        return self._dealt(rows, self.processes)[self.rank]

    def _dealt(self, rows: Tensor, count: int) -> list[Tensor]:
        """The buffer's ``rows`` dealt out among so many; all to the same prompt, which differ only by their number
        among them, stay together."""
        names = [self.prompts[int(i)][1].digest for i in self.buffer.prompts[rows]]
        turn = {name: place % count for place, name in enumerate(dict.fromkeys(names))}
        return [rows[[turn[name] == one for name in names]] for one in range(count)]

    def _answers(self, rows: Tensor, number: int, attempt: int) -> Iterator[tuple[Tensor, list[Conversation]]]:
        """Let the policy answer the prompts of the buffer's ``rows``; gives them with what was said, part by part.

        A server goes on writing while a part is judged. What belongs to a part does not depend on when it arrives, so
        a judge reads the same rows together every time.
        """
        settings, buffer = self.settings, self.buffer
        sampling = Sampling(
            settings.max_new_tokens,
            settings.temperature,
            seed=_seed(settings.seed, number, *([attempt] if attempt else [])),
        )

        def said_by(backend: Backend, some: Tensor) -> list[Conversation]:
            asked = [self.prompts[int(i)] for i in buffer.prompts[some][:: settings.group]]
            return converse(backend, asked, sampling, settings.group, self.environment, settings.turns)

        def kept(some: Tensor, said: list[Conversation]) -> tuple[Tensor, list[Conversation]]:
            for row, one in zip(some.tolist(), said, strict=True):
                buffer.put(row, one.tokens, one.said, one.logprobs)
            return some, said

        if self.published:
            server = self.published.server
            # An environment is the user's code, which need not bear being asked by several at once.
            count = 1 if self.environment else -(-len(rows) // (settings.micro_batch or 64))
            dealt = [some for some in self._dealt(rows, count) if len(some)]
            with ThreadPoolExecutor(max(count, 1)) as threads:
                yield from map(kept, dealt, threads.map(partial(said_by, server), dealt))
        else:
            with self._as_answering(), torch.autocast(self.device.type, enabled=False):
                said = said_by(Engine(self.objective.policy, self.renderer, settings.sampling_batch), rows)
            yield kept(rows, said)

    def _as_answering(self) -> AbstractContextManager[None]:
        """Within it the policy has the weights that it answers with."""
        return cast(self.objective.policy, torch.bfloat16) if self.bf16 else nullcontext()

    def _score(self, rows: Tensor, texts: Sequence[str]) -> Tensor:
        """[3, rows]: what reward model, verifier and gold say of the buffer's ``rows``; 0 where there is none."""
        found = torch.zeros(3, len(rows))
        answers = [self._row(int(i)) for i in rows]
        asked = [self.prompts[int(i)][0] for i in self.buffer.prompts[rows]]
        for place, judge in enumerate(self.judges):
            if judge is not None:
                size = self.settings.micro_batch or 64
                found[place] = scores_of(judge, self.renderer, answers, asked, texts, size)
        return found

    @torch.no_grad()
    def _look_back(self) -> None:
        """Fill in what the reference and, where there is one, the critic say of every token that the policy said."""
        rows = [self._row(i) for i in range(len(self.buffer.tokens))]
        everything = torch.arange(len(rows))
        mine = self._share_of(everything)
        size = self.settings.micro_batch or 64
        for chosen in mine.split(size) if len(mine) else ():
            batch = self.renderer.collate([rows[int(i)] for i in chosen])
            inputs, said = to_device(batch, self.device), self.buffer.mask[chosen]
            with self.as_begun():
                logprobs, _ = token_logprobs(self.reference, inputs, self.settings.temperature, self.renderer.unsaid)
            self.buffer.reference[chosen] = gather(logprobs.cpu(), batch["loss_mask"], said)
            if isinstance(self.objective, PPO):
                values = self.objective.critic.values(inputs)
                self.buffer.values[chosen] = gather(values.float().cpu(), batch["loss_mask"], said)
        for known in (self.buffer.reference, self.buffer.values):
            _exchange(known, everything, mine)

    def _row(self, i: int) -> Rendered:
        buffer, length = self.buffer, self.buffer.lengths[i]
        tokens, said = buffer.tokens[i, :length].tolist(), buffer.mask[i, :length].tolist()
        return self.renderer.answered(self.prompts[int(buffer.prompts[i])][1], tokens, said)

    def _minibatch(self, number: int, place: int) -> list[dict[str, Any]]:
        """The micro-batches of step ``place`` of round ``number``; responses to a prompt stay together."""
        settings, group = self.settings, self.settings.group
        epoch, part = divmod(place, settings.minibatches)
        order = np.random.default_rng((settings.seed, number, epoch)).permutation(settings.rollouts // group)
        asked = np.split(order, settings.minibatches)[part].tolist()
        asked.sort(key=lambda i: max(len(self._row(row)) for row in range(i * group, (i + 1) * group)))
        rows = [row for i in asked for row in range(i * group, (i + 1) * group)]
        size = settings.micro_batch or -(-len(asked) // self.processes) * group
        step = []
        for chosen, marks in self._shares(rows, size):
            batch = self.renderer.collate([self._row(i) for i in chosen])
            step.append(self.buffer.attach(batch, chosen, self.reported, fresh=place == 0) | marks)
        return step + self._mix(float(self.objective.weight(self.buffer.mask[rows])))

    def _mix(self, weight: float) -> list[dict[str, Any]]:
        """Micro-batches of pretraining material for a step whose rollouts weigh ``weight``."""
        if not self.texts:
            return []
        count = self.settings.pretraining_batch
        rows = [self.texts[(self.step * count + i) % len(self.texts)] for i in range(count)]
        scale = torch.tensor(weight / sum(sum(row.loss_mask[1:]) for row in rows))
        size = self.settings.micro_batch or -(-count // self.processes)
        return [
            {**self.renderer.collate(part), "pretraining.scale": scale, **marks}
            for part, marks in self._shares(rows, size)
        ]

    def _shares(self, rows: Sequence[T], size: int) -> list[tuple[Sequence[T], dict[str, bool]]]:
        """The micro-batches of ``size`` that fall to this process."""
        return share_of([rows[i : i + size] for i in range(0, len(rows), size)], self.rank, self.processes)


def _exchange(known: Tensor, rows: Tensor, mine: Tensor) -> None:
    """Fill in ``rows`` of what is known about all, of which this process has found out those that are ``mine``."""
    found = torch.zeros_like(known, dtype=torch.float64)
    found[mine] = known[mine].double()
    known[rows] = distributed.total(found)[rows].to(known.dtype)


def _seed(*numbers: int) -> int:
    """A seed of its own for every round and attempt."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
