"""The folder of a run: which of its stages is meant."""

import os
from pathlib import Path

import pytest

from chatwright.errors import ChatwrightError
from chatwright.evaluation.artifacts import assistant_of


def begin(folder: Path, kind: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "settings.yaml").write_text(f"stage: {kind}\n")
    return folder / "DONE"


def end(done: Path, at: int) -> None:
    done.write_text('{"seconds": 1}')
    os.utime(done, (at, at))


def test_of_a_run_the_assistant_is_meant_that_was_finished_last(tmp_path):
    run = tmp_path / "run"
    assert assistant_of(str(run)) == str(run), "for others to judge"
    end(begin(run / "pretrain", "pretrain"), 1)
    sft = begin(run / "sft", "sft")
    with pytest.raises(ChatwrightError, match=r"no stage that makes an assistant .* is finished"):
        assistant_of(str(run))
    end(sft, 2)
    end(begin(run / "reward", "reward"), 3)
    end(begin(run / "ppo.previous", "rl"), 4)
    assert assistant_of(str(run)) == str(run / "sft")
    end(begin(run / "a", "rl"), 6)
    end(begin(run / "b", "prefer"), 5)
    begin(run / "c", "rl")
    assert assistant_of(str(run)) == str(run / "a")
    assert assistant_of(str(run / "sft")) == str(run / "sft") and assistant_of("who/what") == "who/what"
