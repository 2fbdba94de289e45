"""Best-of-n: sample many responses and keep the best, which one can then fine-tune on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import AutoConfig

from chatwright.data.records import Demonstration, Prompt, answered
from chatwright.data.store import load, save
from chatwright.errors import ChatwrightError
from chatwright.feedback.judges import Judge, judge_of, scores_of
from chatwright.files import write
from chatwright.generation.backend import Backend
from chatwright.generation.sampling import Sampling
from chatwright.models.load import checkpoint_of
from chatwright.objectives.feedback.mathematics import best_of_k, best_of_k_kl, best_of_n_kl
from chatwright.stages.answering import backend_of
from chatwright.stages.base import Stage
from chatwright.stages.chunks import Worker, in_chunks
from chatwright.training import distributed
from chatwright.training.loop import best_device


@dataclass
class BestOfN(Stage):
    """Sample n responses to every prompt and keep the one that scores best (Nakano et al. 2021, WebGPT).

    Writes ``demonstrations.parquet``, the best responses with their ``score`` and ``kl``, to fine-tune on (rejection
    sampling fine-tuning: Touvron et al. 2023, Llama 2, section 3.2.3; with a verifier and ``least`` as in Yuan et al.
    2023), and ``scores.json``: for every k up to n what the best of k scores on average (``best_of``), what gold says
    of it (``gold``) and the KL of best-of-k from the model, in nats (``kl``); and the standard ``deviation`` of all
    scores, and of gold's.

    Args:
        model: a checkpoint, an artifact, or the name of a pretrained model.
        prompts: to answer.
        reward: a reward model, or a list of them, of which the lowest score counts.
        verifier: a function of a `Prompt` and a text, as ``package.module:function`` or ``file.py:function``. With
            both, their sum is the score.
        gold: another such function or reward model, which is reported and chooses nothing.
        n: responses to each prompt.
        least: the lowest score of a response that is kept; 1 keeps what a verifier of truth finds right.
        temperature: of the sampling. max_new_tokens: longest response; one that does not come to its end is not kept.
        limit: use only so many of the prompts, at random; 0 for all.
        batch_size: responses sampled at once. chunk: prompts between two savings.
        server: URL of a vLLM server that answers for the model; empty for the built-in engine.
        seed: of the choice and the sampling.
    """

    together: ClassVar[bool] = True

    model: str
    prompts: Path
    reward: str | list[str] = ""
    verifier: str = ""
    gold: str = ""
    n: int = 8
    least: float | None = None
    temperature: float = 1.0
    max_new_tokens: int = 64
    limit: int = 0
    batch_size: int = 64
    chunk: int = 64
    server: str = ""
    seed: int = 0

    def run(self, out: Path) -> None:
        if not (self.reward or self.verifier):
            raise ChatwrightError("nothing says which response is best; name a reward model or a verifier")
        if self.n < 2 or self.temperature <= 0:
            raise ChatwrightError(f"n={self.n}, temperature={self.temperature}: choosing takes different responses")
        prompts = load(self.prompts, Prompt)
        order = [int(i) for i in np.random.default_rng(self.seed).permutation(len(prompts))]
        order = order[: self.limit] if self.limit else order
        answers = self._answers(prompts, order, out / "state")
        if not distributed.first():
            return
        scores, logprobs, gold = (
            torch.tensor([answer[name] for answer in answers], dtype=torch.float64)
            for name in ("scores", "logprobs", "gold")
        )
        kl = best_of_n_kl(self.n, logprobs.gather(1, scores.argmax(1, keepdim=True)).squeeze(1))
        kept = [
            Demonstration(
                answered(prompts[i].messages, answer["text"]),
                {**prompts[i].meta, "score": max(answer["scores"]), "kl": float(nats)},
            )
            for i, answer, nats in zip(order, answers, kl, strict=True)
            if answer["finished"] and (self.least is None or max(answer["scores"]) >= self.least)
        ]
        if not kept:
            raise ChatwrightError(f"{self.prompts}: no response scores least={self.least} or more; lower it or raise n")
        save(kept, out / "demonstrations.parquet")
        report: dict[str, Any] = {
            "best_of": _by_k(best_of_k(scores)),
            **({"gold": _by_k(best_of_k(scores, gold))} if self.gold else {}),
            "kl": _by_k(best_of_k_kl(scores, logprobs)),
            "deviation": {"score": float(scores.std()), **({"gold": float(gold.std())} if self.gold else {})},
            "prompts": len(order),
            "kept": len(kept),
        }
        write(out / "scores.json", json.dumps(report, indent=1))

    def _answers(self, prompts: Sequence[Prompt], order: list[int], state: Path) -> list[dict[str, Any]]:
        """What `_best` finds for every prompt."""

        def begin() -> Worker:
            folder = checkpoint_of(self.model)
            backend = backend_of(folder, self.batch_size, self.server)
            named, answering = (self.reward, self.verifier, self.gold), AutoConfig.from_pretrained(folder)
            judges = [judge_of(name, answering, best_device()) if name else None for name in named]
            return lambda chunk: self._best(backend, judges, [prompts[i] for i in chunk])

        return in_chunks(order, self.chunk, state, "bestofn", begin)

    def _best(self, backend: Backend, judges: Sequence[Judge | None], prompts: list[Prompt]) -> list[dict[str, Any]]:
        """For every prompt the best ``text``, whether it ``finished``, and of all n the ``scores``, ``gold`` and
        ``logprobs``.

        Args:
            judges: the reward model, the verifier and the gold, each None where there is none.
        """
        rendered = [backend.renderer.prompt(prompt.messages) for prompt in prompts]
        sampling = Sampling(self.max_new_tokens, self.temperature, seed=self.seed)
        drawn = backend.generate(rendered, sampling, n=self.n)
        asked = [prompt for prompt in prompts for _ in range(self.n)]
        texts = [completion.text for row in drawn for completion in row]
        rows = [
            backend.renderer.answered(prompt, completion.tokens)
            for prompt, completions in zip(rendered, drawn, strict=True)
            for completion in completions
        ]
        paid, checked, gold = (
            torch.zeros(len(rows))
            if judge is None
            else scores_of(judge, backend.renderer, rows, asked, texts, self.batch_size)
            for judge in judges
        )
        scores, gold = (paid + checked).view(-1, self.n), gold.view(-1, self.n)
        return [
            {
                "text": row[best].text,
                "finished": row[best].finish_reason == "stop",
                "scores": scored.tolist(),
                "gold": valued.tolist(),
                "logprobs": [sum(completion.logprobs) for completion in row],
            }
            for row, best, scored, valued in zip(drawn, scores.argmax(1).tolist(), scores, gold, strict=True)
        ]


def _by_k(values: torch.Tensor) -> dict[str, float]:
    return {str(k): round(float(value), 6) for k, value in enumerate(values, 1)}
