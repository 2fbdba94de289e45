"""Which assistant is preferred: answers of several to the same prompts, and a judge that reads them all."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from chatwright.data.records import Demonstration, Prompt
from chatwright.data.render import Renderer
from chatwright.data.rendered import Rendered
from chatwright.data.store import load
from chatwright.errors import ChatwrightError
from chatwright.evaluation.claims import percent
from chatwright.evaluation.findings import Chart, Findings, Series, Table
from chatwright.evaluation.judges import wins
from chatwright.evaluation.metrics import bootstrap
from chatwright.feedback.verifiers import function_of
from chatwright.files import write
from chatwright.generation.backend import Backend, Completion
from chatwright.generation.sampling import Sampling
from chatwright.models.heads import load_scorer, score_all
from chatwright.models.load import checkpoint_of, load_model
from chatwright.models.outputs import token_logprobs
from chatwright.stages.answering import backend_of
from chatwright.stages.base import Stage
from chatwright.stages.chunks import Worker, in_chunks
from chatwright.training import distributed
from chatwright.training.loop import best_device, to_device

EXAMPLES = 6  # prompts whose answers are shown: the first that all arms answered


@dataclass
class Compare(Stage):
    """Let several assistants answer the same prompts and a judge say whose answer is the better one.

    Writes ``answers.jsonl``, a line an answer: row (of the prompt in its file), arm, answer, finished, score, and kl
    where it is known; and ``findings.json`` with, for every arm, the share of prompts on which the judge prefers its
    answer to the baseline's (``score``, a tie being half a win, ``low``, ``high``, ``n``, ``ties``), ``mean_score``,
    ``characters`` and ``kl``: the mean over the answers of their log-likelihood ratio to the baseline, in nats, which
    estimates the KL divergence from it.

    Args:
        arms: name -> a model (a checkpoint, an artifact or the name of a pretrained one), or a file of demonstrations
            whose last turn is the answer, such as bestofn writes; what they lack is not compared.
        prompts: to answer.
        baseline: name of the arm that all others are compared with.
        judge: a reward model, a list of them, of which the lowest score counts, or a function of a `Prompt` and a text
            as ``package.module:function`` or ``file.py:function``; nothing that an arm was trained on.
        temperature: of the sampling; 0 takes the likeliest tokens. max_new_tokens: longest answer.
        limit: use only so many of the prompts, at random; 0 for all.
        batch_size: answers sampled at once. chunk: prompts between two savings.
        server: URL of a vLLM server that answers for one arm after the other; empty for the built-in engine.
        seed: of the choice and the sampling.
    """

    together: ClassVar[bool] = True

    arms: dict[str, str]
    prompts: Path
    baseline: str
    judge: str | list[str]
    temperature: float = 1.0
    max_new_tokens: int = 64
    limit: int = 0
    batch_size: int = 64
    chunk: int = 64
    server: str = ""
    seed: int = 0

    def run(self, out: Path) -> None:
        if self.baseline not in self.arms or len(self.arms) < 2:
            raise ChatwrightError(
                f"baseline={self.baseline!r} and arms {', '.join(self.arms)}: name two arms or more, one the baseline"
            )
        prompts = load(self.prompts, Prompt)
        order = [int(i) for i in np.random.default_rng(self.seed).permutation(len(prompts))]
        order = order[: self.limit] if self.limit else order
        found = {arm: self._scored(arm, prompts, order, out / "state") for arm in self.arms}
        for arm, answers in found.items():
            if not answers.keys() & found[self.baseline].keys():
                raise ChatwrightError(f"{self.arms[arm]}: answers none of the prompts that the baseline answers")
        if not distributed.first():
            return
        lines = [{"row": row, "arm": arm, **one} for arm, answers in found.items() for row, one in answers.items()]
        write(out / "answers.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        shown = [row for row in order if all(row in answers for answers in found.values())][:EXAMPLES]
        self._findings(found, [(prompts[row], row) for row in shown]).save(out)

    def _scored(self, arm: str, prompts: Sequence[Prompt], order: list[int], state: Path) -> dict[int, dict[str, Any]]:
        """Row of a prompt -> what ``answers.jsonl`` says of the arm's answer."""
        if Path(self.arms[arm]).is_file():
            answers = _read(load(self.arms[arm], Demonstration), prompts, order)
        else:
            sampled = in_chunks(order, self.chunk, state, f"answers of {arm}", lambda: self._sampler(arm, prompts))
            answers = dict(zip(order, sampled, strict=True))
        rows = list(answers)
        scores = in_chunks(rows, self.chunk, state, f"scores of {arm}", lambda: self._scorer(prompts, answers))
        return {row: {**answers[row], "score": score} for row, score in zip(rows, scores, strict=True)}

    def _sampler(self, arm: str, prompts: Sequence[Prompt]) -> Worker:
        folder = checkpoint_of(self.arms[arm])
        backend = backend_of(folder, self.batch_size, self.server)
        sampling = Sampling(self.max_new_tokens, self.temperature, seed=self.seed)
        reference = self._reference(arm, backend.renderer)

        def sample(rows: list[int]) -> list[dict[str, Any]]:
            rendered = [backend.renderer.prompt(prompts[row].messages) for row in rows]
            completions = [one for (one,) in backend.generate(rendered, sampling)]
            answers: list[dict[str, Any]] = [
                {"answer": one.text, "finished": one.finish_reason == "stop"} for one in completions
            ]
            if reference is not None:
                for answer, ratio in zip(answers, self._ratios(reference, backend, rendered, completions), strict=True):
                    answer["kl"] = ratio
            return answers

        return sample

    def _reference(self, arm: str, renderer: Renderer) -> Any:
        """The baseline's model, if the arm's answers are sampled and both read the same tokens."""
        if arm == self.baseline or self.temperature == 0 or Path(self.arms[self.baseline]).is_file():
            return None
        folder = checkpoint_of(self.arms[self.baseline])
        other = Renderer.load(folder)
        same = (
            other.tokenizer.get_vocab() == renderer.tokenizer.get_vocab()
            and other.processor.chat_template == renderer.processor.chat_template
        )
        return load_model(folder).to(best_device()).eval() if same else None

    @torch.no_grad()
    def _ratios(
        self, reference: Any, backend: Backend, prompts: list[Rendered], completions: list[Completion]
    ) -> list[float]:
        """How much likelier, in nats, every answer is under the arm than under the reference."""
        found = []
        for start in range(0, len(prompts), self.batch_size):
            part = list(zip(prompts, completions, strict=True))[start : start + self.batch_size]
            rows = [backend.renderer.answered(prompt, one.tokens) for prompt, one in part]
            batch = to_device(backend.renderer.collate(rows), best_device())
            logprobs, _ = token_logprobs(reference, batch, self.temperature, backend.renderer.unsaid)
            found += [sum(one.logprobs) - float(total) for (_, one), total in zip(part, logprobs.sum(1), strict=True)]
        return found

    def _scorer(self, prompts: Sequence[Prompt], answers: dict[int, dict[str, Any]]) -> Worker:
        if isinstance(self.judge, str) and ":" in self.judge:
            function = function_of(self.judge)
            return lambda rows: [float(function(prompts[row], answers[row]["answer"])) for row in rows]
        model = load_scorer(self.judge).to(best_device())
        renderer = Renderer.load(checkpoint_of(self.judge if isinstance(self.judge, str) else self.judge[0]))

        def score(rows: list[int]) -> list[float]:
            read = [
                renderer.answered(
                    renderer.prompt(prompts[row].messages),
                    renderer.answer(answers[row]["answer"], answers[row]["finished"]),
                )
                for row in rows
            ]
            return score_all(model, renderer, read, self.batch_size).tolist()

        return score

    def _findings(self, found: dict[str, dict[int, dict[str, Any]]], shown: list[tuple[Prompt, int]]) -> Findings:
        numbers = {arm: _measured(answers, found[self.baseline]) for arm, answers in found.items()}
        rivals = [arm for arm in self.arms if arm != self.baseline]
        known = [arm for arm in rivals if "kl" in numbers[arm]]
        table = Table(
            "Arms",
            f"How often the judge prefers an arm's answer to that of {self.baseline}; a tie counts as half. Scores are "
            "the judge's. KL, in nats an answer, is how far the arm has gone.",
            [
                "arm",
                f"preferred to {self.baseline}",
                "95% interval",
                "prompts",
                "ties",
                "mean score",
                "characters",
                "KL",
            ],
            [
                [
                    arm,
                    *(
                        ["–", "–", "–", "–"]
                        if arm == self.baseline
                        else [
                            percent(one["score"]),
                            f"{percent(one['low'])}–{percent(one['high'])}",
                            one["n"],
                            one["ties"],
                        ]
                    ),
                    one["mean_score"]["score"],
                    one["characters"],
                    one.get("kl", "–"),
                ]
                for arm, one in numbers.items()
            ],
        )
        answers = Table(
            "Answers",
            f"The first {len(shown)} prompts that every arm answered.",
            ["prompt", *self.arms],
            [[_said(prompt), *(found[arm][row]["answer"] for arm in self.arms)] for prompt, row in shown],
        )
        chart = Chart(
            "Preference and distance",
            f"How often an arm is preferred to {self.baseline}, by how far it has gone from it.",
            f"KL from {self.baseline}, nats",
            "preferred",
            [
                Series(
                    arm,
                    [numbers[arm]["kl"]],
                    [numbers[arm]["score"]],
                    [numbers[arm]["low"]],
                    [numbers[arm]["high"]],
                    "points",
                )
                for arm in known
            ],
        )
        return Findings(
            title=f"Preferred to {self.baseline}",
            text="The judge reads the answers of all arms to the same prompts.",
            numbers=numbers,
            charts=[chart] if known else [],
            tables=[table, answers],
        )


def _read(demonstrations: Sequence[Demonstration], prompts: Sequence[Prompt], order: list[int]) -> dict[int, dict]:
    """The last turns of conversations as answers to the prompts that they begin with; ``kl`` from their meta."""
    said: dict[Any, list[Demonstration]] = {}
    for one in demonstrations:
        said.setdefault(one.messages[:-1], []).append(one)
    answers = {}
    for row in order:
        messages = prompts[row].messages
        begun = messages[-1].role == "assistant"
        beginning = messages[-1].text.rstrip() if begun else ""
        for one in said.get(messages[:-1] if begun else messages, []):
            if one.messages[-1].text.startswith(beginning):
                answers[row] = {"answer": one.messages[-1].text[len(beginning) :], "finished": True}
                answers[row] |= {"kl": one.meta["kl"]} if "kl" in one.meta else {}
                break
    return answers


def _measured(answers: dict[int, dict[str, Any]], baseline: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """An arm's numbers over the prompts that it and the baseline answered."""
    both = [row for row in answers if row in baseline]
    mine = [answers[row] for row in both]
    scores = np.array([[one["score"], 1.0] for one in mine])
    low, high = bootstrap(scores, both)
    return {
        **wins([one["score"] for one in mine], [baseline[row]["score"] for row in both]),
        "mean_score": {"score": float(scores[:, 0].mean()), "low": low, "high": high, "n": len(both)},
        "characters": float(np.mean([len(one["answer"]) for one in mine])),
        **({"kl": float(np.mean([one["kl"] for one in mine]))} if all("kl" in one for one in mine) else {}),
    }


def _said(prompt: Prompt) -> str:
    """What a prompt asks, and how its answer begins."""
    asked = next((turn.text for turn in reversed(prompt.messages) if turn.role == "user"), "")
    return f"{asked} {prompt.messages[-1].text}…" if prompt.messages[-1].role == "assistant" else asked
