"""Another model takes over while people and programs are being answered."""

import json
import time
from uuid import UUID, uuid4

import openai
import pytest
import torch
from tests.conftest import LINES, spread
from tests.serving.clients import held

from chatwright.data.records import Message
from chatwright.data.render import Renderer
from chatwright.feedback.tables import Message as Kept
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.models import build
from chatwright.serving.served import Model

DOGS = [{"role": "user", "content": "How many dogs?"}]


@pytest.fixture
def other(tokenizer) -> Engine:
    """A model that reads text only, with other and fewer words."""
    words = tokenizer.train_new_from_iterator(LINES[2:], 285, show_progress=False)
    torch.manual_seed(2)
    model = build.decoder(words, width=16, depth=1, heads=2, length=128)
    spread(model)
    assert len(words) < len(tokenizer)
    return Engine(model.eval(), Renderer(words), batch_size=2)


def test_a_model_is_swapped_under_open_streams(running, assistant, endless, other, monkeypatch):
    monkeypatch.setattr(other.renderer, "stop_ids", set())
    assistant.register_forward_pre_hook(lambda *_: time.sleep(0.01))
    ann = running.person("ann")
    conversation = ann.talk()
    asked = ann.say(conversation, "How many dogs?")
    program = running.client.chat.completions.create(model="tiny", messages=DOGS, max_tokens=80, seed=1, stream=True)
    pieces = iter(program)
    said = next(pieces).choices[0].delta.content
    page = ann.events(conversation, asked)
    shown = next(page)
    with held(running.service):
        assert not all(line.idle for line in running.service._lines)
        running.served.swap(Model(other, "another", "b" * 64))

    whole = openai.OpenAI(base_url=f"{running.url}/v1", api_key=running.key).chat.completions
    new = whole.create(model="another", messages=DOGS, max_tokens=20, seed=1).choices[0].message.content
    (second,) = ann.ask(conversation, asked)
    said += "".join(piece.choices[0].delta.content or "" for piece in pieces)
    *_, first = [shown, *page]

    turn = [Message.of("user", "How many dogs?")]
    assert said == running.engine.generate([turn], Sampling(80, 1, seed=1))[0][0].text
    assert new == other.generate([turn], Sampling(20, 1, seed=1))[0][0].text
    for event, engine, name, checkpoint in ((first, running.engine, "tiny", "a"), (second, other, "another", "b")):
        with running.database.reading() as session:
            kept = session.get(Kept, UUID(event["answer"]))
        (alone,) = engine.generate([turn], Sampling(**kept.sampling))[0]
        assert (kept.text, kept.model, kept.checkpoint) == (alone.text.replace("\0", "\ufffd"), name, checkpoint * 64)

    assert [model.id for model in running.client.models.list()] == ["another"]
    with pytest.raises(openai.NotFoundError, match="there is no model 'tiny' here; use 'another'"):
        running.client.chat.completions.create(model="tiny", messages=DOGS)
    told = running.client.completions.create(model="another", prompt="dog", max_tokens=0, logprobs=1, echo=True)
    assert len(told.choices[0].logprobs.tokens) == len(other.renderer.tokenizer("dog")["input_ids"])
    assert "another" in ann.get("/").text and "This model reads text only." in ann.get("/").text
    body = {"parent": None, "content": [{"type": "image", "file": "a" * 64}]}
    assert "reads no pictures" in ann.put(f"/api/conversations/{conversation}/messages/{uuid4()}", json=body).text
    assert json.loads(ann.get("/api/export").text.splitlines()[0])
