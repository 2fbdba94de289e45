"""Server-sent events."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


class EventStream(StreamingResponse):
    """Events as they come.

    Args:
        events: as `event_of` gives them.
        left: called once nobody reads any longer. The events cannot see to that themselves: where a client is gone
            before the first of them, they are never begun.
    """

    def __init__(self, events: AsyncIterator[str], left: Callable[[], None]):
        super().__init__(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self.left = left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.left()


def event_of(data: dict[str, Any]) -> str:
    """One event, in ASCII: many a client takes Unicode's line separators in an answer for the end of a line."""
    return f"data: {json.dumps(data)}\n\n"
