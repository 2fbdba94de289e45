"""A stage killed with SIGKILL at random moments and started again ends in the same bytes as one left alone."""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
from tests.pipeline import STAGES
from tests.processes import context, run

from chatwright.stages.base import Stage

KILLS = 10


def cut_off(stage: Stage, out: Path, seconds: float) -> bool:
    """Run a stage in a process of its own and kill it after so long, if it has not ended; whether it had to be."""
    process = context.Process(target=run, args=(stage, out))
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def files_of(out: Path) -> dict[str, str]:
    """The hashes of an artifact's files but for the card, which tells the time."""
    return {name: value for name, value in json.loads((out / "DONE").read_text())["files"].items() if name != "card.md"}


@pytest.mark.parametrize("name", [name for name in STAGES if name != "tokenizer"])
def test_killed_and_resumed_gives_the_same_bytes(made, tmp_path, name):
    rng = random.Random(name)
    stage, out = STAGES[name](made), tmp_path / name
    seconds = json.loads((made / name / "DONE").read_text())["seconds"]
    kills = 0
    while kills < KILLS:
        if cut_off(stage, out, rng.uniform(0, seconds)):
            kills += 1
        else:
            assert files_of(out) == files_of(made / name)
            shutil.rmtree(out)
            seconds *= 0.8  # the machine may have been busier when this was measured
    assert not cut_off(stage, out, 120)
    assert files_of(out) == files_of(made / name)


def test_what_a_kill_left_half_written_is_no_part_of_an_artifact(made, tmp_path):
    out = tmp_path / "tokenizer"
    out.mkdir()
    (out / ".DONE.part").write_text('{"seconds": ')
    run(STAGES["tokenizer"](made), out)
    assert files_of(out) == files_of(made / "tokenizer")
    assert not (out / ".DONE.part").exists()
