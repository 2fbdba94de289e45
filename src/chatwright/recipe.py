"""Running a recipe: a YAML list of stages, done in order, each skipped where it is finished and unchanged.

    out: runs/demo
    stages:
      tokenizer: {documents: $data/documents.parquet}
      ppo: {stage: rl, model: $sft, reward: $reward}

A stage's name is the command it runs unless ``stage`` says so; its artifact is the folder ``<out>/<name>``, for which
``$name`` stands in the settings of later stages.
"""

import re
import sys
from contextlib import nullcontext
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError as JsonArgumentError
from jsonargparse import ArgumentParser, Namespace

from chatwright import memory
from chatwright.errors import ChatwrightError
from chatwright.evaluation.artifacts import ASSISTANTS
from chatwright.files import locked
from chatwright.stages import STAGES
from chatwright.stages.base import Stage, execute
from chatwright.terminal import console
from chatwright.training import distributed
from chatwright.training.progress import Bar


def run(path: Path, out: Path | None = None) -> None:
    """Run the recipe at ``path``.

    Args:
        path: the YAML file.
        out: the run's folder, instead of the one that the recipe names.

    Raises:
        ChatwrightError: the recipe cannot be read, names an unknown stage or field, or a stage fails.
    """
    folder, stages = read(path, out)
    with locked(folder) if distributed.first() else nullcontext():
        for number, (name, stage) in enumerate(stages.items(), start=1):
            Bar.place = f"stage {number} of {len(stages)} · {name}"
            if not execute(stage, folder / name):
                console.print(f"{Bar.place}: finished before")
            memory.give_back()
        Bar.place = ""
        _say_what_is_there(folder, stages)


def _say_what_is_there(folder: Path, stages: dict[str, Stage]) -> None:
    """Where to look and how to talk with what was made."""
    if (folder / "report.html").exists():
        console.print(f"\nThe report: {folder / 'report.html'} (for machines: {folder / 'report.json'})")
    talkers = [name for name, stage in stages.items() if stage.name() in ASSISTANTS]
    if talkers:
        program = Path(sys.argv[0])
        command = program if program.name == "chatwright" else "chatwright"
        console.print(f"To chat:    {command} chat {folder / talkers[-1]}", soft_wrap=True)


def read(path: Path, out: Path | None = None) -> tuple[Path, dict[str, Stage]]:
    """The run's folder and its stages by name, all settings checked before anything runs."""
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ChatwrightError(f"{path}: cannot be read ({error.strerror}); name a recipe file") from error
    except yaml.YAMLError as error:
        raise ChatwrightError(f"{path}: not YAML ({' '.join(str(error).split())}); mend the line it names") from error
    if not isinstance(recipe, dict) or not isinstance(recipe.get("stages"), dict):
        raise ChatwrightError(f"{path}: a recipe needs `stages:`, a mapping of names to settings")
    if unknown := set(recipe) - {"out", "stages"}:
        raise ChatwrightError(f"{path}: unknown key {min(unknown)!r}; a recipe has `out` and `stages`")
    folder = out or Path(recipe.get("out", Path("runs") / path.stem))
    stages: dict[str, Stage] = {}
    for name, settings in recipe["stages"].items():
        settings = dict(settings or {})
        command = settings.pop("stage", name)
        if command not in STAGES:
            raise ChatwrightError(f"{path}: unknown stage {command!r}{_hint(command, STAGES)}")
        known = {"run": folder, **{earlier: folder / earlier for earlier in stages}}
        stages[name] = _build(STAGES[command], _resolve(settings, known, f"{path}: {name}"), f"{path}: {name}")
    return folder, stages


def _resolve(value: Any, known: dict[str, Path], place: str) -> Any:
    """Put folders in the place of ``$name``."""
    if isinstance(value, dict):
        return {key: _resolve(item, known, place) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, known, place) for item in value]
    if isinstance(value, str) and (found := re.match(r"\$(\w+)", value)):
        if found[1] not in known:
            raise ChatwrightError(f"{place}: ${found[1]} is no stage before this one{_hint(found[1], known)}")
        return str(known[found[1]]) + value[found.end() :]
    return value


def _build(stage: type[Stage], settings: dict[str, Any], place: str) -> Stage:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(stage, None)
    fields = stage.__dataclass_fields__
    if unknown := [key for key in settings if key not in fields]:
        raise ChatwrightError(f"{place}: unknown field {unknown[0]!r}{_hint(unknown[0], fields)}")
    try:
        parsed: Namespace = parser.parse_object(settings)
    except (JsonArgumentError, TypeError, ValueError) as error:
        raise ChatwrightError(f"{place}: {' '.join(str(error).split())}") from error
    return stage(**vars(parser.instantiate(parsed)))


def _hint(word: str, known: Any) -> str:
    near = get_close_matches(str(word), list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
