"""Collect comparisons from simulated annotators: the model's own responses, ranked as people would rank them.

InstructGPT's second step (Ouyang et al. 2022) with annotators of measured unreliability in the place of people: what
they write is the same `Comparison` record, so that comparisons by people take the same path from here on. A ``judge``
that says what is good makes it the set-up of Gao et al. 2022, "Scaling Laws for Reward Model Overoptimization",
https://arxiv.org/abs/2210.10760: a gold reward model plays the people, and what is learned from them can be measured.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import AutoConfig

from chatwright.data.records import Comparison, Prompt
from chatwright.data.store import load, save
from chatwright.errors import ChatwrightError
from chatwright.feedback.agreement import accuracy_ceiling, pairwise_agreement
from chatwright.feedback.annotators import SimulatedAnnotator, calibrate, utility
from chatwright.feedback.judges import Judge, judge_of, scores_of
from chatwright.files import write
from chatwright.generation.backend import Backend
from chatwright.generation.sampling import Sampling
from chatwright.models.load import checkpoint_of
from chatwright.stages.answering import backend_of
from chatwright.stages.base import Stage
from chatwright.stages.chunks import Worker, in_chunks
from chatwright.training import distributed
from chatwright.training.loop import best_device

AGAIN = 1.5  # how much hotter the second draw is, for prompts whose first gave the same answer more than once


@dataclass
class Annotate(Stage):
    """Sample responses to every prompt and have simulated annotators rank them.

    Writes ``comparisons.parquet``, ``comparisons_heldout.parquet`` of other prompts, each by all annotators, and
    ``agreement.json``.

    Args:
        model: a checkpoint, an artifact, or the name of a pretrained model.
        prompts: prompts with a reference or the truth about what they ask (demonstrations are such prompts), or any
            prompts for a judge.
        judge: what says how good a response is, before the annotators' noise: a reward model, a list of them, or a
            function as ``package.module:function``; without one, its likeness to the reference or the truth does.
        responses: how many to a prompt (InstructGPT: 4 to 9); fewer where the model says the same again.
        temperature: of the sampling; prompts with equal responses are sampled once more, 1.5 times as hot.
        max_new_tokens: longest response.
        annotators: how many there are. judges: how many of them, taking turns, rank a prompt that is not held out.
        agreement: on how many of the pairs two of them agree (InstructGPT: 0.726); 1 for annotators who never err.
        heldout: part of the prompts that is kept for testing the reward model.
        limit: use only so many of the prompts, at random; 0 for all.
        batch_size: responses sampled at once.
        chunk: prompts between two savings.
        server: URL of a vLLM server that answers for the model; empty for the built-in engine.
        seed: of the choice, the sampling and the annotators.
    """

    together: ClassVar[bool] = True

    model: str
    prompts: Path
    judge: str | list[str] = ""
    responses: int = 4
    temperature: float = 1.0
    max_new_tokens: int = 64
    annotators: int = 5
    judges: int = 3
    agreement: float = 0.73
    heldout: float = 0.15
    limit: int = 0
    batch_size: int = 64
    chunk: int = 64
    server: str = ""
    seed: int = 0

    def run(self, out: Path) -> None:
        if self.responses < 2 or self.annotators < 2 or not 1 <= self.judges <= self.annotators:
            raise ChatwrightError(
                f"responses={self.responses}, annotators={self.annotators}, judges={self.judges}: a comparison takes "
                "at least 2 responses, agreement at least 2 annotators, and judges are from 1 to all of them"
            )
        prompts = load(self.prompts, Prompt)
        order = [int(i) for i in np.random.default_rng(self.seed).permutation(len(prompts))]
        order = order[: self.limit] if self.limit else order
        answers = self._sample(prompts, order, out / "state")
        if not distributed.first():
            return
        chosen = [
            Answered(prompts[index], **answer)
            for index, answer in zip(order, answers, strict=True)
            if len(answer["texts"]) > 1
        ]
        heldout = round(self.heldout * len(chosen))
        if not 0 < heldout < len(chosen):
            raise ChatwrightError(
                f"{self.prompts}: {len(chosen)} prompts got different responses, too few to hold "
                f"{self.heldout:.0%} out; use more prompts or a higher temperature"
            )
        utilities = [item.utilities for item in chosen]
        noise = calibrate(utilities, self.agreement)
        people = [SimulatedAnnotator(f"simulated-{i + 1}", noise, self.seed) for i in range(self.annotators)]
        tested, taught = chosen[:heldout], chosen[heldout:]
        fresh = [item.judged(number, who) for number, item in enumerate(tested) for who in people]
        learned = [
            item.judged(heldout + number, people[(number + turn) % len(people)])
            for number, item in enumerate(taught)
            for turn in range(self.judges)
        ]
        save(learned, out / "comparisons.parquet")
        save(fresh, out / "comparisons_heldout.parquet")
        agreement, pairs = pairwise_agreement(fresh)
        report = {
            "agreement": agreement,
            "n": pairs,
            "target": self.agreement,
            "ceiling": accuracy_ceiling(utilities[:heldout], noise),
            "noise": noise,
            "annotators": self.annotators,
            "prompts": len(order),
            "comparisons": len(learned),
            "comparisons_heldout": len(fresh),
        }
        write(out / "agreement.json", json.dumps(report, indent=1))

    def _sample(self, prompts: Sequence[Prompt], order: list[int], state: Path) -> list[dict[str, list[Any]]]:
        """What `_respond` finds for every prompt."""

        def begin() -> Worker:
            folder = checkpoint_of(self.model)
            backend = backend_of(folder, self.batch_size, self.server)
            judge = judge_of(self.judge, AutoConfig.from_pretrained(folder), best_device()) if self.judge else None
            return lambda chunk: self._respond(backend, judge, [prompts[i] for i in chunk])

        return in_chunks(order, self.chunk, state, "annotate", begin)

    def _respond(self, backend: Backend, judge: Judge | None, prompts: list[Prompt]) -> list[dict[str, list[Any]]]:
        """For every prompt up to K different ``texts``, whether each was ``finished``, and their ``utilities``."""
        rendered = [backend.renderer.prompt(prompt.messages) for prompt in prompts]
        found: list[dict[str, bool]] = [{} for _ in prompts]
        pending = list(range(len(prompts)))
        for heat in (1.0, AGAIN):
            sampling = Sampling(self.max_new_tokens, self.temperature * heat, seed=self.seed)
            drawn = backend.generate([rendered[i] for i in pending], sampling, n=self.responses)
            for i, completions in zip(pending, drawn, strict=True):
                for completion in completions:
                    if len(found[i]) < self.responses:
                        found[i].setdefault(completion.text, completion.finish_reason == "stop")
            pending = [i for i in pending if len(found[i]) < self.responses]
            if not pending:
                break
        said = [(i, text, end) for i, texts in enumerate(found) for text, end in texts.items()]
        if judge is None:
            worth = torch.tensor([utility(prompts[i], text, end) for i, text, end in said], dtype=torch.float64)
        else:
            rows = [backend.renderer.answered(rendered[i], backend.renderer.answer(text, end)) for i, text, end in said]
            asked, texts = [prompts[i] for i, _, _ in said], [text for _, text, _ in said]
            worth = scores_of(judge, backend.renderer, rows, asked, texts, self.batch_size)
        parts = worth.split([len(texts) for texts in found])
        return [
            {"texts": list(texts), "finished": list(texts.values()), "utilities": part.tolist()}
            for texts, part in zip(found, parts, strict=True)
        ]


@dataclass
class Answered:
    """A prompt with different responses, whether the model came to their end, and how good they are before noise."""

    prompt: Prompt
    texts: list[str]
    finished: list[bool]
    utilities: list[float]

    def judged(self, number: int, annotator: SimulatedAnnotator) -> Comparison:
        """The comparison that an annotator makes of item ``number``."""
        meta = {**self.prompt.meta, "finished": self.finished, "utilities": self.utilities, "noise": annotator.noise}
        ranks = annotator.rank(self.utilities, number)
        return Comparison(self.prompt.messages, tuple(self.texts), ranks, annotator.id, "simulated", meta)
