"""sft as a user runs it, on a tiny real model: adapters and what comes of them."""

import json

import pytest
import torch
import yaml
from peft import PeftModel
from tests.conftest import picture
from tests.mrope import mrope_model, mrope_renderer
from tests.stages.test_feedback_stages import assert_resumes

from chatwright.cli import main
from chatwright.data.records import Demonstration, Message
from chatwright.data.render import Renderer
from chatwright.data.store import save
from chatwright.generation.engine import Engine
from chatwright.models.adapters import METHODS, Adapter
from chatwright.models.load import load_model
from chatwright.models.outputs import model_inputs
from chatwright.stages.base import execute
from chatwright.stages.sft import SFT
from chatwright.training.checkpoint import Checkpoints
from chatwright.training.loop import Training


@pytest.fixture
def demonstrations(tmp_path):
    """Sixteen; every other one has a picture."""
    talks = [
        (Message.of("user", "What?", *([picture(i)] if i % 2 else [])), Message.of("assistant", "a red apple"))
        for i in range(16)
    ]
    save([Demonstration(talk) for talk in talks], tmp_path / "demonstrations.parquet")
    return tmp_path / "demonstrations.parquet"


def sft(checkpoint, demonstrations, method):
    rate = 0.3 if method == "prompt" else 0.03
    training = Training(learning_rate=rate, precision="fp32", log_every=1)
    adapter = Adapter(method, rank=4, alpha=8, tokens=6)
    return SFT(
        str(checkpoint), demonstrations, batch_size=8, micro_batch=4, epochs=6, adapter=adapter, training=training
    )


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_learns_and_every_stage_and_peft_open_it(checkpoint, demonstrations, renderer, tmp_path, method):
    out = tmp_path / "out"
    execute(sft(checkpoint, demonstrations, method), out)
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.7 * losses[0]
    model, reader = load_model(out), Renderer.load(out / "model")
    question = [Message.of("user", "What?", picture(1))]
    Engine(model, reader).generate([question])
    words = len(renderer.tokenizer)
    opened = PeftModel.from_pretrained(load_model(checkpoint), out / "adapter").eval()
    with torch.no_grad():
        ours = model(**model_inputs(model, reader.collate([reader.prompt(question)]))).logits[..., :words]
        theirs = opened(**model_inputs(opened, renderer.collate([renderer.prompt(question)]))).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_sft_of_an_adapter_goes_on_where_it_was(checkpoint, demonstrations, tmp_path, monkeypatch, method):
    assert_resumes(sft(checkpoint, demonstrations, method), tmp_path, monkeypatch, after=5)


def test_checkpoints_under_way_hold_the_adapter_alone(checkpoint, demonstrations, tmp_path):
    (tmp_path / "out").mkdir()
    stage = sft(checkpoint, demonstrations, "prompt")
    stage.training.checkpoint_seconds, stage.training.log_every = 0, 1
    stage.run(tmp_path / "out")
    with Checkpoints(tmp_path / "out/state/sft") as checkpoints:
        _, tensors, _ = checkpoints.load({})
    assert [tensor.shape for name, tensor in tensors.items() if name.startswith("model.")] == [(6, 32)]


def test_the_adapter_is_set_by_flags_and_mistakes_are_one_line(checkpoint, demonstrations, tmp_path, capsys):
    command = [
        "sft",
        "--model",
        str(checkpoint),
        "--demonstrations",
        str(demonstrations),
        "--out",
        str(tmp_path / "out"),
    ]
    command += ["--batch_size", "8", "--epochs", "1", "--training.precision", "fp32"]
    for more, words in [
        (["--adapter.method", "ia3"], "'ia3' is not known; use one of lora, dora, prompt"),
        (["--adapter.method", "lora", "--eye_rate", "0.1"], "set eye_rate to 0"),
    ]:
        assert main([*command, *more]) == 1
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert main([*command, "--adapter.method", "dora", "--adapter.rank", "2"]) == 0
    settings = yaml.safe_load((tmp_path / "out/settings.yaml").read_text())["settings"]
    assert settings["adapter"] == {"method": "dora", "rank": 2, "alpha": 32, "dropout": 0.05, "tokens": 20}
    assert json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())["use_dora"] is True


def test_an_eye_that_looks_over_time_learns_along(tokenizer, demonstrations, tmp_path):
    """And its checkpoint, of another kind than the assistant's, goes through the stage like any other."""
    renderer = mrope_renderer(tokenizer)
    model = mrope_model("qwen2_vl", renderer)
    model.save_pretrained(tmp_path / "seer")
    renderer.save(tmp_path / "seer")
    training = Training(learning_rate=0.03, precision="fp32", log_every=1)
    execute(SFT(str(tmp_path / "seer"), demonstrations, 8, epochs=4, eye_rate=0.1, training=training), tmp_path / "out")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.7 * losses[0]
    eyes = [one.model.visual.patch_embed.proj.weight for one in (model, load_model(tmp_path / "out"))]
    assert eyes[0].ndim == 5 and not torch.equal(*eyes)
    assert Renderer.load(tmp_path / "out/model").token_types == renderer.token_types
