"""The report of a run: what was claimed and what was measured, as ``report.json`` and as one HTML file for people.

What ``report.json`` holds: ``arms.<arm>.<task>``, ``win_rate.<a>_vs_<b>``, ``reward_model``, ``annotators``,
``kl.<arm>``, ``seconds.<stage>``, ``parameters``, ``tokens``, ``claims``, and what measuring stages found, under the
names that the report's settings give them.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from chatwright.data import media
from chatwright.data.records import Part, Prompt
from chatwright.evaluation import figures
from chatwright.evaluation.artifacts import Liked, Ran, picture_of
from chatwright.evaluation.claims import Verdict, percent, quantity
from chatwright.evaluation.findings import Findings

WHAT = {
    "data": "records to learn from",
    "instructions": "records to learn from",
    "tokenizer": "byte-level BPE",
    "pretrain": "reads raw text",
    "vision": "the eye learns alone",
    "align": "pictures meet words",
    "sft": "learns to follow",
    "annotate": "answers are ranked",
    "ratings": "what people thought",
    "reward": "learns what is liked",
    "rl": "learns from reward",
    "prefer": "learns from pairs",
    "bestofn": "samples many, keeps one",
    "evaluate": "held-out questions",
    "compare": "which is preferred",
    "scaling": "what size brings",
    "overoptimization": "what reward is worth",
}
CURVES = {
    "loss": "Loss",
    "score": "Score by the reward model",
    "reward": "Reward, after penalties",
    "kl": "KL to the reference policy",
}

Shown = tuple[Mapping[str, Any], dict[str, Mapping[str, Any]], Part]


def choose_pictures(
    answers: Mapping[str, Sequence[Mapping[str, Any]]], prompts: Sequence[Prompt], count: int
) -> list[Shown]:
    """Questions to show, chosen without a look at the answers: in turn from every task, split and language.

    No picture is shown twice while others remain.

    Args:
        answers: arm -> rows of its ``answers.jsonl``.
        prompts: the held-out data.

    Returns:
        Up to ``count`` of (a row with the question, arm -> the row with its answer, the picture).
    """
    by_arm = {arm: {row["id"]: row for row in rows} for arm, rows in answers.items()}
    cells: dict[tuple[str, str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in next(iter(answers.values()), []):
        if all(row["id"] in rows for rows in by_arm.values()):
            cells[row["task"], row["split"], row["language"]].append(row)
    # The hash of a name stands for a draw at random that is the same in every run.
    queues = [
        sorted(cells[key], key=lambda row: hashlib.sha256(str(row["id"]).encode()).digest())
        for key in sorted(cells, key=lambda key: hashlib.sha256(" ".join(key).encode()).digest())
    ]
    chosen: list[Shown] = []
    again: list[Shown] = []
    seen: set[bytes | None] = set()
    while any(queues) and len(chosen) < count:
        for queue in queues:
            while queue:
                row = queue.pop()
                picture = picture_of(prompts[row["row"]].messages)
                if picture is None:
                    continue
                shown = (row, {arm: rows[row["id"]] for arm, rows in by_arm.items()}, picture)
                if picture.media not in seen:
                    seen.add(picture.media)
                    chosen.append(shown)
                    break
                again.append(shown)
    chosen = (chosen + again)[:count]
    return sorted(chosen, key=lambda shown: (shown[0]["task"], shown[0]["split"], shown[0]["language"]))


@dataclass
class Page:
    """What the HTML page shows; ``numbers`` is the content of ``report.json``."""

    title: str
    subtitle: str
    numbers: dict[str, Any]
    verdicts: list[Verdict]
    stages: list[Ran]
    arms: dict[str, str]  # arm -> the stage whose model it is, "" where that is not known
    means: dict[str, list[str]]
    tax_tasks: list[str]
    tax_arms: list[str]
    pictures: list[Shown]
    liked: dict[str, list[Liked]]
    findings: list[Findings]


def html(page: Page) -> str:
    """The report as one HTML file: no script, nothing loaded from elsewhere."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "percent": percent,
        "quantity": quantity,
        "span": span,
        "duration": duration,
        "amount": amount,
        "label": label,
        "cell": cell,
        "picture": data_url,
        "language": lambda code: {"en": "English", "zh": "Chinese"}.get(code, code),
    }
    numbers = page.numbers
    order = list(page.arms)
    arms = numbers["arms"].values()
    measured = dict.fromkeys(task for arm in arms for task in arm)
    asked = [*page.means, *(task for group in page.means.values() for task in group), *measured]
    tasks = [task for task in dict.fromkeys(asked) if task in measured]
    splits = {
        task: list(dict.fromkeys(split for arm in arms for split in arm.get(task, {}).get("by_split", {})))
        for task in tasks
    }
    return environment.get_template("report.html.jinja").render(
        page=page,
        numbers=numbers,
        style=Markup((Path(__file__).parent / "report.css").read_text(encoding="utf-8")),
        arm_number={arm: number for number, arm in enumerate(order)},
        tasks=tasks,
        # A task with one split has nothing to compare, and the tasks of a mean do not all have the same splits.
        splits=[
            (task, split)
            for task in tasks
            if task not in page.means and len(splits[task]) > 1
            for split in splits[task]
        ],
        total=sum(numbers["seconds"].values()),
        reached=sum(verdict.reached is True for verdict in page.verdicts),
        path_wide=Markup(figures.path(_boxes(page), 5, "The stages in the order they ran, with their times")),
        path_narrow=Markup(figures.path(_boxes(page), 2, "The stages in the order they ran, with their times")),
        charts={key: [(title, Markup(chart)) for title, chart in _charts(page, key)] for key in CURVES},
        tax=[(title, Markup(chart)) for title, chart in _tax(page)],
        findings=[
            (
                found,
                [
                    (chart, Markup(figures.chart(f"finding-{place}-{number}", chart)))
                    for number, chart in enumerate(found.charts)
                ],
            )
            for place, found in enumerate(page.findings)
        ],
        facts={task: next(arm[task] for arm in arms if task in arm) for task in tasks},
        means={name: [task for task in group if task in measured] for name, group in page.means.items()},
    )


def _boxes(page: Page) -> list[figures.Box]:
    """The stages as boxes; the evaluations of the arms are one box."""
    total = sum(page.numbers["seconds"].values()) or 1.0
    arm_of = {stage: arm for arm, stage in page.arms.items() if stage}
    order = list(page.arms)
    boxes = []
    evaluations = [stage for stage in page.stages if stage.kind == "evaluate"]
    for stage in page.stages:
        if stage.kind == "evaluate":
            continue
        arm = arm_of.get(stage.name, "")
        boxes.append(
            figures.Box(
                name=stage.name,
                what=WHAT.get(stage.kind, stage.kind if stage.kind != stage.name else ""),
                time=duration(stage.seconds),
                share=stage.seconds / total,
                arm_name=arm,
                arm=order.index(arm) if arm else None,
            )
        )
    if evaluations:
        seconds = sum(stage.seconds for stage in evaluations)
        name = f"evaluate × {len(evaluations)}" if len(evaluations) > 1 else "evaluate"
        boxes.append(figures.Box(name, WHAT["evaluate"], duration(seconds), seconds / total))
    return boxes


def _charts(page: Page, key: str) -> list[tuple[str, str]]:
    """(title, SVG) of every chart of one measured value; runs of reinforcement learning share theirs, losses do not."""
    order = list(page.arms)
    arm_of = {stage: arm for arm, stage in page.arms.items() if stage}
    found: list[figures.Curve] = []
    for stage in page.stages:
        if key != "loss" and stage.kind != "rl":
            continue
        arm = arm_of.get(stage.name)
        titles = dict.fromkeys(row.get("stage", stage.name) for row in stage.metrics)
        for title in titles:
            rows = [row for row in stage.metrics if row.get("stage", stage.name) == title]
            points = [(row["step"], row[key]) for row in rows if key in row and "step" in row]
            if len(points) >= 2:
                name = f"{stage.name}, {title}" if len(titles) > 1 else stage.name
                colour = order.index(arm) if arm else len(found) if key != "loss" else figures.ARM_COLOURS - 1
                steps, values = zip(*points, strict=True)
                found.append(figures.Curve(name, steps, values, colour))
    if key == "loss":
        return [
            (curve.label, figures.curves(f"loss-{number}", [curve], f"Loss of {curve.label} over its steps"))
            for number, curve in enumerate(found)
        ]
    if not found:
        return []
    names = ", ".join(curve.label for curve in found)
    return [(CURVES[key], figures.curves(key, found, f"{CURVES[key]} over the steps of {names}"))]


def _tax(page: Page) -> list[tuple[str, str]]:
    """(title, SVG) for every task of the alignment tax, over the arms that feedback made."""
    arms, order = page.numbers["arms"], list(page.arms)
    found = []
    for number, task in enumerate(page.tax_tasks):
        points = [
            (arm, score["score"], score["low"], score["high"], order.index(arm))
            for arm in page.tax_arms
            if arm in arms and (score := arms[arm].get(task))
        ]
        if points:
            what = f"Scores on {label(task).lower()} with 95% intervals: " + ", ".join(
                f"{arm} {percent(score)}" for arm, score, *_ in points
            )
            found.append((label(task), figures.intervals(f"tax-{number}", points, what)))
    return found


def cell(value: str | float) -> str:
    """A number of a table to three digits, large ones whole; text as it is."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}".replace("-", "−")


def span(score: Mapping[str, Any] | Verdict) -> str:
    """The interval of a score, in per cent unless it has another unit: "84.1–90.2"."""
    if not isinstance(score, Verdict):
        return f"{100 * score['low']:.1f}–{100 * score['high']:.1f}"
    if score.low is None or score.high is None:
        return ""
    ends = (100 * score.low, 100 * score.high) if score.unit == "%" else (score.low, score.high)
    return "–".join(f"{end:.1f}" if score.unit == "%" else f"{end:.3g}" for end in ends).replace("-", "−")


def duration(seconds: float) -> str:
    """ "42 s", "3 min 07 s", "1 h 04 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def amount(count: float) -> str:
    """A large number to three digits: 2_941_000 -> "2.94 M"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 10 * size or (unit != "k" and count >= size):
            return f"{count / size:.3g} {unit}"
    return f"{count:,.0f}"


def label(key: str) -> str:
    """A name as people write it: "yes_no" -> "Yes no"."""
    text = key.replace("_", " ")
    return text[:1].upper() + text[1:]


def data_url(picture: Part) -> str:
    """A picture inside the page."""
    return media.data_url(picture.media or b"", "image")
