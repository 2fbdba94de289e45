"""Train a reward model on comparisons and test it on fresh ones."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chatwright.data.batches import Batches
from chatwright.data.rankings import Group, collate, render_all
from chatwright.data.records import Comparison, Prompt
from chatwright.data.render import Rendered, Renderer
from chatwright.data.store import load
from chatwright.errors import ChatwrightError
from chatwright.feedback.agreement import (
    accuracy_ceiling,
    accuracy_ceiling_from_agreement,
    pairwise_agreement,
)
from chatwright.files import write
from chatwright.models.eyes import freeze_eye, restore_eye
from chatwright.models.heads import RewardModel, score_all
from chatwright.models.load import attention_for, checkpoint_of, load_model
from chatwright.objectives.feedback.bradley_terry import BradleyTerry
from chatwright.objectives.feedback.mathematics import bradley_terry
from chatwright.stages.base import Stage
from chatwright.training.loop import Training, fit


@dataclass
class Reward(Stage):
    """Train a reward model: which of two responses do people prefer?

    Writes ``model/`` (the checkpoint with its score head), ``scores.json`` (accuracy on the held-out comparisons with
    its 95% interval and the ceiling that the annotators' noise allows) and ``examples.jsonl`` (the best and the worst
    scored responses).

    Args:
        model: what the reward model begins as: the fine-tuned model.
        comparisons: to learn from. heldout: of other prompts, to test on.
        demonstrations: whose answers score 0 on average; without them the responses ranked first do.
        batch_size: prompts in a step; all pairs of a prompt, whoever judged them, are learned at once.
        micro_batch: prompts computed at once; 0 for the whole step.
        epochs: passes over the comparisons; more than one overfits (InstructGPT).
        references: how many demonstrations set the zero.
        max_length: longer responses with their prompts, in tokens, are left out.
        seed: of the head and of the order.
        training: settings of the loop.
    """

    model: str
    comparisons: Path
    heldout: Path
    demonstrations: Path | None = None
    batch_size: int = 8
    micro_batch: int = 0
    epochs: float = 1.0
    references: int = 256
    max_length: int = 1024
    seed: int = 0
    training: Training = field(default_factory=lambda: Training(learning_rate=1e-3))

    def run(self, out: Path) -> None:
        torch.manual_seed(self.seed)
        folder = checkpoint_of(self.model)
        renderer = Renderer.load(folder)
        taught = [g for g in render_all(renderer, load(self.comparisons, Comparison), self.max_length) if g.pairs]
        if not taught:
            raise ChatwrightError(f"{self.comparisons}: no comparison prefers one response to another; collect more")
        tested = render_all(renderer, load(self.heldout, Comparison), self.max_length)
        zero = self._references(renderer)
        backbone = load_model(folder, attention=attention_for([max(map(len, group.rows)) for group in taught]))
        taught, tested, zero = freeze_all(backbone, taught, tested, zero)
        objective = BradleyTerry(RewardModel(backbone), renderer)
        size = min(self.batch_size, len(taught))
        steps = max(1, round(self.epochs * len(taught) / size))
        lengths = [max(map(len, group.rows)) for group in taught]
        loader = Batches(
            taught, lambda groups: collate(renderer, groups), size, steps, self.seed, self.micro_batch, lengths
        )
        fit(objective, loader, self.training, out, "reward")
        model = objective.model
        references = zero or [group.rows[group.best] for group in taught[: self.references]]
        with torch.no_grad():
            model.head.bias.sub_(score_all(model, renderer, references).mean())
        self._test(model, renderer, tested, out)
        restore_eye(backbone)
        objective.save(out / "model")

    def _references(self, renderer: Renderer) -> list[Rendered]:
        if self.demonstrations is None:
            return []
        prompts = load(self.demonstrations, Prompt)
        chosen = np.random.default_rng(self.seed).permutation(len(prompts))[: self.references]
        rows = [
            renderer.answered(renderer.prompt(prompt.messages), renderer.answer(prompt.reference))
            for prompt in (prompts[int(i)] for i in chosen)
            if prompt.reference
        ]
        return [row for row in rows if len(row) <= self.max_length]

    def _test(self, model: RewardModel, renderer: Renderer, tested: list[Group], out: Path) -> None:
        comparisons = load(self.heldout, Comparison)
        parts = score_all(model, renderer, [row for group in tested for row in group.rows]).split(
            [len(group.rows) for group in tested]
        )
        people = np.array([_right(scores, group.rankings) for scores, group in zip(parts, tested, strict=True)])
        numbers: dict[Any, int] = {}
        low, high = _interval(people, [numbers.setdefault(comparisons[g.number].messages, g.number) for g in tested])
        scores: dict[str, Any] = {
            "accuracy": people[:, 0].sum() / people[:, 1].sum(),
            "low": low,
            "high": high,
            "n": int(people[:, 1].sum()),
            "chance": 0.5,
        }
        utilities = [group.utilities for group in tested if group.utilities]
        if utilities:
            gold = np.array(
                [_right(s, [[-u for u in g.utilities]]) for s, g in zip(parts, tested, strict=True) if g.utilities]
            )
            scores["agreement_ceiling"] = accuracy_ceiling(utilities, comparisons[tested[0].number].meta["noise"])
            scores["gold_accuracy"] = gold[:, 0].sum() / gold[:, 1].sum()
        else:
            agreement, judged_twice = pairwise_agreement(comparisons)
            scores["agreement_ceiling"] = accuracy_ceiling_from_agreement(agreement) if judged_twice else None
        write(out / "scores.json", json.dumps(scores, indent=1))
        write(out / "examples.jsonl", "".join(self._examples(comparisons, tested, parts)))

    def _examples(self, comparisons: Sequence[Comparison], tested: list[Group], parts: Sequence[Tensor]) -> list[str]:
        """The ten best and the ten worst responses, one a prompt; ``row`` is the prompt's in the held-out file."""
        seen: set[Any] = set()
        rows: list[dict[str, Any]] = []
        for group, scores in zip(tested, parts, strict=True):
            comparison = comparisons[group.number]
            if comparison.messages not in seen:
                seen.add(comparison.messages)
                for score, place in ((scores.max(), scores.argmax()), (scores.min(), scores.argmin())):
                    text = comparison.responses[group.places[int(place)]]
                    rows.append({"row": group.number, "response": text, "score": round(float(score), 4)})
        rows.sort(key=lambda row: row["score"], reverse=True)
        return [
            json.dumps({"end": end, **row}, ensure_ascii=False) + "\n"
            for end, part in (("best", rows[:10]), ("worst", rows[:-11:-1]))
            for row in part
        ]


def freeze_all(
    model: Any, taught: list[Group], tested: list[Group], references: list[Rendered]
) -> tuple[list[Group], list[Group], list[Rendered]]:
    """`freeze_eye` for all the rows that the stage will need, at once."""
    groups = [*taught, *tested]
    rows = iter(freeze_eye(model, [*(row for group in groups for row in group.rows), *references]))
    groups = [group._replace(rows=[next(rows) for _ in group.rows]) for group in groups]
    return groups[: len(taught)], groups[len(taught) :], list(rows)


def _right(scores: Tensor, rankings: Sequence[Sequence[float]]) -> tuple[float, int]:
    """How many pairs of one prompt the scores order rightly, and how many there are."""
    _, pairs, right = bradley_terry(scores, torch.tensor(rankings).T, torch.zeros(len(scores)))
    return float(right), int(pairs)


def _interval(right: np.ndarray, prompts: Sequence[int], draws: int = 1000) -> tuple[float, float]:
    """95% bootstrap interval of an accuracy; whole prompts are drawn, as pairs of one prompt are not independent.

    Args:
        right: [N, 2] right pairs and pairs of every comparison. prompts: [N], the same number for the same prompt.
    """
    _, place = np.unique(prompts, return_inverse=True)
    by_prompt = np.zeros((place.max() + 1, 2))
    np.add.at(by_prompt, place, right)
    chosen = np.random.default_rng(0).integers(len(by_prompt), size=(draws, len(by_prompt)))
    sums = by_prompt[chosen].sum(1)
    low, high = np.percentile(sums[:, 0] / np.maximum(1, sums[:, 1]), [2.5, 97.5])
    return float(low), float(high)
