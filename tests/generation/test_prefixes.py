"""What was read before is not read again, and nobody can tell from the answers."""

from collections import deque

import pytest
import torch
from tests.conftest import picture, spread
from tests.mrope import MODELS, mrope_model, mrope_renderer
from transformers import MistralConfig, MistralForCausalLM

from chatwright.data.records import Message
from chatwright.data.rendered import Rendered
from chatwright.generation.engine import Engine
from chatwright.generation.prefixes import SHORTEST, Prefixes
from chatwright.generation.sampling import Sampling

SAMPLINGS = [Sampling(5, 0), Sampling(8, 1.0, seed=3)]
LONG = "There are three dogs, and an apple. "
MARK = 9


def answered(engine, decoder, conversations):
    """The decoder answers all of them together; gives the rows, and how many tokens were read for their prompts."""
    read = []
    hook = engine.model.register_forward_pre_hook(
        lambda _, args, inputs: read.append(inputs["input_ids"].shape), with_kwargs=True
    )
    requests = [
        engine.request(engine.render(one), SAMPLINGS[place % 2], 1 + place % 2)
        for place, one in enumerate(conversations)
    ]
    waiting = deque(requests)
    decoder.admit(waiting)
    hook.remove()
    assert not waiting
    while decoder.rows:
        decoder.step()
    return requests, sum(rows * tokens for rows, tokens in read)


@pytest.fixture
def short_sighted(language_model):
    """A model whose layers see the latest 12 tokens alone."""
    torch.manual_seed(0)
    size = len(language_model.get_input_embeddings().weight)
    config = MistralConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, sliding_window=12,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    spread(model)
    return model


@pytest.fixture(params=["text", "window", "pictures", *MODELS])
def conversing(request, tokenizer):
    """A model with its renderer, and what it is shown at the beginning of four conversations."""
    if request.param in MODELS:
        renderer = mrope_renderer(tokenizer)
        model = mrope_model(request.param, renderer)
    else:
        kinds = {"text": "language_model", "window": "short_sighted", "pictures": "assistant"}
        model, renderer = request.getfixturevalue(kinds[request.param]), request.getfixturevalue("renderer")
    if request.param in ("text", "window"):
        return model, renderer, [[]] * 4
    return model, renderer, [[picture(1)], [picture(2), picture(3).resize((64, 32))], [], []]


def test_answers_are_those_of_a_conversation_read_anew(conversing):
    """Three turns of conversations of different lengths, some of which another one joins, answered together."""
    model, renderer, parts = conversing
    conversations = [
        [Message.of("user", text, *some)] for text, some in zip(["What? ", "Dogs. ", "狗", LONG], parts, strict=True)
    ]
    engine = Engine(model, renderer, kept_bytes=2**26)
    saved = 0
    with engine.decoder() as decoder, torch.no_grad():
        for turn in range(3):
            requests, read = answered(engine, decoder, conversations)
            saved += sum(len(request.prompt) for request in requests) - read
            for request in requests:
                alone = Engine(model, renderer).generate([request.prompt], request.rows[0].sampling, len(request.rows))
                for row, completion in zip(request.rows, alone[0], strict=True):
                    assert row.tokens == completion.tokens
                    assert row.logprobs == pytest.approx(completion.logprobs, abs=1e-4)
            for place, (one, request) in enumerate(zip(conversations, requests, strict=True)):
                text = engine.complete(request.rows[0]).text
                question = f"{LONG if turn == 0 else ''}Now{'?' * place}"
                one += [Message.of("assistant", text), Message.of("user", question)]
            if turn == 1:
                conversations.append([Message.of("user", "A dog.")])
    assert saved > 100


def test_the_same_words_about_another_picture_are_another_prompt(seeing):
    model, renderer = seeing
    engine = Engine(model, renderer, kept_bytes=2**26)
    with engine.decoder() as decoder:
        for seed in range(3):
            messages = [Message.of("user", 3 * LONG, picture(seed))]
            (request,), _ = answered(engine, decoder, [messages])
            (alone,) = Engine(model, renderer).generate([messages], SAMPLINGS[0])[0]
            assert request.rows[0].logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def states(tokens):
    """Of two layers, of which every value is the place."""
    places = torch.arange(tokens, dtype=torch.float32)[None, None, :, None]
    return [places.expand(2, 3, tokens, 4) + layer for layer in range(2)]


def prompt_of(tokens, pixels=None):
    media = {} if pixels is None else {"pixel_values": torch.tensor(pixels)}
    return Rendered(list(tokens), [False] * len(tokens), media)


WORDS = list(range(100, 200))


@pytest.mark.parametrize(
    ("asked", "known"),
    [
        (prompt_of([*WORDS[:60], 1, 2]), 60),  # it goes another way
        (prompt_of([*WORDS, 1, 2]), 80),
        (prompt_of(WORDS[:80]), 79),  # something has to be read
        (prompt_of(WORDS[:SHORTEST]), 0),
        (prompt_of([1, *WORDS]), 0),
    ],
)
def test_the_longest_known_beginning_is_found(asked, known):
    prefixes = Prefixes(2**20, {MARK})
    for size in (40, 70):
        prefixes.keep(prompt_of(WORDS[:size]), WORDS[size : size + 10], states(size + 10))
    found = prefixes.find(asked)
    assert (found is not None) == (known > 0)
    if found:
        assert found.rest.input_ids == asked.input_ids[known:]
        assert [one.shape[2] for one in found.states] == [known, known]
        assert torch.equal(found.states[1], states(known)[1])


@pytest.mark.parametrize(
    ("marks", "pixels", "known", "with_media"),
    [
        ([50, 51], [1.0], 80, False),  # the same picture, known as a whole
        ([50, 51], [2.0], 50, True),  # another one
        ([50, 51, 85], [1.0], 50, True),  # a second one follows, and the media are other ones
        ([20], [2.0], 0, True),
    ],
)
def test_a_picture_is_known_by_its_pixels(marks, pixels, known, with_media):
    old = [MARK if place in marks else word for place, word in enumerate(WORDS)]
    prefixes = Prefixes(2**20, {MARK})
    prefixes.keep(prompt_of(old[:70], [1.0] if len(marks) < 3 else [3.0]), old[70:80], states(80))
    found = prefixes.find(prompt_of(old, pixels))
    assert (found is not None) == (known > 0)
    if found:
        assert (len(old) - len(found.rest), bool(found.rest.media)) == (known, with_media)


def test_what_was_of_no_use_for_longest_is_forgotten():
    row = sum(one.contiguous().nbytes for one in states(50))
    prefixes = Prefixes(3 * row, set())
    for first in range(3):
        prefixes.keep(prompt_of([first, *WORDS[:49]]), [], states(50))
    assert prefixes.find(prompt_of([0, *WORDS]))
    prefixes.keep(prompt_of([3, *WORDS[:49]]), [], states(50))
    assert [bool(prefixes.find(prompt_of([first, *WORDS]))) for first in range(4)] == [True, False, True, True]


def test_a_row_takes_the_place_of_its_beginning():
    prefixes = Prefixes(2**20, set())
    prefixes.keep(prompt_of(WORDS[:50]), [], states(50))
    prefixes.keep(prompt_of(WORDS[:60]), WORDS[60:70], states(70))
    assert [len(row) for row in prefixes.rows] == [70]


def test_the_last_token_said_was_not_read(language_model, renderer):
    engine = Engine(language_model, renderer, kept_bytes=2**26)
    prompt = renderer.prompt([Message.of("user", 2 * LONG)])
    with engine.decoder() as decoder:
        (first,), _ = answered(engine, decoder, [prompt])
        more = prompt_of([*prompt.input_ids, *first.rows[0].tokens, *prompt.input_ids[:4]])
        (second,), read = answered(engine, decoder, [more])
    assert read == 5
    (alone,) = Engine(language_model, renderer).generate([more], SAMPLINGS[0])[0]
    assert second.rows[0].logprobs == pytest.approx(alone.logprobs, abs=1e-4)
