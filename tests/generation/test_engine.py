import json
from collections import deque

import pytest
import torch

from chatwright.data.records import Message
from chatwright.data.render import Renderer
from chatwright.data.rendered import Rendered
from chatwright.errors import ChatwrightError
from chatwright.generation.cache import bytes_per_token
from chatwright.generation.constraint import json_form
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling

ANSWER = "有一只🐶狗，很\nnaïve。"


@pytest.fixture
def question():
    return [Message.of("user", "图片里有什么？")]


@pytest.fixture
def parrot(language_model, renderer, question):
    """A model that has learned one answer, whose characters are several tokens each."""
    row = renderer.demonstration([*question, Message.of("assistant", ANSWER)])
    ids = torch.tensor([row.input_ids])
    labels = ids.masked_fill(~torch.tensor([row.loss_mask]), -100)
    optimizer = torch.optim.Adam(language_model.parameters(), lr=3e-3)
    for _ in range(200):
        loss = language_model(input_ids=ids, labels=labels).loss
        if loss < 0.01:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return language_model


@pytest.mark.parametrize("kind", ["text", "pictures"])
def test_greedy_answers_are_those_of_transformers(kind, assistant, language_model, renderer, conversations):
    """An independent implementation, `GenerationMixin.generate`, gives the same tokens."""
    if kind == "text":
        conversations = [c for c in conversations if not renderer.prompt(c).media]
        assistant = language_model
    ours = Engine(assistant, renderer, batch_size=2).generate(conversations, Sampling(max_new_tokens=12, temperature=0))
    for conversation, (completion,) in zip(conversations, ours, strict=True):
        row = renderer.prompt(conversation)
        theirs = assistant.generate(
            input_ids=torch.tensor([row.input_ids]),
            attention_mask=torch.ones(1, len(row), dtype=torch.long),
            **row.media,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=sorted(renderer.stop_ids),
            suppress_tokens=sorted(renderer.placeholders.values()),
        )
        assert completion.tokens == theirs[0, len(row) :].tolist()


def test_answers_keep_the_order_of_the_prompts(assistant, renderer, conversations):
    engine = Engine(assistant, renderer, batch_size=4)
    settings = Sampling(max_new_tokens=6)
    forward = engine.generate(conversations, settings, n=3)
    backward = engine.generate(conversations[::-1], settings, n=3)
    assert [len(answers) for answers in forward] == [3] * len(conversations)
    for first, second in zip(forward, backward[::-1], strict=True):
        assert [completion.tokens for completion in first] == [completion.tokens for completion in second]


def test_a_repeated_prompt_is_sampled_on_as_if_n_were_larger(language_model, renderer, conversations):
    engine = Engine(language_model, renderer)
    settings = Sampling(max_new_tokens=6)
    twice = engine.generate([conversations[0]] * 2, settings)
    both = engine.generate([conversations[0]], settings, n=2)
    assert [answers[0].tokens for answers in twice] == [answer.tokens for answer in both[0]]
    assert twice[0][0].tokens != twice[1][0].tokens


def test_seeds_decide(language_model, renderer, conversations):
    engine = Engine(language_model, renderer)
    texts = [engine.generate(conversations[:1], Sampling(seed=seed))[0][0].text for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_it_stops_at_the_end_of_the_turn(parrot, renderer, question):
    (completion,) = Engine(parrot, renderer).generate([question], Sampling(temperature=0))[0]
    assert completion.text == ANSWER
    assert completion.finish_reason == "stop"
    assert completion.tokens[-1] in renderer.stop_ids
    assert len(completion.logprobs) == len(completion.tokens)


def test_it_goes_on_from_the_beginning_of_an_answer(parrot, renderer, question):
    talk = [*question, Message.of("assistant", ANSWER[:3])]
    engine = Engine(parrot, renderer)
    (completion,) = engine.generate([talk], Sampling(temperature=0))[0]
    assert completion.text == ANSWER[3:] and completion.finish_reason == "stop"
    assert "".join(engine.stream(talk, Sampling(temperature=0))) == completion.text


def test_it_says_when_the_tokens_ran_out(parrot, renderer, question):
    (completion,) = Engine(parrot, renderer).generate([question], Sampling(temperature=0, max_new_tokens=5))[0]
    assert completion.finish_reason == "length"
    assert len(completion.tokens) == 5


@pytest.mark.parametrize("stop", [("狗",), ("，很",), ("\n",), ("absent", "na")])
def test_it_stops_before_a_stop_text(stop, parrot, renderer, question):
    engine = Engine(parrot, renderer)
    settings = Sampling(temperature=0, stop=stop)
    (completion,) = engine.generate([question], settings)[0]
    assert completion.text == ANSWER.split(stop[-1])[0]
    assert completion.finish_reason == "stop" and completion.tokens[-1] not in renderer.stop_ids
    assert "".join(engine.stream(question, settings)) == completion.text


def test_a_stream_shows_whole_characters(parrot, renderer, question):
    pieces = list(Engine(parrot, renderer).stream(question, Sampling(temperature=0)))
    assert "".join(pieces) == ANSWER
    assert len(pieces) > 5
    assert all(piece and "\ufffd" not in piece for piece in pieces)


def test_a_stream_gives_what_generate_gives(assistant, renderer, conversations):
    engine = Engine(assistant, renderer)
    for conversation in conversations:
        (completion,) = engine.generate([conversation], Sampling(max_new_tokens=20))[0]
        stream = engine.stream(conversation, Sampling(max_new_tokens=20))
        pieces = []
        while True:
            try:
                pieces.append(next(stream))
            except StopIteration as end:
                assert end.value == completion
                break
        assert "".join(pieces) == completion.text


def test_the_context_bounds_an_answer(language_model, renderer):
    context = language_model.config.max_position_embeddings
    row = Rendered([70] * (context - 3), [False] * (context - 3))
    completion = Engine(language_model, renderer).generate([row], Sampling(max_new_tokens=50))[0][0]
    assert completion.finish_reason == "stop" or len(completion.tokens) == 4


@pytest.mark.parametrize(("length", "message"), [(129, "129 tokens"), (0, "no tokens")])
def test_a_prompt_that_does_not_fit_is_refused(length, message, language_model, renderer):
    rows = [Rendered([70] * 5, [False] * 5), Rendered([70] * length, [False] * length)]
    with pytest.raises(ChatwrightError, match=f"prompt 1: the prompt has {message}"):
        Engine(language_model, renderer).generate(rows)


def test_the_model_is_left_as_it_was(language_model, renderer, conversations):
    language_model.train()
    language_model.model.layers[0].eval()
    before = [module.training for module in language_model.modules()]
    Engine(language_model, renderer).generate(conversations[:1], Sampling(max_new_tokens=2))
    assert [module.training for module in language_model.modules()] == before
    ids = torch.tensor([[70, 71]])
    language_model(input_ids=ids, labels=ids).loss.backward()


def test_an_abandoned_stream_leaves_the_model_as_it_was(language_model, renderer, conversations):
    language_model.train()
    stream = Engine(language_model, renderer).stream(conversations[0], Sampling(temperature=0))
    next(stream)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    stream.close()
    assert language_model.training


def test_progress_counts_prompts(language_model, renderer, conversations):
    seen = []
    Engine(language_model, renderer, batch_size=4).generate(
        [conversations[0]] * 5, Sampling(max_new_tokens=1), n=2, progress=seen.append
    )
    assert seen == [2, 4, 5]


def test_placeholders_of_pictures_are_never_said(assistant, renderer, conversations):
    image = renderer.placeholders["image"]
    with torch.no_grad():
        assistant.lm_head.weight[image] = assistant.lm_head.weight.mean(0) * 1e3
    answers = Engine(assistant, renderer).generate(conversations, Sampling(max_new_tokens=30), n=4)
    assert all(image not in completion.tokens for several in answers for completion in several)


def test_it_serves_a_plain_tokenizer(language_model, tokenizer, conversations):
    (completion,) = Engine(language_model, Renderer(tokenizer)).generate(conversations[:1])[0]
    assert completion.tokens


def test_rows_enter_as_others_leave(language_model, renderer, conversations):
    """Never more rows than allowed, and new ones while old ones are still being written."""
    engine = Engine(language_model, renderer, batch_size=4)
    texts = [c for c in conversations if not renderer.prompt(c).media]
    rows = [renderer.prompt(texts[i % len(texts)]) for i in range(12)]
    requests = [engine.request(row, Sampling(3 + 5 * (i % 3), 0)) for i, row in enumerate(rows)]
    waiting, sizes, mixed = deque(requests), [], False
    with engine.decoder() as decoder:
        while waiting or decoder.rows:
            decoder.admit(waiting)
            sizes.append(len(decoder.rows))
            mixed |= len({len(row.tokens) for row in decoder.rows}) > 1
            decoder.step()
    assert max(sizes) == 4 and mixed
    assert [len(request.rows[0].tokens) for request in requests if request.rows[0].finish == "length"]
    for request in requests:
        row = request.rows[0]
        alone = engine.generate([request.prompt], row.sampling)[0][0]
        assert (row.tokens, row.finish) == (alone.tokens, alone.finish_reason)


def test_memory_bounds_how_many_rows_there_are(language_model, renderer, conversations):
    prompt = renderer.prompt(conversations[0])
    three = 3 * (len(prompt) + 10) * bytes_per_token(language_model)
    engine = Engine(language_model, renderer, cache_bytes=three)
    waiting = deque(engine.request(prompt, Sampling(10, 0)) for _ in range(8))
    with engine.decoder() as decoder:
        decoder.admit(waiting)
        assert len(decoder.rows) == 3 and len(waiting) == 5
    whole = engine.request(prompt, Sampling(10), 5)
    with engine.decoder() as decoder:
        decoder.admit(deque([whole]))
        assert len(decoder.rows) == 5, "one request always enters"


def test_rows_of_different_sampling_share_a_batch(language_model, renderer, conversations):
    engine = Engine(language_model, renderer)
    kinds = [Sampling(12, 0), Sampling(12, 0.7, top_p=0.9), Sampling(12, top_k=5), Sampling(12, repetition_penalty=1.4)]
    prompt = renderer.prompt(conversations[0])
    requests = [engine.request(prompt, kind) for kind in kinds]
    with engine.decoder() as decoder:
        decoder.admit(deque(requests))
        while decoder.rows:
            decoder.step()
    for kind, together in zip(kinds, requests, strict=True):
        (alone,) = engine.generate([prompt], kind)[0]
        assert together.rows[0].tokens == alone.tokens


def test_a_cancelled_row_leaves_at_the_next_token(language_model, renderer, conversations):
    engine = Engine(language_model, renderer)
    requests = [engine.request(renderer.prompt(c), Sampling(30, 0)) for c in conversations[:3]]
    with engine.decoder() as decoder:
        decoder.admit(deque(requests))
        decoder.step()
        requests[1].rows[0].finish = "cancelled"
        assert requests[1].rows[0] in decoder.step()
        assert len(decoder.rows) == 2
        while decoder.rows:
            decoder.step()
    alone = engine.generate([conversations[2]], Sampling(30, 0))[0][0]
    assert requests[2].rows[0].tokens == alone.tokens


def test_it_stops_at_stop_tokens_and_tells_alternatives(language_model, renderer, conversations):
    engine = Engine(language_model, renderer)
    (whole,) = engine.generate(conversations[:1], Sampling(8, 0, alternatives=3))[0]
    assert [several[0][0] for several in whole.alternatives] == whole.tokens
    assert [several[0][1] for several in whole.alternatives] == pytest.approx(whole.logprobs, abs=1e-5)
    assert all(len(several) == 3 for several in whole.alternatives)
    (cut,) = engine.generate(conversations[:1], Sampling(8, 0, stop_tokens=(whole.tokens[3],)))[0]
    assert cut.tokens == whole.tokens[: whole.tokens.index(whole.tokens[3]) + 1] and cut.finish_reason == "stop"


SCHEMA = {
    "type": "object",
    "properties": {"animal": {"enum": ["dog", "狗"]}, "count": {"type": "integer", "minimum": 1, "maximum": 5}},
    "required": ["animal", "count"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_keeps_to_its_schema_beside_free_ones(temperature, language_model, renderer, conversations):
    engine = Engine(language_model, renderer)
    asked = Sampling(60, temperature, form=json_form(SCHEMA))
    prompt = renderer.prompt(conversations[0])
    free = engine.request(renderer.prompt(conversations[3]), Sampling(30, temperature))
    kept = engine.request(prompt, asked, n=4)
    with engine.decoder() as decoder:
        decoder.admit(deque([kept, free]))
        while decoder.rows:
            decoder.step()
    for row in kept.rows:
        answer = engine.complete(row)
        found = json.loads(answer.text)
        assert answer.finish_reason == "stop" and set(found) == {"animal", "count"}
        assert found["animal"] in ("dog", "狗") and 1 <= found["count"] <= 5
        assert all(logprob <= 0 for logprob in answer.logprobs)
    alone = engine.generate([conversations[3]], Sampling(30, temperature))[0][0]
    assert free.rows[0].tokens == alone.tokens


def test_a_long_conversation_leaves_out_as_few_of_its_oldest_turns_as_it_must(assistant, renderer):
    engine = Engine(assistant, renderer)
    system = Message.of("system", "Be brief.")
    turns = [
        Message.of(role, f"{word} {number}")
        for number in range(12)
        for role, word in (("user", "How many dogs?"), ("assistant", "three dogs"))
    ][:-1]
    for room in (1, 20, 64, 500):
        prompt, left_out = engine.latest([system, *turns], room)
        kept = renderer.prompt([system, *turns[2 * left_out :]])
        most = engine.context - min(room, engine.context // 2)
        assert prompt.input_ids == kept.input_ids and len(kept) <= most
        assert left_out > 0 and len(renderer.prompt([system, *turns[2 * (left_out - 1) :]])) > most
    assert engine.latest(turns[:1], 20)[1] == 0
    last = Message.of("user", "dog " * 90)
    prompt, left_out = engine.latest([*turns[:4], last], 20)
    assert left_out == 2 and prompt.input_ids == renderer.prompt([last]).input_ids
    with pytest.raises(ChatwrightError, match="the model's context is"):
        engine.latest([Message.of("user", "dog " * 200)], 20)
