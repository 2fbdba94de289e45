"""The report of a run: what was claimed and what was measured, as ``report.json`` and as one HTML file for people.

What is read, from the artifact folders of a run (`chatwright.stages.base`):

- every stage's ``DONE`` (seconds), ``settings.yaml`` (what kind of stage it is, which model it took) and
  ``metrics.jsonl``, a JSON object a line: ``step``, any of ``loss``, ``score``, ``reward`` and ``kl``, ``tokens`` (so
  far), and ``stage``, the title of the training where a stage trains more than once.
- an arm's ``scores.json``: task -> {score, low, high, n, chance} with scores in [0, 1] and the higher the better;
  optionally ``by_language`` and ``by_split``, each name -> the same five numbers.
- an arm's ``answers.jsonl``: a line an answer, {id, task, language, split, question, reference, answer, correct, row}
  with ``row`` the place of the prompt in the held-out data; ``id`` names the same question in every arm.
- the reward stage's ``scores.json`` {accuracy, low, high, n, agreement_ceiling (null where it is not known)} and
  ``examples.jsonl``, a line an answer, {end: "best" or "worst", row, response, score} with ``row`` the place of the
  comparison in the held-out comparisons.
- the annotate stage's ``agreement.json`` {agreement, target, n}.

What ``report.json`` holds: ``arms.<arm>.<task>``, ``win_rate.<a>_vs_<b>``, ``reward_model``, ``annotators``,
``kl.<arm>``, ``seconds.<stage>``, ``parameters``, ``tokens`` and ``claims``.
"""

import hashlib
import json
import math
import struct
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from chatwright.data import media
from chatwright.data.records import Comparison, Message, Part, Prompt
from chatwright.errors import ChatwrightError
from chatwright.evaluation import figures

SCORE = ("score", "low", "high", "n", "chance")
WHAT = {
    "data": "records to learn from",
    "instructions": "records to learn from",
    "tokenizer": "byte-level BPE",
    "pretrain": "reads raw text",
    "vision": "the eye learns alone",
    "align": "pictures meet words",
    "sft": "learns to follow",
    "annotate": "answers are ranked",
    "reward": "learns what is liked",
    "rl": "learns from reward",
    "prefer": "learns from pairs",
    "evaluate": "held-out questions",
}
WITHOUT_TOKENS = ("vision", "contrastive")  # trainings that count pictures instead
CURVES = {
    "loss": "Loss",
    "score": "Score by the reward model",
    "reward": "Reward, after penalties",
    "kl": "KL to the reference policy",
}


@dataclass
class Claim:
    """A sentence that a number of the report makes true or false.

    ``measure`` is the number's dotted path in ``report.json`` ("arms.sft.counting.score"). It is to be ``at_least`` a
    number, or ``times`` the number at ``of``, or not more than ``within`` below the number at ``of``, or ``above`` it.
    """

    says: str
    measure: str
    at_least: float | None = None
    times: float | None = None
    within: float | None = None
    above: bool = False
    of: str | None = None


@dataclass(frozen=True)
class Verdict:
    """A claim beside its measurement; ``reached`` is None where the run did not measure it."""

    says: str
    measure: str
    target: float | None
    score: float | None
    low: float | None
    high: float | None
    n: int | None
    reached: bool | None
    rule: str

    @property
    def close(self) -> bool:
        """Whether the target lies inside the interval, so that chance may have decided."""
        return None not in (self.low, self.high, self.target) and self.low <= self.target <= self.high  # type: ignore[operator]


@dataclass
class Ran:
    """A finished stage of the run."""

    name: str
    folder: Path
    kind: str
    seconds: float
    settings: dict[str, Any]
    metrics: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens trained on."""
        return sum(count for title, count in self._counts().items() if title not in WITHOUT_TOKENS)

    @property
    def pictures(self) -> int:
        """Pictures trained on where no tokens were read."""
        return sum(count for title, count in self._counts().items() if title in WITHOUT_TOKENS)

    def _counts(self) -> dict[str, int]:
        """What every training of this stage counted until its end."""
        most: dict[str, int] = {}
        for row in self.metrics:
            title = row.get("stage", self.kind)
            most[title] = max(most.get(title, 0), int(row.get("tokens", 0)))
        return most


# --------------------------------------------------------------------------------------------------- reading a run


def stages_of(run: Path) -> list[Ran]:
    """The finished stages below a run's folder, in the order in which they finished."""
    done = [path for path in run.glob("*/DONE") if not path.parent.name.endswith(".previous")]
    found = []
    for path in sorted(done, key=lambda path: (path.stat().st_mtime_ns, path.parent.name)):
        folder = path.parent
        seconds = _number(read_json(path), "seconds", path)
        settings = _read_yaml(folder / "settings.yaml")
        metrics = folder / "metrics.jsonl"
        found.append(
            Ran(
                name=folder.name,
                folder=folder,
                kind=settings.get("stage", folder.name),
                seconds=seconds,
                settings=settings.get("settings") or {},
                metrics=read_lines(metrics) if metrics.exists() else [],
            )
        )
    return found


def read_scores(folder: Path) -> dict[str, Any]:
    """An arm's ``scores.json``, checked.

    Raises:
        ChatwrightError: it is missing, is not JSON, or a task lacks one of its five numbers.
    """
    path = folder / "scores.json"
    scores = read_json(path)
    for task, score in scores.items():
        parts = [(task, score)]
        for key in ("by_language", "by_split"):
            if isinstance(score, dict):
                parts += [(f"{task}.{key}.{name}", part) for name, part in score.get(key, {}).items()]
        for name, part in parts:
            if not isinstance(part, dict):
                raise ChatwrightError(f"{path}: {name!r} is not an object with {', '.join(SCORE)}; {AGAIN}")
            for key in SCORE:
                _number(part, key, path, name)
    return scores


def read_reward(folder: Path) -> dict[str, Any]:
    """The reward stage's ``scores.json``, checked as `read_scores` does."""
    path = folder / "scores.json"
    scores = read_json(path)
    for key in ("accuracy", "low", "high", "n"):
        _number(scores, key, path)
    if scores.get("agreement_ceiling") is not None:
        _number(scores, "agreement_ceiling", path)
    return scores


def read_agreement(folder: Path) -> dict[str, Any]:
    """The annotate stage's ``agreement.json``, checked as `read_scores` does."""
    path = folder / "agreement.json"
    agreement = read_json(path)
    for key in ("agreement", "target", "n"):
        _number(agreement, key, path)
    return agreement


@dataclass(frozen=True)
class Liked:
    """An answer that the reward model scored, with what it answers."""

    question: str
    picture: Part | None
    reference: str
    response: str
    score: float


def read_examples(folder: Path, comparisons: Sequence[Comparison], count: int) -> dict[str, list[Liked]]:
    """The answers that the reward model likes "best" and "worst", at most ``count`` of each, as its stage ordered them.

    Args:
        comparisons: the held-out comparisons that the reward stage was tested on.
    """
    path = folder / "examples.jsonl"
    found: dict[str, list[Liked]] = {"best": [], "worst": []}
    for number, row in enumerate(read_lines(path), 1):
        _texts(row, ("end", "response"), path, number)
        place = _place(row, len(comparisons), path, number)
        score = _number(row, "score", path, f"line {number}")
        if row["end"] not in found:
            raise ChatwrightError(f"{path}: line {number}: 'end' is {row['end']!r}, not 'best' or 'worst'; {AGAIN}")
        if len(found[row["end"]]) < count:
            comparison = comparisons[place]
            reference = str(comparison.meta.get("answers", {}).get("bare", ""))
            question = next((turn.text for turn in reversed(comparison.messages) if turn.role == "user"), "")
            found[row["end"]].append(
                Liked(question, picture_of(comparison.messages), reference, row["response"], score)
            )
    return found


def read_answers(folder: Path, prompts: int) -> list[dict[str, Any]]:
    """An arm's ``answers.jsonl``, checked.

    Args:
        prompts: how many prompts the held-out data holds.

    Raises:
        ChatwrightError: it is missing or damaged, a field is missing, or a row is not in the data.
    """
    path = folder / "answers.jsonl"
    rows = read_lines(path)
    for number, row in enumerate(rows, 1):
        _texts(row, ("task", "language", "split", "question", "answer"), path, number)
        missing = [key for key in ("id", "reference", "correct", "row") if key not in row]
        if missing:
            raise ChatwrightError(f"{path}: line {number} has no {missing[0]!r}; {AGAIN}")
        _place(row, prompts, path, number)
    return rows


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file that a stage wrote.

    Raises:
        ChatwrightError: the file is missing or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ChatwrightError(f"{path}: missing; run the stage that makes {path.parent} first") from error
    except (OSError, ValueError) as error:
        raise ChatwrightError(f"{path}: cannot be read ({error}); {AGAIN}") from error
    if not isinstance(value, dict):
        raise ChatwrightError(f"{path}: is not a JSON object; {AGAIN}")
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a JSONL file that a stage wrote.

    Raises:
        ChatwrightError: the file is missing or a line is not a JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise ChatwrightError(f"{path}: missing; run the stage that makes {path.parent} first") from error
    except (OSError, ValueError) as error:
        raise ChatwrightError(f"{path}: cannot be read ({error}); {AGAIN}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ChatwrightError(f"{path}: line {number} is not JSON ({error}); {AGAIN}") from error
        if not isinstance(row, dict):
            raise ChatwrightError(f"{path}: line {number} is not a JSON object; {AGAIN}")
        rows.append(row)
    return rows


def count_parameters(folder: Path) -> int:
    """The numbers in the safetensors files of a model folder, read from their headers alone.

    Raises:
        ChatwrightError: there is no such file, or its header is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ChatwrightError(f"{folder}: holds no *.safetensors file; name the folder of a trained model")
    total = 0
    for path in files:
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(min(length, path.stat().st_size)))
            total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
        except (struct.error, ValueError, KeyError, TypeError) as error:
            raise ChatwrightError(f"{path}: damaged header ({error}); {AGAIN}") from error
    return total


AGAIN = "delete its folder and run that stage again"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ChatwrightError(f"{path}: cannot be read; {AGAIN}") from error
    return value if isinstance(value, dict) else {}


def _texts(row: Mapping[str, Any], keys: Sequence[str], path: Path, number: int) -> None:
    for key in keys:
        if not isinstance(row.get(key), str):
            raise ChatwrightError(f"{path}: line {number} has no text {key!r}; {AGAIN}")


def _number(values: Mapping[str, Any], key: str, path: Path, inside: str = "") -> float:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        where = f"{inside}.{key}" if inside else key
        raise ChatwrightError(f"{path}: {where!r} is {'missing' if value is None else 'not a number'}; {AGAIN}")
    return value


def _place(row: Mapping[str, Any], rows: int, path: Path, number: int) -> int:
    place = _number(row, "row", path, f"line {number}")
    if not 0 <= place < rows:
        raise ChatwrightError(
            f"{path}: line {number} is about row {place} of data with {rows} rows; name the data that was used there"
        )
    return int(place)


# ------------------------------------------------------------------------------------------------ what it measures


def mean_of(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of several tasks' scores as one score; every task weighs the same.

    The interval treats the tasks as independent: its half-widths are the root of the sum of squares of theirs, divided
    by their number. Languages and splits are averaged over the tasks that have them.
    """
    count = len(scores)
    mean: dict[str, Any] = {key: sum(score[key] for score in scores) / count for key in ("score", "chance")}
    mean["low"] = mean["score"] - math.sqrt(sum((score["score"] - score["low"]) ** 2 for score in scores)) / count
    mean["high"] = mean["score"] + math.sqrt(sum((score["high"] - score["score"]) ** 2 for score in scores)) / count
    mean["n"] = sum(score["n"] for score in scores)
    for key in ("by_language", "by_split"):
        parts = defaultdict(list)
        for score in scores:
            for name, part in score.get(key, {}).items():
                parts[name].append(part)
        if parts:
            mean[key] = {name: mean_of(found) for name, found in parts.items()}
    return mean


def judge(claim: Claim, numbers: Mapping[str, Any]) -> Verdict:
    """Hold a claim against the numbers of a report.

    Raises:
        ChatwrightError: the claim names no target, or more than one.
    """
    rules = [claim.at_least is not None, claim.times is not None, claim.within is not None, claim.above]
    if sum(rules) != 1 or (claim.at_least is None) == (claim.of is None):
        raise ChatwrightError(
            f"claim {claim.says!r}: give either at_least, or of with one of times, within or above; nothing else"
        )
    score, around = lookup(numbers, claim.measure), lookup_object(numbers, claim.measure)
    base = None if claim.of is None else lookup(numbers, claim.of)
    target: float | None
    if claim.at_least is not None:
        target, rule = claim.at_least, f"at least {percent(claim.at_least)}"
    elif base is None:
        target, rule = None, f"compared with {claim.of}"
    elif claim.times is not None:
        target, rule = claim.times * base, f"at least {claim.times:g} × {percent(base)} = {percent(claim.times * base)}"
    elif claim.within is not None:
        target = base - claim.within
        rule = f"at most {100 * claim.within:g} points below {percent(base)}"
    else:
        target, rule = base, f"above {percent(base)}"
    reached = None
    if score is not None and target is not None:
        reached = score > target if claim.above else score >= target
    low, high, n = (around.get(key) for key in ("low", "high", "n"))
    return Verdict(claim.says, claim.measure, target, score, low, high, n, reached, rule)


def lookup(numbers: Mapping[str, Any], path: str) -> float | None:
    """The number at a dotted path, None where there is none."""
    value = lookup_object(numbers, path).get(path.rsplit(".", 1)[-1])
    return value if isinstance(value, int | float) else None


def lookup_object(numbers: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """The object that holds the number at a dotted path, empty where there is none."""
    here: Any = numbers
    for key in path.split(".")[:-1]:
        here = here.get(key) if isinstance(here, Mapping) else None
    return here if isinstance(here, Mapping) else {}


def with_means(scores: dict[str, Any], means: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """An arm's scores after the means of those that it was scored on."""
    found = {name: [scores[task] for task in group if task in scores] for name, group in means.items()}
    return {name: mean_of(group) for name, group in found.items() if group} | scores


def final_kl(stage: Ran) -> float | None:
    """The KL to the reference policy where training ended: the mean of the last tenth of what was logged."""
    values = [row["kl"] for row in stage.metrics if "kl" in row]
    last = values[-max(1, len(values) // 10) :]
    return sum(last) / len(last) if last else None


def stage_evaluated(folder: Path, stages: Sequence[Ran]) -> Ran | None:
    """The stage whose model an evaluate stage scored, by its settings; None if it is none of the run's."""
    settings = _read_yaml(folder / "settings.yaml").get("settings") or {}
    model = Path(str(settings.get("model", ""))).resolve()
    return next((stage for stage in stages if model.is_relative_to(stage.folder.resolve())), None)


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


# -------------------------------------------------------------------------------------------------------- the page


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
        "span": span,
        "duration": duration,
        "amount": amount,
        "label": label,
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
    found = []
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
                colour = order.index(arm) if arm else figures.ARM_COLOURS - 1
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


def percent(value: float) -> str:
    """A share in per cent with one decimal: 0.8742 -> "87.4%"."""
    return f"{100 * value:.1f}%"


def span(score: Mapping[str, Any] | Verdict) -> str:
    """The interval of a score in per cent: "84.1–90.2"."""
    low, high = (score.low, score.high) if isinstance(score, Verdict) else (score["low"], score["high"])
    return "" if low is None or high is None else f"{100 * low:.1f}–{100 * high:.1f}"


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


def picture_of(messages: Sequence[Message]) -> Part | None:
    """The first picture of a conversation."""
    return next((part for message in messages for part in message.content if part.type == "image"), None)
