"""A stage reads records and checkpoints from disk and writes one artifact folder.

An artifact folder holds ``settings.yaml`` (the settings and hashes of the inputs), what the stage made (``model/``,
records as Parquet, ...), ``metrics.jsonl`` where something was trained, ``card.md``, ``state/`` while it is under way,
and ``DONE``, written last: seconds taken and the hash of every file.
"""

import dataclasses
import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from chatwright.errors import ChatwrightError
from chatwright.files import digest, locked, write
from chatwright.terminal import console
from chatwright.training import distributed


@dataclass
class Stage:
    """Settings of a stage; the fields are the command's flags and the recipe's keys."""

    artifact: ClassVar[bool] = True  # False: a command such as chat that leaves no folder
    together: ClassVar[bool] = False  # whether several processes share the work; if not, the first does it alone

    def run(self, out: Path) -> None:
        """Do the work, writing into ``out``; called again after an interruption, go on from ``out/state``.

        Of several processes that work together only the first writes, but for what they keep in ``out/state``.
        """
        raise NotImplementedError

    @classmethod
    def name(cls) -> str:
        """Of its command; a space divides a group of commands from the command."""
        return cls.__name__.lower()

    def inputs(self) -> dict[str, str]:
        """What tells by field whether an input that is no plain file has changed."""
        return {}

    def settings(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))


def execute(stage: Stage, out: Path) -> bool:
    """Run ``stage`` into ``out`` unless it is finished there with the same settings and inputs.

    A run that was cut off goes on where it was. A finished or started run with other settings or inputs is moved to
    ``<out>.previous`` and made anew. Every process of a world has to call it.

    Returns:
        True if something was done, False if everything was there already.

    Raises:
        ChatwrightError: another process works in ``out``, or what the stage raises.
    """
    if not distributed.first():
        return _assist(stage, out)
    if not stage.artifact:
        stage.run(out)
        return True
    settings = {"stage": stage.name(), "settings": stage.settings(), "inputs": _hashes_of_inputs(stage)}
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    with locked(out):
        before = out / "settings.yaml"
        if before.exists() and before.read_text() != text:
            _set_aside(out)
        if (out / "DONE").exists() and (out / "settings.yaml").exists():
            return distributed.agreed(False)
        (out / "state").mkdir(parents=True, exist_ok=True)
        write(before, text)
        clock = out / "state" / "seconds"
        spent, begun = float(clock.read_text()) if clock.exists() else 0.0, time.monotonic()
        distributed.agreed(True)
        try:
            stage.run(out)
        finally:
            seconds = spent + time.monotonic() - begun
            write(clock, f"{seconds:.3f}")
        write(out / "card.md", _card(settings, seconds))
        shutil.rmtree(out / "state")
        for left in out.rglob(".*.part"):  # by a kill in the middle of writing a file
            left.unlink()
        files = {str(path.relative_to(out)): digest(path) for path in sorted(out.rglob("*")) if path.is_file()}
        write(out / "DONE", json.dumps({"seconds": round(seconds, 3), "files": files}, indent=1))
    distributed.barrier()
    return True


def _assist(stage: Stage, out: Path) -> bool:
    """`execute` in a process that is not the first: a share of the work, once the first has made the folder ready."""
    if not stage.artifact or not distributed.agreed(False):
        return False
    if stage.together:
        stage.run(out)
    distributed.barrier()
    return True


def verify(folder: Path) -> None:
    """Check a finished artifact against the hashes in its DONE.

    Raises:
        ChatwrightError: a file is missing or is not what the stage wrote.
    """
    done = json.loads((folder / "DONE").read_text())
    for name, expected in done["files"].items():
        path = folder / name
        if not path.exists():
            raise ChatwrightError(f"{path}: missing from a finished artifact; delete {folder} and run its stage again")
        if digest(path) != expected:
            raise ChatwrightError(f"{path}: damaged (its hash has changed); delete {folder} and run its stage again")


def _set_aside(out: Path) -> None:
    previous = out.with_name(out.name + ".previous")
    if previous.exists():
        shutil.rmtree(previous)
    out.rename(previous)
    console.print(f"{out}: settings or inputs have changed; the former result is now {previous}")


def _hashes_of_inputs(stage: Stage) -> dict[str, str]:
    """Hash every file or artifact folder that a field names, and the file of a ``file.py:function``; a path that does
    not exist is the stage's to judge."""
    hashes = stage.inputs()
    for key, value in _leaves(dataclasses.asdict(stage)):
        if key not in hashes and isinstance(value, Path | str) and str(value):
            path = Path(re.sub(r"\.py:\w+$", ".py", str(value)))
            if path.exists():
                hashes[key] = _hash_of(path)
    return hashes


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _leaves(item, f"{key}.{place}")
    else:
        yield key, value


def _hash_of(path: Path) -> str:
    if path.is_file():
        return digest(path)
    if (path / "DONE").exists():
        verify(path)
        files = json.loads((path / "DONE").read_text())["files"]
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    listing = [(str(p.relative_to(path)), p.stat().st_size) for p in sorted(path.rglob("*")) if p.is_file()]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _card(settings: dict[str, Any], seconds: float) -> str:
    return (
        f"# {settings['stage']}\n\nMade by `chatwright {settings['stage']}` in {seconds:.0f} s.\n\n"
        f"```yaml\n{yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)}```\n"
    )
