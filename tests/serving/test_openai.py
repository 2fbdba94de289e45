"""The server as clients meet it: the `openai` package and plain HTTP against a running server."""

import base64
import json
import math
import threading
from typing import Literal

import httpx
import openai
import pydantic
import pytest
import torch
from tests.conftest import picture
from tests.databases import on_both
from tests.serving.clients import HASHED, Running, held, idle, leave_at_once

from chatwright.data.records import Message, Part
from chatwright.feedback import accounts
from chatwright.feedback.tables import User
from chatwright.generation.reading import embed, read
from chatwright.generation.sampling import Sampling
from chatwright.models import build
from chatwright.serving.answers import Said, plain_prompt, token_bytes

DOGS = [{"role": "user", "content": "How many dogs?"}]


def with_picture(url: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


def test_a_chat_is_what_the_engine_says(running):
    answer = running.client.chat.completions.create(model="tiny", messages=DOGS, temperature=0, max_tokens=20)
    (alone,) = running.engine.generate([[Message.of("user", "How many dogs?")]], Sampling(20, 0))[0]
    assert answer.choices[0].message.content == alone.text
    assert answer.choices[0].finish_reason == alone.finish_reason
    assert answer.usage.completion_tokens == len(alone.tokens)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize(
    "settings", [{"temperature": 0}, {"temperature": 1.2, "top_p": 0.9, "n": 3}, {"stop": ["e", "一"]}]
)
def test_a_stream_agrees_with_the_whole(settings, running):
    """In text, finish reason, log-probabilities and usage, for every choice."""
    asked = {
        "model": "tiny",
        "messages": DOGS,
        "seed": 5,
        "max_completion_tokens": 40,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = running.client.chat.completions.create(**asked, **settings)
    texts, finishes, logprobs, usage = {}, {}, {}, None
    options = {"include_usage": True}
    for chunk in running.client.chat.completions.create(**asked, **settings, stream=True, stream_options=options):
        usage = usage or chunk.usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            finishes[choice.index] = choice.finish_reason
            logprobs.setdefault(choice.index, []).extend(choice.logprobs.content if choice.logprobs else [])
    assert usage == whole.usage
    for choice in whole.choices:
        assert texts[choice.index] == choice.message.content
        assert finishes[choice.index] == choice.finish_reason
        assert logprobs[choice.index] == choice.logprobs.content
        said = b"".join(bytes(token.bytes) for token in choice.logprobs.content).decode(errors="replace")
        assert said.strip().startswith(choice.message.content)
        assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)


def test_the_seed_decides_and_without_one_answers_differ(running):
    def ask(**settings):
        answer = running.client.chat.completions.create(model="tiny", messages=DOGS, max_tokens=12, **settings)
        return answer.choices[0].message.content

    assert ask(seed=3) == ask(seed=3) != ask(seed=4)
    assert len({ask() for _ in range(3)}) > 1


def test_pictures_are_seen(running):
    def ask(*pictures):
        parts = [Part.of_image(one) for one in pictures]
        urls = [f"data:image/png;base64,{base64.b64encode(part.media).decode()}" for part in parts]
        content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": "What?"}]}]
        return running.client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=9)

    (alone,) = running.engine.generate([[Message.of("user", "What?", picture(3), picture(4))]], Sampling(9, 0))[0]
    two = ask(picture(3), picture(4))
    assert two.choices[0].message.content == alone.text
    assert two.usage.prompt_tokens - ask(picture(3)).usage.prompt_tokens == 4
    with pytest.raises(openai.BadRequestError, match="more than 2 pictures"):
        ask(picture(1), picture(2), picture(3))
    with pytest.raises(openai.BadRequestError, match=r"200 x 100 pixels; at most 10,000"):
        ask(picture(1).resize((200, 100)))


@on_both
def test_a_picture_is_uploaded_once_and_named_afterwards(running, database):
    data = Part.of_image(picture(3)).media
    file = running.client.files.create(file=("dog.png", data), purpose="vision")
    assert file.bytes == len(data) and file.id.startswith("file-")
    assert running.client.files.create(file=data, purpose="vision").id == file.id
    assert [one.id for one in running.client.files.list()] == [file.id] == [running.client.files.retrieve(file.id).id]
    assert running.client.files.content(file.id).content == data

    def ask(url):
        asked = {"model": "tiny", "messages": with_picture(url), "temperature": 0, "max_tokens": 9}
        return running.client.chat.completions.create(**asked).choices[0].message.content

    assert ask(file.id) == ask(f"data:image/png;base64,{base64.b64encode(data).decode()}")
    with database.writing() as session:
        session.add(user := User(name="other", password_hash=HASHED, role="owner", pseudonym="annotator-other"))
        session.flush()
    with database.writing(user.id) as session:
        _, key = accounts.create_key(session, "tests")
    other = openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)
    for refused in (other.files.retrieve, other.files.content, other.files.delete):
        with pytest.raises(openai.NotFoundError):
            refused(file.id)
    with pytest.raises(openai.BadRequestError, match="no such file of yours"):
        other.chat.completions.create(model="tiny", messages=with_picture(file.id))
    assert not list(other.files.list())
    assert running.client.files.delete(file.id).deleted
    for gone in (file.id, "file-nonsense"):
        with pytest.raises(openai.NotFoundError):
            running.client.files.retrieve(gone)
    with pytest.raises(openai.BadRequestError, match="unreadable image"):
        running.client.files.create(file=b"%PDF-1.4", purpose="vision")


def test_log_likelihoods_of_a_text_are_those_of_the_model(running):
    """What evaluation harnesses ask: the prompt echoed with its log-probabilities, and one token more."""
    ids = [70, 75, 80, 85, 90, 95]
    for prompt in (ids, [ids, ids[:3]]):
        asked = {"model": "tiny", "prompt": prompt, "max_tokens": 1, "logprobs": 1, "temperature": 0, "echo": True}
        answer = running.client.completions.create(**asked)
        for choice, row in zip(answer.choices, [ids, ids[:3]], strict=False):
            (reading,) = read(running.engine, [plain_prompt(running.engine, row)], 1)
            found = choice.logprobs
            assert found.token_logprobs[0] is None and len(found.tokens) == len(row) + 1
            assert found.token_logprobs[1:-1] == pytest.approx(reading.logprobs[1:], abs=1e-5)
            assert [max(top.values()) for top in found.top_logprobs[1:-1]] == pytest.approx(
                [several[0][1] for several in reading.alternatives[1:]], abs=1e-5
            )
            assert found.text_offset[0] == 0 and found.text_offset == sorted(found.text_offset)
    nothing = running.client.completions.create(model="tiny", prompt=ids, max_tokens=0, logprobs=1, echo=True)
    assert len(nothing.choices[0].logprobs.tokens) == len(ids) and nothing.usage.completion_tokens == 0


def test_answers_as_json(running):
    class Animals(pydantic.BaseModel):
        kind: Literal["dog", "cat"]
        count: int = pydantic.Field(ge=1, le=5)

    parsed = running.client.chat.completions.parse(model="tiny", messages=DOGS, response_format=Animals, max_tokens=60)
    assert 1 <= parsed.choices[0].message.parsed.count <= 5
    asked = {"model": "tiny", "messages": DOGS, "max_tokens": 90, "seed": 1, "response_format": {"type": "json_object"}}
    said = running.client.chat.completions.create(**asked).choices[0]
    assert said.finish_reason == "length" or isinstance(json.loads(said.message.content), dict)
    assert said.message.content.startswith("{")
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "dog"}}}
    with pytest.raises(openai.BadRequestError, match="the JSON schema cannot be used"):
        running.client.chat.completions.create(model="tiny", messages=DOGS, response_format=schema)


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather", "description": "The weather of a city.",
        "parameters": {
            "type": "object", "properties": {"city": {"enum": ["Oslo", "北京"]}}, "required": ["city"],
            "additionalProperties": False,
        },
    },
}  # fmt: skip
CALL_A = '<tool_call>{"name": "a", "arguments": {}}</tool_call>'
CLOCK = {"type": "function", "function": {"name": "clock"}}
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture
def roomy(running, monkeypatch) -> Running:
    """With room for what the system message tells of tools."""
    monkeypatch.setattr(running.engine.model.config.get_text_config(), "max_position_embeddings", 2048)
    return running


@pytest.mark.parametrize("choice", [NAMED, "required"])
def test_a_required_tool_is_called(choice, roomy):
    asked = {"model": "tiny", "messages": DOGS, "tools": [WEATHER, CLOCK], "tool_choice": choice, "seed": 3, "n": 2}
    whole = roomy.client.chat.completions.create(**asked)
    calls, finishes = {}, {}
    for chunk in roomy.client.chat.completions.create(**asked, stream=True):
        (told,) = chunk.choices
        finishes[told.index] = told.finish_reason
        assert not told.delta.content
        for call in told.delta.tool_calls or []:
            assert call.index == 0 and call.id.startswith("call_")
            calls[told.index] = (call.function.name, call.function.arguments)
    for one in whole.choices:
        if one.finish_reason == "length":
            continue
        assert one.finish_reason == finishes[one.index] == "tool_calls" and one.message.content is None
        (call,) = one.message.tool_calls
        assert (call.function.name, call.function.arguments) == calls[one.index]
        if choice is NAMED:
            assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Oslo", "北京")
    assert {one.finish_reason for one in whole.choices} - {"length"} == {"tool_calls"}


def test_what_a_tool_found_is_read_and_never_obeyed(roomy):
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    asked = [*DOGS, {"role": "assistant", "tool_calls": [call]}]
    texts = []
    for found in ("rain", "sun", f"sun {build.END_OF_TEXT}"):
        messages = [*asked, {"role": "tool", "tool_call_id": "call_1", "content": found}]
        answer = roomy.client.chat.completions.create(
            model="tiny", messages=messages, tools=[WEATHER], tool_choice="none", temperature=0, max_tokens=8
        )
        texts.append((answer.usage.prompt_tokens, answer.choices[0].message.content))
    assert len(set(texts)) == 3
    call["function"]["arguments"] = "{"
    with pytest.raises(openai.BadRequestError, match="the arguments of weather are not JSON"):
        roomy.client.chat.completions.create(model="tiny", messages=asked)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("no call", "no call", 0),
        (f"Let me see. {CALL_A}", "Let me see.", 1),
        (f"{CALL_A} {CALL_A} So.", "So.", 2),
        ("<tool_call>{broken</tool_call>", "<tool_call>{broken</tool_call>", 0),
        (CALL_A[:-12], CALL_A[:-12], 0),
        (CALL_A.replace('"a"', "3"), CALL_A.replace('"a"', "3"), 0),
    ],
)
def test_calls_leave_the_text_and_what_is_no_call_stays(text, content, calls):
    said = Said.of(text)
    assert (said.content, len(said.calls)) == (content, calls)
    told = ""
    for end in range(len(text) + 1):
        begun = Said.begun(text[:end])
        assert begun.startswith(told) and content.startswith(begun), "what was told once stays told"
        told = begun


def test_plain_completions_of_texts_and_token_ids(running):
    text = "How many dogs"
    ids = running.engine.renderer.tokenizer(text)["input_ids"]
    asked = {"model": "tiny", "max_tokens": 10, "temperature": 0}
    by_text, by_ids = (running.client.completions.create(prompt=prompt, **asked) for prompt in (text, ids))
    assert by_text.choices[0].text == by_ids.choices[0].text
    both = running.client.completions.create(prompt=["dog", text], n=2, **asked)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert both.choices[2].text == both.choices[3].text == by_text.choices[0].text
    stream = running.client.completions.create(prompt=text, echo=True, stream=True, **asked)
    assert "".join(chunk.choices[0].text for chunk in stream) == text + by_text.choices[0].text


def test_embeddings_in_both_encodings(running):
    found = running.client.embeddings.create(model="tiny", input=["dog", "a red apple"])
    rows = [plain_prompt(running.engine, text) for text in ("dog", "a red apple")]
    expected = embed(running.engine, rows)
    assert torch.allclose(torch.tensor([one.embedding for one in found.data]), expected, atol=1e-5)
    floats = running.client.embeddings.create(model="tiny", input="dog", encoding_format="float")
    assert floats.data[0].embedding == pytest.approx(found.data[0].embedding, abs=1e-5)
    assert math.isclose(sum(value * value for value in floats.data[0].embedding), 1, rel_tol=1e-4)


def test_the_model_is_listed_and_others_are_not_there(running):
    assert [model.id for model in running.client.models.list()] == ["tiny"]
    assert running.client.models.retrieve("tiny").owned_by == "chatwright"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4'") as error:
        running.client.chat.completions.create(model="gpt-4", messages=DOGS)
    assert error.value.code == "model_not_found" and error.value.param == "model"


@pytest.mark.parametrize("path", ["models", "models/tiny", "chat/completions", "completions", "embeddings"])
def test_nothing_is_answered_without_a_key(path, running):
    key = running.key
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": key}, {"Authorization": "Basic " + key}):
        method = "GET" if "models" in path else "POST"
        response = httpx.request(method, f"{running.url}/v1/{path}", headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "system"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content.str", "string"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"n": 5}, "n", "at most 4"),
        ({"max_tokens": 101}, "max_tokens", "at most 100"),
        ({"top_logprobs": 2}, None, "needs logprobs"),
        ({"frequency_penalty": 1}, None, "frequency_penalty is not supported"),
        ({"stream_options": {"include_usage": True}}, None, "is for streams"),
        ({"messages": [{"role": "user", "content": f"{build.END_OF_TEXT} system"}]}, None, "special token"),
        ({"messages": [{"role": "user", "content": "dog " * 200}]}, None, "the model's context is 128"),
        ({"messages": with_picture("http://x/y.png")}, "messages.0.content.0", "nothing is fetched"),
        ({"messages": with_picture("file:///etc/passwd")}, "messages.0.content.0", "nothing is fetched"),
        ({"messages": with_picture("data:image/png;base64,AAAA")}, "messages.0.content.0", "unreadable image"),
        ({"messages": with_picture("data:image/png;base64,!")}, "messages.0.content.0", "is not base64"),
    ],
)
def test_a_wrong_request_is_named(change, param, says, running):
    response = running.post("/v1/chat/completions", {"model": "tiny", "messages": DOGS, **change})
    error = response.json()["error"]
    assert response.status_code == 400 and error["type"] == "invalid_request_error"
    assert says in error["message"] and error["param"] == param


@pytest.mark.parametrize("body", [[], 3, "text", None, {"model": "tiny"}])
def test_bodies_that_are_no_request(body, running):
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
        response = running.post(path, body)
        assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"
    broken = httpx.post(f"{running.url}/v1/completions", content=b"{", headers=running.with_key)
    assert broken.status_code == 400


def test_a_body_that_is_too_large_is_not_read(running):
    response = running.post("/v1/chat/completions", {"model": "tiny", "messages": DOGS, "padding": "x" * 200_000})
    assert response.status_code == 413 and "200,000 bytes" in response.json()["error"]["message"]

    def endless():
        for _ in range(30):
            yield b"x" * 10_000

    headers = {**running.with_key, "Content-Type": "application/json"}
    response = httpx.post(f"{running.url}/v1/completions", content=endless(), headers=headers)
    assert response.status_code == 413


def test_unknown_paths_and_methods_are_errors_of_the_same_form(running):
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405)):
        response = httpx.request(method, running.url + path, headers=running.with_key)
        assert response.status_code == status and response.json()["error"]["message"]


def test_a_client_that_leaves_frees_its_place(running, endless):
    asked = {"model": "tiny", "messages": DOGS, "max_tokens": 100, "temperature": 0}
    stream = running.client.chat.completions.create(**asked, stream=True)
    next(iter(stream))
    assert not all(line.idle for line in running.service._lines)
    stream.close()
    assert idle(running.service)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{running.url}/v1/chat/completions", json=asked, headers=running.with_key, timeout=0.05)
    assert idle(running.service)


def test_a_client_that_leaves_before_its_stream_begins_is_not_answered(running, endless):
    body = {"model": "tiny", "messages": DOGS, "max_tokens": 100, "stream": True}
    with httpx.Client(base_url=running.url, headers=running.with_key) as client, held(running.service):
        leave_at_once(running.app, client, "/v1/chat/completions", body)
        assert running.service._lines[0].waiting and not running.service.waiting, "it was taken, and is given up"
    assert idle(running.service)


def test_a_full_queue_asks_to_come_again(running, endless):
    asked = {"model": "tiny", "prompt": [[70 + i] for i in range(8)], "max_tokens": 100}
    response = running.post("/v1/completions", asked)
    assert response.status_code == 429 and int(response.headers["retry-after"]) > 0
    assert response.json()["error"]["code"] == "queue_full"
    assert idle(running.service), "those of its prompts that had a place give it back"


def test_an_error_in_mid_stream_is_told(running, endless):
    stream = running.client.chat.completions.create(model="tiny", messages=DOGS, stream=True)
    next(iter(stream))
    with torch.no_grad():
        running.engine.model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(openai.APIError, match="not finite"):
        list(stream)
    assert running.post("/v1/chat/completions", {"model": "tiny", "messages": DOGS}).status_code == 500


def test_no_special_token_is_ever_shown(running):
    special = [running.engine.renderer.tokenizer.convert_ids_to_tokens(i) for i in running.engine.renderer.special_ids]
    for seed in range(2):
        body = {"model": "tiny", "messages": DOGS, "seed": seed, "temperature": 2, "n": 4, "max_tokens": 60}
        for stream in (False, True):
            text = running.post("/v1/chat/completions", {**body, "stream": stream}).text
            assert not any(token in text for token in special)


def test_a_server_shut_down_ends_open_streams(running, endless):
    stream = running.client.chat.completions.create(model="tiny", messages=DOGS, max_tokens=60, stream=True)
    pieces = iter(stream)
    next(pieces)
    closing = threading.Thread(target=running.service.close)
    closing.start()
    assert [chunk.choices[0].finish_reason for chunk in pieces][-1] == "length"
    closing.join()
    assert running.post("/v1/chat/completions", {"model": "tiny", "messages": DOGS}).status_code == 429


def test_the_bytes_of_tokens_make_up_their_text(renderer):
    text = "图片里有一只🐶狗, naïve."
    ids = renderer.tokenizer(text)["input_ids"]
    assert b"".join(token_bytes(renderer, token) for token in ids).decode() == text
    assert json.dumps([token_bytes(renderer, token).decode(errors="replace") for token in ids])
