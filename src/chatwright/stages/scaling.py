"""How preference and the alignment tax change with the size of the model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatwright.data.records import Prompt
from chatwright.data.store import load
from chatwright.errors import ChatwrightError
from chatwright.evaluation import artifacts
from chatwright.evaluation.claims import percent
from chatwright.evaluation.findings import Chart, Findings, Series, Table
from chatwright.evaluation.judges import win_rate
from chatwright.evaluation.metrics import Score
from chatwright.models.load import checkpoint_of
from chatwright.stages.base import Stage

EXAMPLES = 8  # questions whose answers are shown

Answers = dict[str, dict[str, Any]]  # by the id of the question


@dataclass
class Scaling(Stage):
    """Compare methods over sizes of the model, as figure 1 of InstructGPT does (Ouyang et al. 2022, arXiv:2203.02155).

    Writes ``findings.json`` for the report. Its numbers: of every method and size ("ppo.0" is the smallest) how often
    a judge prefers its answers to those of the baseline, with the share of ``right`` answers, ``parameters`` and the
    scores of ``tasks``; and under ``pairs`` the preference for one model over another. Questions whose answer is a
    choice, with nothing said, do not count.

    Args:
        data: the held-out prompts that all have answered.
        baseline: folder of the evaluate stage whose answers all others are held against.
        lines: method -> folders of evaluate stages, the smallest model first.
        pairs: comparisons of one model with another, such as "ppo_0_vs_gpt_3".
        tax_tasks: tasks of the alignment tax: what alignment may cost, drawn for every method that was scored on them.
    """

    data: Path
    baseline: Path
    lines: dict[str, list[Path]]
    pairs: list[str] = field(default_factory=list)
    tax_tasks: list[str] = field(default_factory=list)

    def run(self, out: Path) -> None:
        prompts = load(self.data, Prompt)
        if empty := [method for method, folders in self.lines.items() if not folders]:
            raise ChatwrightError(f"lines: {empty[0]!r} names no folder; give those of its evaluate stages")
        baseline = _read(self.baseline, prompts)
        numbers: dict[str, Any] = {}
        answers: dict[str, Answers] = {}
        for method, folders in self.lines.items():
            numbers[method] = {}
            for size, folder in enumerate(folders):
                answers[f"{method}_{size}"] = found = _read(folder, prompts)
                scores = artifacts.read_scores(folder)
                numbers[method][str(size)] = {
                    **_preference(found, baseline, prompts),
                    "right": _right(found),
                    "parameters": artifacts.count_parameters(checkpoint_of(artifacts.model_evaluated(folder))),
                    "tasks": {task: scores[task] for task in self.tax_tasks if task in scores},
                }
        members = {pair: self._members(pair, answers) for pair in self.pairs}
        pairs = {
            pair: _preference(answers[first], answers[second], prompts) for pair, (first, second) in members.items()
        }
        shown = list(dict.fromkeys(name for two in members.values() for name in two))
        Findings(
            title="Preference over size",
            text="A judge that trained nothing prefers a right answer to a wrong one, and of two right or two wrong "
            "ones the more helpful. Ties count half.",
            numbers={**numbers, "pairs": pairs},
            charts=[
                _preference_chart(numbers, self.baseline.name),
                _right_chart(numbers),
                *_tax_charts(numbers, self.tax_tasks),
            ],
            tables=[
                _table(numbers, self.tax_tasks),
                *([_pairs_table(pairs), _answers_table(shown, answers)] if pairs else []),
            ],
        ).save(out)

    def _members(self, pair: str, answers: dict[str, Answers]) -> tuple[str, str]:
        first, _, second = pair.partition("_vs_")
        if first not in answers or second not in answers:
            raise ChatwrightError(f"pairs: {pair!r} is not <method>_<size>_vs_<method>_<size> of {', '.join(answers)}")
        return first, second


def _read(folder: Path, prompts: Sequence[Prompt]) -> Answers:
    """What a model said, by question."""
    rows = artifacts.read_answers(folder, len(prompts))
    return {row["id"]: row for row in rows if row.get("finish_reason") != "choice"}


def _preference(first: Answers, second: Answers, prompts: Sequence[Prompt]) -> dict[str, float]:
    """How often the judge prefers the first, over the questions that both answered."""
    both = [key for key in first if key in second]
    if not both:
        raise ChatwrightError("two of the models answered no question in common; evaluate them on the same data")
    return win_rate(
        [prompts[first[key]["row"]] for key in both],
        [first[key]["answer"] for key in both],
        [second[key]["answer"] for key in both],
    )


def _right(answers: Answers) -> dict[str, float]:
    return Score.of(sum(row["correct"] for row in answers.values()), len(answers), 0.0).as_dict()


def _preference_chart(numbers: dict[str, Any], baseline: str) -> Chart:
    series = [
        _series(method, number, [(one["parameters"], one) for one in sizes.values()])
        for number, (method, sizes) in enumerate(numbers.items())
    ]
    text = f"How often answers are preferred to those of {baseline}, with 95% intervals; one half is as good as it."
    return Chart("Preference", text, "parameters", f"preferred to {baseline}", series, log_x=True)


def _right_chart(numbers: dict[str, Any]) -> Chart:
    series = [
        _series(method, number, [(one["parameters"], one["right"]) for one in sizes.values()])
        for number, (method, sizes) in enumerate(numbers.items())
    ]
    text = "How many answers are right, whatever their form, with 95% intervals: a judge can be won by form alone."
    return Chart("Right answers", text, "parameters", "right answers", series, log_x=True)


def _tax_charts(numbers: dict[str, Any], tasks: Sequence[str]) -> list[Chart]:
    charts = []
    for task in tasks:
        lines = [
            (
                method,
                number,
                [(one["parameters"], one["tasks"][task]) for one in sizes.values() if task in one["tasks"]],
            )
            for number, (method, sizes) in enumerate(numbers.items())
        ]
        series = [_series(*line) for line in lines if line[-1]]
        if not series:
            raise ChatwrightError(f"tax_tasks: no model was scored on {task!r}; take a task of scores.json")
        text = f"What alignment costs or gains on {task}, with 95% intervals."
        charts.append(Chart(f"Alignment tax: {task}", text, "parameters", task, series, log_x=True))
    return charts


def _series(method: str, number: int, points: Sequence[tuple[int, dict[str, float]]]) -> Series:
    """The line of a method: parameters and scores of its sizes."""
    scores = [score for _, score in points]
    return Series(
        method,
        [parameters for parameters, _ in points],
        [score["score"] for score in scores],
        [score["low"] for score in scores],
        [score["high"] for score in scores],
        colour=number,
    )


def _table(numbers: dict[str, Any], tasks: Sequence[str]) -> Table:
    rows = [
        [
            method,
            f"{one['parameters']:,}",
            _interval(one),
            _interval(one["right"]),
            *(_interval(one["tasks"][task]) if task in one["tasks"] else "" for task in tasks),
        ]
        for method, sizes in numbers.items()
        for one in sizes.values()
    ]
    return Table("Every model", "", ["method", "parameters", "preferred", "right", *tasks], rows)


def _pairs_table(pairs: dict[str, dict[str, float]]) -> Table:
    rows: list[list[str | float]] = [
        [*pair.split("_vs_", 1), _interval(one), one["ties"], one["n"]] for pair, one in pairs.items()
    ]
    text = "How often the first is preferred; sizes are numbered from 0, the smallest."
    return Table("One over another", text, ["first", "second", "preferred", "ties", "questions"], rows)


def _answers_table(names: Sequence[str], answers: dict[str, Answers]) -> Table:
    """What several models said to the same questions, which are taken at equal distances."""
    common = [key for key in answers[names[0]] if all(key in answers[name] for name in names)]
    chosen = common[:: max(1, len(common) // EXAMPLES)][:EXAMPLES]
    rows = [[answers[names[0]][key]["question"], *(answers[name][key]["answer"] for name in names)] for key in chosen]
    return Table("The same questions", "Not chosen for their answers.", ["question", *names], rows)


def _interval(score: dict[str, float]) -> str:
    return f"{percent(score['score'])} ({percent(score['low'])} to {percent(score['high'])})"
