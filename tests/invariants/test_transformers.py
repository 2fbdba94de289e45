"""What a stage saves opens in a fresh process with plain `transformers`: same logits, and chat's own greedy answer."""

import json
import subprocess
import sys

import pytest
import torch
from tests.conftest import picture

from chatwright.data.records import Message
from chatwright.data.render import Renderer
from chatwright.errors import ChatwrightError
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.models.load import load_model
from chatwright.models.outputs import model_inputs
from chatwright.objectives.language.causal import CausalLanguageModel

PLAIN = """
import json, sys
import torch
from PIL import Image
from transformers import AutoModelForMultimodalLM, AutoProcessor

folder, image, question = sys.argv[1:]
model = AutoModelForMultimodalLM.from_pretrained(folder).eval()
processor = AutoProcessor.from_pretrained(folder)
parts = [{"type": "image", "image": Image.open(image)}, {"type": "text", "text": question}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": parts}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
with torch.no_grad():
    logits = model(**inputs).logits[0, -1]
    tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1]:]
assert "chatwright" not in sys.modules
print(json.dumps({"logits": logits.tolist(), "tokens": tokens.tolist()}))
"""


def test_plain_transformers_gives_the_same_logits_and_the_same_greedy_answer(renderer, assistant, tmp_path):
    CausalLanguageModel(assistant, renderer).save(tmp_path / "model")
    picture(5).save(tmp_path / "picture.png")
    command = [sys.executable, "-c", PLAIN, str(tmp_path / "model"), str(tmp_path / "picture.png"), "How many dogs?"]
    plain = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    model, opened = load_model(tmp_path), Renderer.load(tmp_path / "model")
    talk = [Message.of("user", "How many dogs?", picture(5))]
    batch = model_inputs(model, opened.collate([opened.prompt(talk)]))
    with torch.no_grad():
        ours = model(**batch).logits[0, -1]
    torch.testing.assert_close(ours, torch.tensor(plain["logits"]), rtol=1e-5, atol=1e-5)
    answer = Engine(model, opened).generate([talk], Sampling(max_new_tokens=12, temperature=0))[0][0]
    assert answer.tokens == plain["tokens"]


@pytest.fixture
def saved(renderer, assistant, tmp_path):
    CausalLanguageModel(assistant, renderer).save(tmp_path / "model")
    return tmp_path / "model"


def test_a_checkpoint_with_a_damaged_file(saved):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ChatwrightError, match="damaged or not a checkpoint") as caught:
        load_model(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_checkpoint_with_a_missing_file(saved, name):
    (saved / name).unlink()
    with pytest.raises(ChatwrightError, match=f"{name}"):
        load_model(saved)


def test_a_checkpoint_without_its_processor(saved):
    for file in saved.glob("*token*"):
        file.unlink()
    for file in saved.glob("*process*"):
        file.unlink()
    with pytest.raises(ChatwrightError, match="no processor or tokenizer"):
        Renderer.load(saved)


def test_a_folder_that_is_not_there():
    with pytest.raises(ChatwrightError, match="no such folder"):
        load_model("runs/nothing/here")
