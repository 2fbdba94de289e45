"""One decoder that serves many threads."""

import threading
import time
import weakref

import pytest
import torch

from chatwright.data.rendered import Rendered
from chatwright.errors import ChatwrightError
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.generation.service import Busy, Service


@pytest.fixture
def service(language_model, renderer):
    made = Service(Engine(language_model, renderer, batch_size=4))
    yield made
    made.close()


def ask(service, prompt, sampling, n=1):
    """Submit and wait; gives the ticket."""
    event = threading.Event()
    ticket = service.submit(service.engine, prompt, sampling, n, event.set)
    while not ticket.ended:
        assert event.wait(30)
        event.clear()
    return ticket


def test_every_thread_gets_its_own_answers(seeing, conversations):
    model, renderer = seeing
    service = Service(Engine(model, renderer, batch_size=4))
    prompts = [renderer.prompt(conversation) for conversation in conversations]
    found = {}

    def one(number):
        sampling = Sampling(5 + number % 7, temperature=number % 2, seed=number)
        found[number] = ask(service, prompts[number % len(prompts)], sampling, 1 + number % 3)

    threads = [threading.Thread(target=one, args=[number]) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    service.close()
    engine = Engine(model, renderer)
    for ticket in found.values():
        sampling = ticket.request.rows[0].sampling
        alone = engine.generate([ticket.request.prompt], sampling, len(ticket.request.rows))[0]
        assert [engine.complete(row).tokens for row in ticket.request.rows] == [answer.tokens for answer in alone]


def test_a_full_queue_says_so_and_a_cancelled_request_makes_room(language_model, renderer, conversations):
    service = Service(Engine(language_model, renderer, batch_size=1), queue=2)
    prompt, long = renderer.prompt(conversations[0]), Sampling(90, 0)
    tickets = []
    with pytest.raises(Busy):
        for _ in range(9):
            tickets.append(service.submit(service.engine, prompt, long, 1, lambda: None))
    for ticket in tickets:
        ticket.cancel()
    assert ask(service, prompt, Sampling(3, 0)).error is None
    service.close()
    with pytest.raises(Busy):
        service.submit(service.engine, prompt, long, 1, lambda: None)


def test_another_model_takes_over_without_cutting_an_answer(service, language_model, renderer, conversations):
    old = service.engine
    prompt = renderer.prompt(conversations[0])
    begun = threading.Event()
    first = service.submit(service.engine, prompt, Sampling(60, 0), 1, begun.set)
    assert begun.wait(30)
    torch.manual_seed(1)
    other = type(language_model)(language_model.config)
    service.swap(Engine(other, renderer))
    second = ask(service, prompt, Sampling(10, 0))
    while not first.ended:
        time.sleep(0.01)
    # Who rendered a prompt before, and comes late, is answered in the words of that model.
    late = service.submit(old, prompt, Sampling(60, 0), 1, lambda: None)
    while not late.ended:
        time.sleep(0.01)
    assert late.engine is old and late.request.rows[0].tokens == first.request.rows[0].tokens
    assert ask(service, prompt, Sampling(3, 0)).engine is service.engine is not old
    assert first.engine is old and second.engine is service.engine is not old
    alone = Engine(language_model, renderer).generate([prompt], Sampling(60, 0))[0][0]
    assert first.request.rows[0].tokens == alone.tokens
    assert second.request.rows[0].tokens == service.engine.generate([prompt], Sampling(10, 0))[0][0].tokens


def test_a_model_that_is_gone_takes_no_memory(service, language_model, renderer, conversations):
    torch.manual_seed(1)
    other = Engine(type(language_model)(language_model.config), renderer)
    gone = weakref.ref(other.model)
    prompt = renderer.prompt(conversations[0])
    service.swap(other)
    ticket = service.submit(other, prompt, Sampling(60, 0), 1, lambda: None)
    service.swap(Engine(language_model, renderer))
    while not ticket.ended:
        time.sleep(0.01)
    del other, ticket
    for _ in range(200):
        if gone() is None:
            return
        time.sleep(0.01)
    raise AssertionError("somebody holds it")


def test_a_failure_is_told_and_the_service_goes_on(service, language_model, renderer, conversations):
    prompt = renderer.prompt(conversations[0])
    head = language_model.get_output_embeddings().weight
    before = head.detach().clone()
    with torch.no_grad():
        head.fill_(float("nan"))
    assert "not finite" in ask(service, prompt, Sampling(5)).error
    with torch.no_grad():
        head.copy_(before)
    assert ask(service, prompt, Sampling(5)).error is None


def test_other_work_is_done_between_tokens(service, renderer, conversations):
    prompt = renderer.prompt(conversations[0])
    ticket = service.submit(service.engine, prompt, Sampling(60, 0), 1, lambda: None)
    assert service.call(lambda: 3).result(30) == 3
    with pytest.raises(ChatwrightError, match="no tokens"):
        service.call(lambda: service.engine.render(Rendered([], []))).result(30)
    while not ticket.ended:
        time.sleep(0.01)
    assert ticket.error is None


@pytest.mark.parametrize(("pace", "notices"), [(0.0, [1, 2, 3, 4, 5, 6]), (1e6, [1, 6])])
def test_the_first_token_is_told_at_once_and_the_end_always(
    pace, notices, service, language_model, renderer, conversations, monkeypatch
):
    monkeypatch.setattr("chatwright.generation.service.PACE", pace)
    seen, ended = [], threading.Event()
    begin = threading.Event()
    service.call(begin.wait)  # the decoder waits until the ticket is known here
    prompt = renderer.prompt(conversations[0])
    sampling = Sampling(6, 0, stop_tokens=())

    def changed():
        seen.append(len(ticket.request.rows[0].tokens))
        if ticket.ended:
            ended.set()

    ticket = service.submit(service.engine, prompt, sampling, 1, changed)
    begin.set()
    assert ended.wait(30)
    assert seen == notices
