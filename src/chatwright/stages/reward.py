"""Train a reward model on what people judged and test it on fresh judgements."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from chatwright.data import rankings, steps
from chatwright.data.batches import Batches
from chatwright.data.rankings import Group
from chatwright.data.records import Comparison, Prompt
from chatwright.data.render import Renderer
from chatwright.data.rendered import Rendered
from chatwright.data.steps import Steps
from chatwright.data.store import load
from chatwright.errors import ChatwrightError
from chatwright.evaluation.claims import percent
from chatwright.evaluation.findings import Findings, Table
from chatwright.evaluation.metrics import bootstrap
from chatwright.feedback.agreement import (
    accuracy_ceiling,
    accuracy_ceiling_from_agreement,
    pairwise_agreement,
)
from chatwright.files import write
from chatwright.models.eyes import freeze_eye, restore_eye
from chatwright.models.heads import ProcessRewardModel, RewardModel, score_all
from chatwright.models.load import checkpoint_of, load_model
from chatwright.objectives.feedback.bradley_terry import BradleyTerry
from chatwright.objectives.feedback.likert import Likert
from chatwright.objectives.feedback.mathematics import bradley_terry
from chatwright.objectives.feedback.methods import REWARD, check, make
from chatwright.objectives.feedback.process import Process
from chatwright.stages.base import Stage
from chatwright.training import distributed
from chatwright.training.loop import Training, best_device, fit, to_device


@dataclass
class Reward(Stage):
    """Train a reward model: which of two responses do people prefer?

    Writes ``model/`` (the checkpoint with its score head), ``scores.json`` (accuracy on the held-out comparisons with
    its 95% interval and the ceiling that the annotators' noise allows; for ``process``, on the labels of held-out
    steps; for ``likert``, also how to turn scores into ratings and how far off these are), ``findings.json`` (the
    accuracy, for the report) and ``examples.jsonl`` (the best and the worst scored responses).

    Args:
        model: what the reward model begins as: the fine-tuned model.
        comparisons: to learn from; for ``process``, answers with labels of their steps. heldout: of other prompts, to
            test on.
        method: bradley_terry (who is better), margin (and by how much), likert (how good by number) or process (which
            steps of an answer are right).
        options: numbers in the place of the method's defaults: of ``margin`` the ``scale``, 1/3.
        demonstrations: whose answers score 0 on average; without them the responses ranked first do. The scores of
            ``process`` are probabilities and have no zero to be set.
        batch_size: prompts in a step; all pairs of a prompt, whoever judged them, are learned at once.
        micro_batch: prompts computed at once; 0 for the whole step.
        epochs: passes over the comparisons; more than one overfits (InstructGPT).
        references: how many demonstrations set the zero.
        limit: learn from only the first so many prompts, for process answers; 0 for all.
        max_length: longer responses with their prompts, in tokens, are left out.
        seed: of the head and of the order.
        training: settings of the loop.
    """

    together: ClassVar[bool] = True

    model: str
    comparisons: Path
    heldout: Path
    demonstrations: Path | None = None
    method: str = "bradley_terry"
    options: dict[str, float] = field(default_factory=dict)
    batch_size: int = 8
    micro_batch: int = 0
    epochs: float = 1.0
    references: int = 256
    limit: int = 0
    max_length: int = 1024
    seed: int = 0
    training: Training = field(default_factory=lambda: Training(learning_rate=1e-3))

    def run(self, out: Path) -> None:
        check(REWARD, self.method, self.options)
        torch.manual_seed(self.seed)
        folder = checkpoint_of(self.model)
        renderer = Renderer.load(folder)
        by_step = self.method == "process"
        taught, tested = self._teaching(self._rows(renderer, self.comparisons)), self._rows(renderer, self.heldout)
        taught = taught[: self.limit] if self.limit else taught
        if not tested:
            raise ChatwrightError(f"{self.heldout}: nothing to test on within max_length={self.max_length}; raise it")
        zero = [] if by_step else self._references(renderer)
        backbone = load_model(folder)
        taught, tested, zero = freeze_all(backbone, taught, tested, zero)
        model = ProcessRewardModel(backbone, renderer) if by_step else RewardModel(backbone)
        parts: list[Any] = [model, renderer]
        if self.method == "likert":
            parts.append([rating for group in taught for rating in group.rated])
        objective = make(REWARD, self.method, self.options, *parts)
        size = min(self.batch_size, len(taught))
        passes = max(1, round(self.epochs * len(taught) / size))
        lengths = [max(map(len, group.rows)) for group in taught]
        batch_of = steps.collate if by_step else rankings.collate
        loader = Batches(
            taught, lambda groups: batch_of(renderer, groups), size, passes, self.seed, self.micro_batch, lengths
        )
        fit(objective, loader, self.training, out, "reward")
        if not distributed.first():
            return
        if isinstance(objective, Process):
            scores, answers = self._test_steps(objective, tested)
        else:
            references = zero or [group.rows[group.best] for group in taught[: self.references]]
            with torch.no_grad():
                offset = score_all(objective.model, renderer, references).mean()
                objective.model.head.bias.sub_(offset)
            scores, answers = self._test(objective, tested, float(offset))
        write(out / "scores.json", json.dumps(scores, indent=1))
        write(out / "examples.jsonl", _examples(answers))
        if "accuracy" in scores:
            _findings(scores, self.heldout.stem).save(out)
        restore_eye(backbone)
        objective.save(out / "model")

    def _rows(self, renderer: Renderer, path: Path) -> list[Any]:
        if self.method == "process":
            return steps.render_all(renderer, load(path, Prompt), self.max_length)
        return rankings.render_all(renderer, load(path, Comparison), self.max_length)

    def _teaching(self, rows: list[Any]) -> list[Any]:
        """Those of the rows that teach this method something."""
        if self.method == "process":
            if len({right for answer in rows for right in answer.right}) < 2:
                raise ChatwrightError(
                    f"{self.comparisons}: its steps are all right or all wrong; label right ones 1, wrong ones -1"
                )
            return rows
        if self.method in ("margin", "likert") and not any(group.rated for group in rows):
            raise ChatwrightError(
                f"{self.comparisons}: no comparison has ratings, which {self.method} learns from; write them or use "
                "bradley_terry"
            )
        if self.method == "likert":
            return [group for group in rows if group.rated]
        if not any(group.pairs for group in rows):
            raise ChatwrightError(f"{self.comparisons}: no comparison prefers one response to another; collect more")
        return [group for group in rows if group.pairs]

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

    def _test(
        self, objective: BradleyTerry, tested: list[Group], offset: float
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What goes into ``scores.json`` and ``examples.jsonl``; ``offset`` was taken from all scores."""
        comparisons = load(self.heldout, Comparison)
        parts = score_all(objective.model, objective.renderer, [row for group in tested for row in group.rows]).split(
            [len(group.rows) for group in tested]
        )
        scores: dict[str, Any] = {}
        if any(group.pairs for group in tested):
            scores |= self._test_order(comparisons, tested, parts)
        if isinstance(objective, Likert):
            scores |= _test_ratings(objective, tested, parts, offset)
        seen: set[Any] = set()
        answers = []  # the best and the worst of every prompt
        for group, part in zip(tested, parts, strict=True):
            comparison = comparisons[group.number]
            if comparison.messages not in seen:
                seen.add(comparison.messages)
                for score, place in ((part.max(), part.argmax()), (part.min(), part.argmin())):
                    text = comparison.responses[group.places[int(place)]]
                    answers.append({"row": group.number, "response": text, "score": round(float(score), 4)})
        return scores, answers

    def _test_order(
        self, comparisons: Sequence[Comparison], tested: list[Group], parts: Sequence[Tensor]
    ) -> dict[str, Any]:
        """How many pairs the scores order as people did, and how many they could."""
        people = np.array([_right(scores, group.rankings) for scores, group in zip(parts, tested, strict=True)])
        judged = [(comparisons[group.number].messages, comparisons[group.number].responses) for group in tested]
        scores = _accuracy(people, judged, 0.5)
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
        return scores

    def _test_steps(self, objective: Process, tested: list[Steps]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """As `_test`, of the labels of steps; chance is to give every step the more frequent label."""
        prompts = load(self.heldout, Prompt)
        model, renderer = objective.model, objective.renderer
        with torch.no_grad():
            batches = (to_device(steps.collate(renderer, [answer]), best_device()) for answer in tested)
            right = np.array([[float(part) for part in objective.loss(batch).metrics["accuracy"]] for batch in batches])
        labels = [label for answer in tested for label in answer.right]
        most = max(sum(labels), len(labels) - sum(labels)) / len(labels)
        scores = {**_accuracy(right, [prompts[answer.number].messages for answer in tested], most), "of": "steps"}
        each = score_all(model, renderer, [row for answer in tested for row in answer.rows]).tolist()
        return scores, [
            {"row": answer.number, "response": prompts[answer.number].reference, "score": round(score, 4)}
            for answer, score in zip(tested, each, strict=True)
        ]


def freeze_all(
    model: Any, taught: list[Any], tested: list[Any], references: list[Rendered]
) -> tuple[list[Any], list[Any], list[Rendered]]:
    """`freeze_eye` for all the rows that the stage will need, at once."""
    groups = [*taught, *tested]
    rows = iter(freeze_eye(model, [*(row for group in groups for row in group.rows), *references]))
    groups = [group._replace(rows=[next(rows) for _ in group.rows]) for group in groups]
    return groups[: len(taught)], groups[len(taught) :], list(rows)


def _right(scores: Tensor, rankings: Sequence[Sequence[float]]) -> tuple[float, int]:
    """How many pairs of one prompt the scores order rightly, and how many there are."""
    _, pairs, right = bradley_terry(scores, torch.tensor(rankings).T, torch.zeros(len(scores)))
    return float(right), int(pairs)


def _accuracy(right: np.ndarray, judged: Sequence[Any], chance: float) -> dict[str, Any]:
    """An accuracy with its interval.

    Args:
        right: [N, 2] what was right and what there was, of every row. judged: [N], equal for what is not independent:
            the same responses to the same prompt.
    """
    low, high = bootstrap(right, judged)
    return {
        "accuracy": right[:, 0].sum() / right[:, 1].sum(),
        "low": low,
        "high": high,
        "n": int(right[:, 1].sum()),
        "chance": chance,
    }


def _findings(scores: dict[str, Any], heldout: str) -> Findings:
    """How often the reward model is right, beside chance and what people's agreement allows."""
    rows: list[list[str | float]] = [
        [
            "the reward model",
            percent(scores["accuracy"]),
            f"{percent(scores['low'])}–{percent(scores['high'])}",
            scores["n"],
        ],
        ["chance", percent(scores["chance"]), "", ""],
    ]
    if scores.get("agreement_ceiling") is not None:
        rows.append(["at most, by how far those who judged agree", percent(scores["agreement_ceiling"]), "", ""])
    measured = {"score": scores["accuracy"]} | {key: scores[key] for key in ("low", "high", "n")}
    table = Table(
        "Accuracy", "On judgements of answers that were held out.", ["", "right", "95% interval", "judgements"], rows
    )
    return Findings(
        title=f"A reward model on {heldout}",
        text="Of two answers the one that a person preferred should score higher.",
        numbers=scores | {"accuracy": measured},
        tables=[table],
    )


def _test_ratings(
    objective: Likert, tested: list[Group], parts: Sequence[Tensor], offset: float
) -> dict[str, float | None]:
    """How scores become ratings, and the mean absolute error of these beside that of always saying the mean."""
    zero, unit = objective.mean + objective.deviation * offset, objective.deviation
    pairs = np.array(
        [
            (zero + unit * score, rating)
            for scores, group in zip(parts, tested, strict=True)
            for ratings in group.ratings
            for score, rating in zip(scores.tolist(), ratings, strict=True)
            if not math.isnan(rating)
        ]
    ).reshape(-1, 2)
    said, given = pairs.T
    return {
        "rating_at_zero": zero,
        "rating_per_score": unit,
        "rating_error": float(np.abs(said - given).mean()) if len(given) else None,
        "rating_error_of_mean": float(np.abs(objective.mean - given).mean()) if len(given) else None,
    }


def _examples(answers: list[dict[str, Any]]) -> str:
    """The ten best and the ten worst answers as JSON lines; ``row`` is the prompt's in the held-out file."""
    rows = sorted(answers, key=lambda row: row["score"], reverse=True)
    return "".join(
        json.dumps({"end": end, **row}, ensure_ascii=False) + "\n"
        for end, part in (("best", rows[:10]), ("worst", rows[:-11:-1]))
        for row in part
    )
