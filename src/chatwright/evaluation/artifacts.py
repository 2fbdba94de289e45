"""Reading the artifact folders of a run (`chatwright.stages.base`) for its report.

- every stage's ``DONE`` (seconds), ``settings.yaml`` (what kind of stage it is, which model it took) and
  ``metrics.jsonl``, a JSON object a line: ``step``, any of ``loss``, ``score``, ``reward`` and ``kl``, ``tokens`` (so
  far), and ``stage``, the title of the training where a stage trains more than once.
- an arm's ``scores.json``: task -> {score, low, high, n, chance} with scores in [0, 1] and the higher the better;
  optionally ``by_language`` and ``by_split``, each name -> the same five numbers.
- an arm's ``answers.jsonl``: a line an answer, {id, task, language, split, question, reference, answer, correct, row}
  with ``row`` the place of the prompt in the held-out data; ``id`` names the same question in every arm.
- the reward stage's ``scores.json`` {accuracy, low, high, n, agreement_ceiling (null or absent where it is not known),
  of ("steps" where steps were judged, else pairs)} and ``examples.jsonl``, a line an answer, {end: "best" or "worst",
  row, response, score} with ``row`` the place of the
  comparison in the held-out comparisons.
- the annotate stage's ``agreement.json`` {agreement, target, n}.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from chatwright.data.records import Comparison, Message, Part
from chatwright.errors import ChatwrightError

SCORE = ("score", "low", "high", "n", "chance")
WITHOUT_TOKENS = ("vision", "contrastive")  # trainings that count pictures instead
ASSISTANTS = ("sft", "prefer", "rl")  # stages that make a model to chat with
AGAIN = "delete its folder and run that stage again"


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


def assistant_of(name: str) -> str:
    """A model to chat with: of the folder of a run the assistant that was finished last; any other name as it is.

    Raises:
        ChatwrightError: the run has no assistant yet.
    """
    run = Path(name)
    if not any(run.glob("*/settings.yaml")):
        return name
    found = [stage for stage in stages_of(run) if stage.kind in ASSISTANTS]
    if not found:
        kinds = ", ".join(ASSISTANTS)
        raise ChatwrightError(f"{run}: no stage that makes an assistant ({kinds}) is finished; let its recipe run on")
    return str(found[-1].folder)


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


def final_kl(stage: Ran) -> float | None:
    """The KL to the reference policy where training ended: the mean of the last tenth of what was logged."""
    values = [row["kl"] for row in stage.metrics if "kl" in row]
    last = values[-max(1, len(values) // 10) :]
    return sum(last) / len(last) if last else None


def model_evaluated(folder: Path) -> str:
    """The model that an evaluate stage scored, as its settings name it; empty where they do not."""
    settings = _read_yaml(folder / "settings.yaml").get("settings") or {}
    return str(settings.get("model", ""))


def stage_evaluated(folder: Path, stages: Sequence[Ran]) -> Ran | None:
    """The stage whose model an evaluate stage scored, by its settings; None if it is none of the run's."""
    model = Path(model_evaluated(folder)).resolve()
    return next((stage for stage in stages if model.is_relative_to(stage.folder.resolve())), None)


def picture_of(messages: Sequence[Message]) -> Part | None:
    """The first picture of a conversation."""
    return next((part for message in messages for part in message.content if part.type == "image"), None)


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
