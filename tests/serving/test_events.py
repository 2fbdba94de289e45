"""Server-sent events as clients split them."""

import httpx
from tests.serving.clients import events_of

from chatwright.serving.events import event_of


def test_nothing_in_an_answer_ends_a_line():
    said = [{"text": mark} for mark in ("\x0b", "\x1c", "\x85", "\u2028", "\u2029", "\r\n", "狗")]
    assert list(events_of(httpx.Response(200, text="".join(map(event_of, said))))) == said
