"""Several processes, as `torchrun` starts and watches them, make of every stage what one makes."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.generation.servers import Speaker
from tests.pipeline import SHORTNESS, STAGES, course, course_of
from tests.processes import launch, run
from tests.serving.clients import serve
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from chatwright import cli
from chatwright.data.records import Message, Prompt
from chatwright.data.render import Renderer
from chatwright.data.store import save
from chatwright.models.load import load_model
from chatwright.stages.base import Stage, execute
from chatwright.stages.rl import RL
from chatwright.training import distributed

TOGETHER = [name for name, stage in STAGES.items() if stage(Path()).together]
EXACT = ["annotate", "bestofn", "compare"]  # nothing is added up in another order
# Steps before a policy says something else for a rounding error, which in bf16 is a large one.
FIRST_ROUND = {"rl": 4, "dapo": 1}


def run_all(made: Path, out: Path) -> None:
    torch.set_num_threads(1)
    with distributed.world():
        for name in TOGETHER:
            stage = STAGES[name](made)
            for settings in vars(stage).values():
                if hasattr(settings, "checkpoint_seconds"):
                    settings.checkpoint_seconds = 1e9
            execute(stage, out / name)


@pytest.fixture(scope="module")
def by_two(made, tmp_path_factory) -> Path:
    """What two processes make of the same inputs."""
    out = tmp_path_factory.mktemp("by_two")
    launch(2, out / "logs", run_all, made, out)
    return out


@pytest.mark.parametrize("name", [name for name in TOGETHER if name not in EXACT])
def test_two_processes_train_as_one_does(made, by_two, name):
    one, two = course_of(made / name), course_of(by_two / name)
    assert [(line["step"], line.keys()) for line in two] == [(line["step"], line.keys()) for line in one]
    steps = one[: FIRST_ROUND.get(name)]
    assert [line["tokens"] for line in two[: len(steps)]] == [line["tokens"] for line in steps]
    # Dropout is drawn by each process for itself, and in bf16 one process lowers the weights where two use autocast.
    near = {"lora": 5e-2, "dapo": 1e-2}.get(name, 1e-4)
    assert two[0]["norm"] == pytest.approx(one[0]["norm"], rel=near)
    for now, before in zip(two, steps, strict=False):
        assert now["loss"] == pytest.approx(before["loss"], rel=3e-2, abs=1e-3)
    weights = load_file(by_two / name / "model/model.safetensors")
    assert {path: w.shape for path, w in weights.items()} == {
        path: w.shape for path, w in load_file(made / name / "model/model.safetensors").items()
    }


@pytest.mark.parametrize("name", EXACT)
def test_two_processes_answer_as_one_does(made, by_two, name):
    one, two = (json.loads((folder / name / "DONE").read_text())["files"] for folder in (made, by_two))
    assert {k: v for k, v in two.items() if k != "card.md"} == {k: v for k, v in one.items() if k != "card.md"}


def test_two_processes_share_a_server(made, tmp_path):
    """One tells it the weights, and both ask it: together, in every round, what one process asks."""
    speaker = Speaker(load_model(made / "sft"), Renderer.load(made / "sft/model"))
    url, stop = serve(speaker.app)
    asked = [Prompt((Message.of("user", f"How many {number}?"),)) for number in range(8)]
    save(asked, tmp_path / "prompts.parquet")
    stage = RL(
        str(made / "sft"), tmp_path / "prompts.parquet", verifier=SHORTNESS, method="grpo", responses=2, rollouts=8,
        minibatches=2, micro_batch=4, iterations=2, max_new_tokens=8, server=url, training=course(),
    )  # fmt: skip
    try:
        run(stage, tmp_path / "one")
        alone = sorted(json.dumps(body, sort_keys=True) for body in speaker.asked if body["max_tokens"] > 1)
        speaker.asked.clear()
        launch(2, tmp_path / "logs", run, stage, tmp_path / "two")
    finally:
        stop()
    assert alone == sorted(json.dumps(body, sort_keys=True) for body in speaker.asked if body["max_tokens"] > 1)
    assert [folder.name for folder in speaker.loaded] == ["00000", "00001"] * 2
    one, two = course_of(tmp_path / "one"), course_of(tmp_path / "two")
    assert [line["score"] for line in two[:2]] == [line["score"] for line in one[:2]]


def run_and_die(stage: Stage, out: Path) -> None:
    """Of two workers the second is lost after the first checkpoint, unless they have been started anew."""

    def die() -> None:
        while not any(out.glob("state/*/step-*")):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)

    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        threading.Thread(target=die, daemon=True).start()
    run(stage, out)


@pytest.fixture(scope="module")
def cut_off(request, made, tmp_path_factory) -> Path:
    """A run of two processes whose second one was killed."""
    out = tmp_path_factory.mktemp("cut_off") / request.param
    with pytest.raises(ChildFailedError):
        launch(2, out.parent / "logs", run_and_die, STAGES[out.name](made), out)
    assert not (out / "DONE").exists()
    return out


# AdamW behind an eye; Muon; PPO in the middle of a round, with its critic.
@pytest.mark.parametrize("cut_off", ["sft", "pretrain", "rl"], indirect=True)
@pytest.mark.parametrize("count", [1, 4])
def test_a_checkpoint_of_two_processes_is_gone_on_from_by_any_number(made, cut_off, tmp_path, count):
    out = tmp_path / cut_off.name
    shutil.copytree(cut_off, out)
    (out / "metrics.jsonl").unlink()  # every line that is read below is of those who went on
    launch(count, tmp_path / "logs", run, STAGES[out.name](made), out)
    one, found = course_of(made / out.name), course_of(out)
    before = len(one) - len(found)
    assert 0 < before < FIRST_ROUND.get(out.name, len(one))
    assert [line["step"] for line in found] == [line["step"] for line in one[before:]]
    for now, then in zip(found, one[before : FIRST_ROUND.get(out.name)], strict=False):
        assert now["tokens"] == then["tokens"]
        assert [now["loss"], now["norm"]] == pytest.approx([then["loss"], then["norm"]], rel=2e-3)


@pytest.mark.parametrize("cut_off", ["sft"], indirect=True)
def test_a_lost_worker_is_replaced_and_the_result_is_the_same(made, cut_off, tmp_path):
    stage = STAGES["sft"](made)
    launch(2, tmp_path / "logs", run_and_die, stage, tmp_path / "lost", restarts=1)
    assert list(tmp_path.glob("logs/*/attempt_1"))
    launch(2, tmp_path / "logs", run, stage, cut_off)
    lost, whole = (load_file(folder / "model/model.safetensors") for folder in (tmp_path / "lost", cut_off))
    assert all(torch.equal(weight, whole[name]) for name, weight in lost.items())


def command(*arguments: str) -> None:
    raise SystemExit(cli.main(list(arguments)))


def test_a_failure_is_told_once_and_ends_all(tmp_path):
    """Both fail, one after the other: at the same thing, or for having waited for the other."""
    arguments = ("sft", "--model", str(tmp_path / "none"), "--demonstrations", "none", "--out", str(tmp_path / "out"))
    with pytest.raises(ChildFailedError):
        launch(2, tmp_path / "logs", command, *arguments)
    said = "".join(path.read_text() for path in tmp_path.rglob("stderr.log"))
    assert said.count("chatwright:") == 1 and "Traceback" not in said and "no such folder" in said
