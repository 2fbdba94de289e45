"""report: what a run claimed and what it measured, as report.html for people and report.json for machines."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chatwright.data import store
from chatwright.data.records import Comparison, Prompt
from chatwright.errors import ChatwrightError
from chatwright.evaluation import artifacts, claims, report
from chatwright.evaluation.claims import Claim
from chatwright.evaluation.findings import Findings
from chatwright.evaluation.judges import win_rate
from chatwright.files import write
from chatwright.models.load import checkpoint_of
from chatwright.stages.base import Stage

EXAMPLES = 6  # best, and as many worst, answers of the reward model


@dataclass
class Report(Stage):
    """Write report.html and report.json about the run whose stages lie beside ``out``; copies of both go into the run.

    Args:
        arms: name -> folder of the evaluate stage, in the order of the table.
        data: the held-out prompts that the arms answered; needed where there are arms.
        findings: name -> folder of a stage that measured something of its own, in the order of the page.
        model: the checkpoint or artifact whose parameters are counted.
        reward: folder of the reward stage.
        comparisons: the held-out comparisons that the reward model was tested on.
        annotate: folder of the annotate stage.
        means: name -> tasks, shown and stored as one more task of every arm.
        win_rates: pairs of arms, "ppo_vs_sft".
        tax_tasks: tasks of the alignment tax, compared over ``tax_arms``.
        claims: what the run is to show.
        pictures: how many held-out pictures to show.
    """

    arms: dict[str, Path] = field(default_factory=dict)
    data: Path | None = None
    findings: dict[str, Path] = field(default_factory=dict)
    model: str = ""
    reward: Path | None = None
    comparisons: Path | None = None
    annotate: Path | None = None
    title: str = "An assistant that sees, built from raw text and pictures"
    subtitle: str = ""
    means: dict[str, list[str]] = field(default_factory=dict)
    win_rates: list[str] = field(default_factory=list)
    tax_tasks: list[str] = field(default_factory=list)
    tax_arms: list[str] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    pictures: int = 30

    def run(self, out: Path) -> None:
        if self.arms and self.data is None:
            raise ChatwrightError("the arms answered questions; name them: data=<the held-out prompts>")
        run = out.parent
        stages = artifacts.stages_of(run)
        prompts = store.load(self.data, Prompt) if self.data else []
        findings = {name: Findings.load(folder) for name, folder in self.findings.items()}
        scores = {arm: artifacts.read_scores(folder) for arm, folder in self.arms.items()}
        answers = {arm: artifacts.read_answers(folder, len(prompts)) for arm, folder in self.arms.items()}
        made_by = {arm: artifacts.stage_evaluated(folder, stages) for arm, folder in self.arms.items()}
        numbers: dict[str, Any] = {
            "arms": {arm: claims.with_means(found, self.means) for arm, found in scores.items()},
            "win_rate": {pair: self._win_rate(pair, answers, prompts) for pair in self.win_rates},
            "reward_model": artifacts.read_reward(self.reward) if self.reward else {},
            "annotators": artifacts.read_agreement(self.annotate) if self.annotate else {},
            "kl": {
                arm: kl for arm, stage in made_by.items() if stage and (kl := artifacts.final_kl(stage)) is not None
            },
            "seconds": {stage.name: stage.seconds for stage in stages},
            "parameters": artifacts.count_parameters(checkpoint_of(self.model)) if self.model else 0,
            "tokens": sum(stage.tokens for stage in stages),
        }
        if taken := [name for name in findings if name in {*numbers, "claims"}]:
            raise ChatwrightError(f"findings: {taken[0]!r} is a name that the report uses itself; choose another")
        numbers |= {name: found.numbers for name, found in findings.items()}
        verdicts = [claims.judge(claim, numbers) for claim in self.claims]
        numbers["claims"] = [asdict(verdict) for verdict in verdicts]
        liked: dict[str, list[artifacts.Liked]] = {"best": [], "worst": []}
        if self.reward and self.comparisons:
            liked = artifacts.read_examples(self.reward, store.load(self.comparisons, Comparison), EXAMPLES)
        page = report.Page(
            title=self.title,
            subtitle=self.subtitle,
            numbers=numbers,
            verdicts=verdicts,
            stages=stages,
            arms={arm: stage.name if stage else "" for arm, stage in made_by.items()},
            means=self.means,
            tax_tasks=self.tax_tasks,
            tax_arms=self.tax_arms,
            pictures=report.choose_pictures(answers, prompts, self.pictures),
            liked=liked,
            findings=list(findings.values()),
        )
        texts = {
            "report.json": json.dumps(numbers, indent=1, ensure_ascii=False) + "\n",
            "report.html": report.html(page),
        }
        for folder in (out, run):
            for name, text in texts.items():
                write(folder / name, text)

    def _win_rate(
        self, pair: str, answers: dict[str, list[dict[str, Any]]], prompts: Sequence[Prompt]
    ) -> dict[str, float]:
        """How often the judge prefers the first arm of "ppo_vs_sft", over the questions that both answered."""
        first, _, second = pair.partition("_vs_")
        if first not in answers or second not in answers:
            raise ChatwrightError(f"win_rates: {pair!r} is not <arm>_vs_<arm> of the arms {', '.join(answers)}")
        others = {row["id"]: row for row in answers[second]}
        pairs = [(row, others[row["id"]]) for row in answers[first] if row["id"] in others]
        return win_rate(
            [prompts[row["row"]] for row, _ in pairs],
            [row["answer"] for row, _ in pairs],
            [other["answer"] for _, other in pairs],
        )
