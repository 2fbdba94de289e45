"""Work in several processes gives what one process would, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from tests.conftest import picture

from chatwright.data.records import Message
from chatwright.errors import ChatwrightError
from chatwright.stages import workers


@pytest.fixture(autouse=True)
def two(monkeypatch):
    """Two processes, also where the tests themselves have one thread each."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def dialogues(count):
    """Every third without a picture."""
    asked = [[Message.of("user", f"What is {i}?", *([picture(i)] if i % 3 else []))] for i in range(count)]
    return [[*turns, Message.of("assistant", f"a dog {i}")] for i, turns in enumerate(asked)]


def test_many_rows_are_those_of_one_process_in_their_order(renderer):
    records = dialogues(workers.FEW_ROWS)
    rows = workers.render_rows(renderer.demonstration, records)
    alone = [renderer.demonstration(record) for record in records]
    assert [row.digest for row in rows] == [row.digest for row in alone]
    assert [row.loss_mask for row in rows] == [row.loss_mask for row in alone]
    assert rows[1].media["pixel_values"].dtype == torch.float32


def test_the_numbers_of_the_run_stay_as_they_are():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert list(workers.each(os.path.basename, ["a/b", "c/d"], "names")) == ["b", "d"]
    assert torch.equal(torch.get_rng_state(), before)


def test_the_work_is_done_by_others():
    assert os.getpid() not in list(workers.each(_process, range(4), "processes"))


def test_a_bad_row_is_the_same_line_as_in_one_process(renderer):
    records = [*dialogues(workers.FEW_ROWS), [Message.of("user", "Nobody answers.")]]
    with pytest.raises(ChatwrightError, match=r"^a demonstration without an assistant turn teaches nothing; add the"):
        workers.render_rows(renderer.demonstration, records)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_they_end_with_the_run(tmp_path, end):
    """As Ctrl-C in a terminal reaches all of a group; a SIGKILL only the one that was meant."""
    script = (
        "import torch\n"
        "from functools import partial\n"
        "from pathlib import Path\n"
        "from tests.stages import test_workers\n"
        "from chatwright.stages import workers\n"
        "torch.set_num_threads(2)\n"
        f"list(workers.each(partial(test_workers.linger, Path({str(tmp_path)!r})), range(100), 'lingering'))\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.05)
        assert run.poll() is None
    started = [int(file.name) for file in tmp_path.iterdir()]
    if end == signal.SIGINT:
        os.killpg(run.pid, end)
    else:
        run.kill()
    _, said = run.communicate(timeout=60)
    assert said.count(b"Traceback") == (end == signal.SIGINT)  # of the run itself, and of none that works for it
    for _ in range(600):
        if not any(map(_lives, started)):
            return
        time.sleep(0.05)
    raise AssertionError("processes were left behind")


def linger(folder, number):
    """Say who does it, and take some time."""
    (folder / str(os.getpid())).touch()
    time.sleep(0.2)
    return number


def _process(number):
    return os.getpid()


def _lives(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
