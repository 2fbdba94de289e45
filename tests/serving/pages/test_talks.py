"""Conversations on the chat page: what is said is kept, answered once, and its owner's alone."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from uuid import UUID, uuid4

import httpx
import openai
import PIL.Image
import pytest
from sqlalchemy import select
from tests.conftest import picture
from tests.databases import on_both
from tests.serving.clients import LIMITS, Browser, events_of, held, idle, leave_at_once, soon
from tests.serving.test_gate import routes

from chatwright.data.records import Message, Part
from chatwright.data.render import Renderer
from chatwright.feedback import conversations
from chatwright.feedback.tables import Base, Evaluation
from chatwright.feedback.tables import Message as Kept
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.models import build

PICTURE = Part.of_image(picture(1)).media


@pytest.fixture
def ann(running) -> Browser:
    return running.person("ann")


@pytest.fixture
def lasting(start, assistant, renderer, endless, monkeypatch):
    """A server whose answers take a while."""
    monkeypatch.setattr(assistant.config.get_text_config(), "max_position_embeddings", 2048)
    return start(Engine(assistant, renderer, batch_size=4), sampling=Sampling(max_new_tokens=1500))


def kept(running, key: str) -> Kept:
    with running.database.reading() as session:
        return session.get(Kept, UUID(key))


@contextmanager
def begun(client: Browser, conversation: str, parent: str, answer: str) -> Iterator[Iterator[dict]]:
    """The events of an answer that has shown something; leaving the block is leaving the answer."""
    asked = {"parent": parent, "answers": [answer]}
    with client.stream("POST", f"/api/conversations/{conversation}/answers", json=asked) as response:
        events = events_of(response)
        assert any(event["html"] for event in events)
        yield events


def another_window(client: Browser) -> Browser:
    """The same person in another window."""
    other = Browser(str(client.base_url).rstrip("/"))
    other.cookies.update(client.cookies)
    other.headers["X-CSRF-Token"] = client.headers["X-CSRF-Token"]
    return other


# ---- answers


@on_both
def test_an_answer_is_what_the_engine_says_to_the_whole_path(start, assistant, renderer):
    running = start(Engine(assistant, renderer), sampling=Sampling(max_new_tokens=12))
    ann = running.person("ann")
    conversation = ann.talk()
    asked = ann.say(conversation, "How many dogs?")
    (first,) = ann.ask(conversation, asked)
    second = ann.say(conversation, "and apples?", first["answer"])
    *shown, last = ann.events(conversation, second)
    message, found = last["message"], kept(running, last["answer"])
    said = first["message"]["content"][0]["text"]
    turns = [Message.of("user", "How many dogs?"), Message.of("assistant", said), Message.of("user", "and apples?")]
    sampling = Sampling(**found.sampling)
    (alone,) = running.engine.generate([turns], sampling)[0]
    assert message["content"][0]["text"] == found.text == alone.text.replace("\0", "\ufffd")
    assert (message["parent"], message["finish_reason"], message["model"]) == (second, alone.finish_reason, "tiny")
    assert (found.checkpoint, found.completion_tokens) == ("a" * 64, len(alone.tokens))
    assert found.prompt_tokens == len(running.engine.renderer.prompt(turns))
    assert all(event["answer"] == last["answer"] and event["html"][:1] in ("", "<") for event in shown)
    assert ann.read(conversation)[-1] == message


@on_both
def test_an_answer_that_is_asked_for_again_is_not_a_second_one(lasting):
    ann = lasting.person("ann")
    conversation, answer = ann.talk(), str(uuid4())
    asked = ann.say(conversation, "How many dogs?")
    with ExitStack() as second:
        with begun(ann, conversation, asked, answer):
            events = second.enter_context(begun(another_window(ann), conversation, asked, answer))
        *_, last = events  # goes on though the first one has left
    assert last["message"]["finish_reason"] == "length"
    assert ann.ask(conversation, asked, answer) == [last]
    assert [message["id"] for message in ann.read(conversation)] == [asked, answer]


@on_both
def test_what_was_written_is_kept_when_somebody_stops_or_leaves(lasting):
    ann = lasting.person("ann")
    conversation = ann.talk()
    asked = ann.say(conversation, "How many dogs?")
    stopped, left, early = (str(uuid4()) for _ in range(3))
    with begun(ann, conversation, asked, stopped) as events:
        assert another_window(ann).post(f"/api/answers/{stopped}/stop").status_code == 204
        *_, last = events
    assert last["message"]["finish_reason"] == "cancelled"
    assert idle(lasting.service), "its place is free"
    with begun(ann, conversation, asked, left):
        pass
    assert soon(lambda: kept(lasting, left)) and idle(lasting.service)
    assert kept(lasting, left).finish_reason == "cancelled"
    assert 0 < kept(lasting, left).completion_tokens < 200
    assert ann.post(f"/api/answers/{left}/stop").status_code == 204, "it has just ended, as was wanted"
    assert ann.post(f"/api/answers/{uuid4()}/stop").status_code == 404
    # What nobody saw a word of is not kept: the same id is answered when it is asked for again.
    body = {"parent": asked, "answers": [early]}
    with held(lasting.service):
        with pytest.raises(httpx.ReadTimeout):
            ann.post(f"/api/conversations/{conversation}/answers", json=body, timeout=0.3)
        assert soon(lambda: not lasting.service.waiting)
    assert idle(lasting.service)
    assert ann.ask(conversation, asked, early)[0]["message"]["finish_reason"] == "length"


def test_an_answer_is_not_written_for_who_has_left_before_it_began(lasting):
    ann = lasting.person("ann")
    conversation, answer = ann.talk(), str(uuid4())
    body = {"parent": ann.say(conversation, "How many dogs?"), "answers": [answer]}
    with held(lasting.service):
        leave_at_once(lasting.app, ann, f"/api/conversations/{conversation}/answers", body)
        assert lasting.service._lines[0].waiting and not lasting.service.waiting, "it was taken, and is given up"
    assert idle(lasting.service) and kept(lasting, answer) is None


@on_both
def test_two_answers_side_by_side_and_which_is_better(start, assistant, renderer):
    running = start(Engine(assistant, renderer, batch_size=4), compare_every=2)
    ann = running.person("ann")
    assert 'data-compare="0"' in ann.get("/").text
    conversation = ann.talk()
    (first,) = ann.ask(conversation, ann.say(conversation, "dog"))
    assert first["compare_next"] and 'data-compare="1"' in ann.get("/").text
    a, b = ann.ask(conversation, ann.say(conversation, "apple", first["answer"]), str(uuid4()), str(uuid4()))
    assert a["message"]["parent"] == b["message"]["parent"] and not a["compare_next"]
    assert kept(running, a["answer"]).sampling["seed"] != kept(running, b["answer"]).sampling["seed"]
    for verdict, stored in (("both_bad", "neither"), ("tie", "tie"), ("a", "first"), ("b", "second")):
        body = {"a": a["answer"], "b": b["answer"], "verdict": verdict}
        assert ann.put("/api/comparisons", json=body).status_code == 204
        with running.database.reading() as session:
            (one,) = session.scalars(select(Evaluation)).all()
        assert (str(one.message_id), str(one.other_id), one.verdict) == (a["answer"], b["answer"], stored)


def test_a_long_conversation_loses_its_oldest_turns_in_the_prompt_alone(running, ann):
    conversation, parent = ann.talk(), None
    for turn in range(4):
        parent = ann.say(conversation, "How many dogs are there, and why?", parent)
        (last,) = ann.ask(conversation, parent)
        parent = last["answer"]
        assert last["message"]["finish_reason"] in ("stop", "length")
        assert kept(running, parent).prompt_tokens <= 128 - 40, turn
    assert len(ann.read(conversation)) == 8


def test_a_question_longer_than_the_context_is_told(running, ann):
    conversation = ann.talk()
    body = {"parent": ann.say(conversation, "dog " * 300), "answers": [str(uuid4())]}
    response = ann.post(f"/api/conversations/{conversation}/answers", json=body)
    assert response.status_code == 400 and "the model's context is 128" in response.json()["error"]["message"]


def test_words_of_the_template_are_words(running, ann):
    conversation = ann.talk()
    asked = ann.say(conversation, f"What does {build.END_OF_TEXT} mean?")
    assert ann.ask(conversation, asked)[0]["message"]["role"] == "assistant"


@on_both
def test_what_cannot_be_answered_is_told_with_a_status(lasting):
    ann = lasting.person("ann")
    conversation = ann.talk()
    asked, other = ann.say(conversation, "How many dogs?"), ann.say(ann.talk(), "dog")
    path, answer = f"/api/conversations/{conversation}/answers", str(uuid4())

    def told(parent, *answers, at=path):
        response = ann.post(at, json={"parent": parent, "answers": answers or [answer]})
        return response.status_code, response.json()["error"]["message"]

    assert told(str(uuid4()))[0] == 404 and told(other) == (404, told(other)[1])
    assert told(asked, asked) == (409, "this id belongs to another message; make another one")
    assert told(asked, at=f"/api/conversations/{uuid4()}/answers")[0] == 404
    assert idle(lasting.service)
    busy = [threading.Thread(target=ann.ask, args=[conversation, asked, str(uuid4())]) for _ in range(2)]
    with held(lasting.service):
        for thread in busy:
            thread.start()
        assert soon(lambda: lasting.service.waiting == 2)
        response = ann.post(path, json={"parent": asked, "answers": [str(uuid4()), str(uuid4())]})
        assert response.status_code == 429 and response.headers["retry-after"]
    for thread in busy:
        thread.join()
    assert idle(lasting.service) and len(ann.read(conversation)) == 3, "one of two is none"


# ---- messages


@on_both
def test_a_message_is_kept_before_it_is_answered_and_once(running, ann):
    conversation, message = ann.talk(), str(uuid4())
    path = f"/api/conversations/{conversation}/messages/{message}"
    text = "  How many **dogs** are there in this picture? " * 3
    body = {"parent": None, "content": [{"type": "text", "text": text}]}
    first = ann.put(path, json=body).json()
    assert kept(running, message).text == text
    assert first["conversation"]["title"] == "How many **dogs** are there in this picture? How many…"
    assert "<strong>dogs</strong>" in first["message"]["content"][0]["html"]
    assert ann.put(path, json=body).json() == first
    body["content"][0]["text"] = "something else"
    assert ann.put(path, json=body).status_code == 409
    edited = ann.say(conversation, "How many cats?")
    assert [(one["id"], one["parent"]) for one in ann.read(conversation)] == [(message, None), (edited, None)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "says nothing"),
        ([{"type": "text", "text": "  "}], "says nothing"),
        ([{"type": "text", "text": "a\0b"}], "no text"),
        ([{"type": "text", "text": "\ud800"}], "no text"),
        ([{"type": "text", "text": "x" * 2001}], "longer than 2,000"),
        ([{"type": "text", "text": "x"}] * 4, "several texts"),
        ([{"type": "image", "file": "a" * 64}] * 3, "more than 2 pictures"),
        ([{"type": "image", "file": "../../etc/passwd"}], "pattern"),
        ([{"type": "audio", "file": "a" * 64}], "audio"),
    ],
)
def test_a_message_that_cannot_be_kept(content, says, ann):
    path = f"/api/conversations/{ann.talk()}/messages/{uuid4()}"
    response = ann.put(path, content=json_of({"parent": None, "content": content}), headers=JSON)
    assert response.status_code == 400 and says in response.json()["error"]["message"]


JSON = {"Content-Type": "application/json"}


def json_of(body: object) -> bytes:
    return json.dumps(body).encode()


@on_both
def test_titles_listing_search_renaming_and_deleting(running, ann):
    talks = [str(uuid4()) for _ in range(52)]
    with running.database.writing(ann.person) as session:
        for number, key in enumerate(talks):
            conversations.create(session, UUID(key), f"talk {number:02}")
    ann.say(talks[7], "Äpfel und Birnen")
    found = ann.get("/api/conversations").json()
    assert found["more"] and len(found["conversations"]) == 50
    assert found["conversations"][0] == {
        "id": talks[7],
        "title": "talk 07",
        "updated": found["conversations"][0]["updated"],
    }
    rest = ann.get("/api/conversations", params={"offset": 50}).json()
    assert not rest["more"] and {one["id"] for one in found["conversations"] + rest["conversations"]} == {*talks}
    search = ann.get("/api/conversations", params={"query": " birnen "}).json()["conversations"]
    assert [one["id"] for one in search] == [talks[7]]
    assert ann.get("/api/conversations", params={"query": "talk", "offset": 50}).json()["conversations"]
    assert ann.patch(f"/api/conversations/{talks[7]}", json={"title": "Obst"}).json()["title"] == "Obst"
    assert ann.patch(f"/api/conversations/{talks[7]}", json={"title": " "}).status_code == 400
    assert ann.get(f"/api/conversations/{talks[7]}").json()["title"] == "Obst"
    assert ann.delete(f"/api/conversations/{talks[7]}").status_code == 204
    assert ann.get(f"/api/conversations/{talks[7]}").status_code == 404 and ann.get(f"/c/{talks[7]}").status_code == 404


@on_both
def test_a_conversation_that_is_deleted_is_answered_no_more(lasting):
    ann = lasting.person("ann")
    conversation, answer = ann.talk(), str(uuid4())
    with begun(ann, conversation, ann.say(conversation, "dog"), answer) as events:
        assert another_window(ann).delete(f"/api/conversations/{conversation}").status_code == 204
        *_, last = events
    assert "no such conversation" in last["error"]["message"] and idle(lasting.service)


@on_both
def test_judgements_are_shown_where_they_were_given(running, ann):
    conversation = ann.talk()
    (said,) = ann.ask(conversation, ann.say(conversation, "dog"))
    path = f"/api/messages/{said['answer']}"
    assert ann.put(f"{path}/thumb", json={"good": False, "reasons": ["wrong"], "comment": "No."}).status_code == 204
    assert ann.put(f"{path}/correction", json={"text": "狗"}).status_code == 204
    thumb = {"good": False, "reasons": ["wrong"], "comment": "No."}
    assert ann.read(conversation)[-1]["evaluations"] == {"thumb": thumb, "correction": {"text": "狗"}}
    assert ann.put(f"{path}/thumb", json={"good": True, "reasons": ["wrong"]}).status_code == 400
    for _ in range(2):
        assert ann.delete(f"{path}/thumb").status_code == ann.delete(f"{path}/correction").status_code == 204
    assert ann.read(conversation)[-1]["evaluations"] == {"thumb": None, "correction": None}


# ---- pictures


@on_both
def test_a_picture_is_kept_shown_and_seen(running, ann):
    sent = ann.post("/api/files", content=PICTURE).json()
    assert (sent["type"], sent["width"], sent["height"]) == ("image/png", 32, 32)
    assert ann.post("/api/files", content=PICTURE).json() == sent
    shown = ann.get(f"/api/files/{sent['file']}")
    assert shown.content == PICTURE and shown.headers["content-type"] == "image/png"
    conversation = ann.talk()
    (last,) = ann.ask(conversation, ann.say(conversation, "What?", None, sent["file"]))
    (alone,) = running.engine.generate(
        [[Message.of("user", "What?", picture(1))]], Sampling(**kept(running, last["answer"]).sampling)
    )[0]
    assert last["message"]["content"][0]["text"] == alone.text.replace("\0", "\ufffd")
    assert ann.read(conversation)[0]["content"][0] == {"type": "image", "file": sent["file"]}


@on_both
def test_files_have_a_quota_that_is_each_persons_own(start, assistant, renderer):
    others = [Part.of_image(picture(number)).media for number in (2, 3)]
    running = start(Engine(assistant, renderer), quota=len(PICTURE) + len(others[0]))
    ann, bob = running.person("ann"), running.person("bob")
    for who in (ann, bob):  # the same bytes count for each of them
        sent = who.post("/api/files", content=PICTURE).json()["file"]
        who.say(who.talk(), "What?", None, sent)
        assert who.post("/api/files", content=others[0]).status_code == 200
        full = who.post("/api/files", content=others[1])
        assert full.status_code == 413 and "delete conversations with pictures" in full.json()["error"]["message"]
        assert who.post("/api/files", content=PICTURE).status_code == 200, "it is there already"
        with running.database.reading(who.person) as session:
            assert len(conversations.files(session)) == 2
    (talk,) = ann.get("/api/conversations").json()["conversations"]
    assert ann.delete(f"/api/conversations/{talk['id']}").status_code == 204
    assert ann.post("/api/files", content=others[1]).status_code == 200
    assert bob.post("/api/files", content=others[1]).status_code == 413
    key = bob.post("/api/keys", json={"name": "mine"}).json()["key"]
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)
    with pytest.raises(openai.APIStatusError, match="no room") as refused:
        client.files.create(file=others[1], purpose="vision")
    assert refused.value.status_code == 413
    client.files.delete(client.files.create(file=others[0], purpose="vision").id)
    assert client.files.create(file=others[1], purpose="vision").bytes == len(others[1])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "no known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no known format"),
        (b"GIF89a<script>", "unreadable"),
        (PICTURE[:200], "unreadable"),
        (Part.of_image(PIL.Image.new("1", (200, 100))).media, "200 x 100 pixels; at most 10,000"),
        (b"x" * (LIMITS.body + 1), "larger than 200,000 bytes"),
    ],
)
def test_what_is_no_picture_is_not_kept(data, says, ann):
    response = ann.post("/api/files", content=data)
    assert response.status_code in (400, 413) and says in response.json()["error"]["message"]


def test_a_model_that_reads_no_pictures_says_so(start, language_model, tokenizer):
    running = start(Engine(language_model, Renderer(tokenizer), batch_size=2))
    ann = running.person("ann")
    assert "reads text only" in ann.get("/").text
    file = ann.post("/api/files", content=PICTURE).json()["file"]
    body = {"parent": None, "content": [{"type": "image", "file": file}]}
    response = ann.put(f"/api/conversations/{ann.talk()}/messages/{uuid4()}", json=body)
    assert response.status_code == 400 and "reads no pictures" in response.json()["error"]["message"]
    conversation = ann.talk()
    assert ann.ask(conversation, ann.say(conversation, "dog"))[0]["message"]


# ---- whose things are whose


@on_both
def test_nobody_else_reaches_anns_things_by_any_route(lasting):
    """Every route with an id in it, every id that is ann's."""
    ann = lasting.person("ann")
    sha256 = ann.post("/api/files", content=PICTURE).json()["file"]
    conversation = ann.talk("ann's")
    asked = ann.say(conversation, "What?", None, sha256)
    a, b = (event["answer"] for event in ann.ask(conversation, asked, str(uuid4()), str(uuid4())))
    ann.put(f"/api/messages/{a}/thumb", json={"good": True})
    key = ann.post("/api/keys", json={"name": "mine"}).json()["id"]
    running_answer = str(uuid4())
    with begun(ann, conversation, asked, running_answer) as events:
        with held(lasting.service):
            before = everything(lasting, ann)
            text, new = [{"type": "text", "text": "me too"}], str(uuid4())
            bob = lasting.person("bob")
            own = bob.talk("bob's")
            mine, say = bob.say(own, "dog"), "/api/conversations/{conversation}/messages/{message}"
            attempts = [
                ("GET", "/c/{conversation}", {"conversation": conversation}, None),
                ("GET", "/api/conversations/{conversation}", {"conversation": conversation}, None),
                ("PUT", "/api/conversations/{conversation}", {"conversation": conversation}, {"title": "mine"}),
                ("PATCH", "/api/conversations/{conversation}", {"conversation": conversation}, {"title": "mine"}),
                ("DELETE", "/api/conversations/{conversation}", {"conversation": conversation}, None),
                *(
                    ("PUT", say, {"conversation": at, "message": message}, {"parent": parent, "content": said})
                    for at, message in ((conversation, new), (own, asked))
                    for parent in (None, a, mine)
                    for said in (text, [{"type": "image", "file": sha256}])
                ),
                ("PUT", say, {"conversation": own, "message": new}, {"parent": a, "content": text}),
                ("PUT", say, {"conversation": own, "message": new},
                 {"parent": None, "content": [{"type": "image", "file": sha256}]}),
                *(
                    ("POST", "/api/conversations/{conversation}/answers", {"conversation": at},
                     {"parent": parent, "answers": [answer]})
                    for at in (conversation, own)
                    for parent in (asked, a, mine)
                    for answer in (a, running_answer, new)
                    if (at, parent, answer) != (own, mine, new)
                ),
                *(("POST", "/api/answers/{answer}/stop", {"answer": one}, None) for one in (running_answer, a)),
                ("GET", "/api/files/{sha256}", {"sha256": sha256}, None),
                ("PUT", "/api/messages/{message}/thumb", {"message": a}, {"good": False}),
                ("PUT", "/api/messages/{message}/correction", {"message": a}, {"text": "mine"}),
                ("DELETE", "/api/messages/{message}/{kind}", {"message": a, "kind": "thumb"}, None),
                ("PUT", "/api/comparisons", {}, {"a": a, "b": b, "verdict": "a"}),
                ("DELETE", "/api/keys/{key}", {"key": key}, None),
                ("PATCH", "/api/people/{account}", {"account": str(ann.person)}, {"role": "admin"}),
                ("POST", "/api/people/{account}/reset", {"account": str(ann.person)}, None),
            ]  # fmt: skip
            tried = {(method, path) for method, path, *_ in attempts}
            known = {(method, path) for method, path, _ in routes(lasting.app) if "{" in path}
            assert not {
                one for one in known - tried if not one[1].startswith(("/v1/", "/static/", "/join/", "/reset/"))
            }
            for method, path, ids, body in attempts:
                response = bob.request(method, path.format(**ids), json=body)
                assert response.status_code in (403, 404, 409), (method, path, ids, body, response.text)
                assert "ann" not in response.text
            assert conversation not in bob.get("/api/conversations").text
            assert bob.get("/api/keys").json() == {"keys": []}
            assert "What?" not in bob.get("/api/export").text
            after = everything(lasting, ann)
            assert after == before
        *_, last = events
    assert last["message"]["finish_reason"] == "length"


def everything(running, who: Browser) -> dict[str, list]:
    """All rows that are a person's."""
    with running.database.reading(who.person) as session:
        tables = {table.name: table for table in Base.metadata.sorted_tables}
        found = {name: session.execute(select(table).where(table.c.owner_id == who.person)).all()
                 for name, table in tables.items() if "owner_id" in table.c and name != "files"}  # fmt: skip
        messages = [
            (one.id, one.text) for talk in conversations.listed(session) for one in conversations.read(session, talk.id)
        ]
        return found | {"messages": messages, "files": [file.sha256 for file in conversations.files(session)]}
