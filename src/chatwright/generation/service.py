"""Answers for many people at once, out of one decoder that a thread of its own keeps busy."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from chatwright.data.rendered import Rendered
from chatwright.errors import ChatwrightError
from chatwright.generation.decoder import Decoder, Request
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling

BUSY = "too many requests are waiting; try again in a few seconds"
PACE = 0.1  # seconds between two notices that a row has grown: telling takes time from writing
STOPPED = "the decoder has stopped; see the log and start the server again"


class Busy(ChatwrightError):
    """So many requests wait that another one would wait too long."""


@dataclass
class Ticket:
    """An accepted request; its rows grow while it is answered.

    engine: the one that answers it, also when another one has taken over since.
    changed: called from the decoder's thread when rows have grown, now and then, and when they have ended; has to
        return at once.
    error: why it was given up, if it was.
    told: when it was called last.
    """

    request: Request
    engine: Engine
    changed: Callable[[], None]
    error: str | None = None
    told: float = -math.inf

    @property
    def ended(self) -> bool:
        return self.error is not None or self.request.ended

    def cancel(self) -> None:
        """Give it up; its rows leave before the next token."""
        for row in self.request.rows:
            row.finish = row.finish or "cancelled"


class Service:
    """Takes requests from any thread.

    Args:
        engine: the first model; its ``batch_size`` and ``cache_bytes`` bound the memory.
        queue: requests that may wait.
    """

    def __init__(self, engine: Engine, queue: int = 64):
        self.queue = queue
        self._lines = [_Line(engine)]
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._work = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    @property
    def engine(self) -> Engine:
        """The one that answers new requests."""
        return self._lines[-1].engine

    @property
    def waiting(self) -> int:
        """Requests that no decoder has let in yet."""
        return sum(not ticket.ended for line in self._lines for ticket in list(line.waiting))

    def submit(
        self, engine: Engine, prompt: Rendered, sampling: Sampling, n: int, changed: Callable[[], None]
    ) -> Ticket:
        """Have a prompt answered n times by the engine that rendered it.

        Raises:
            Busy: too many wait already, or the service is closing.
        """
        request = engine.request(prompt, sampling, n)
        with self._work:
            if self._closed or self.waiting >= self.queue:
                raise Busy(BUSY)
            line = next((line for line in self._lines if line.engine is engine), None)
            if line is None:  # Another model has taken over since.
                self._lines.insert(0, line := _Line(engine))
            ticket = Ticket(request, engine, changed)
            line.waiting.append(ticket)
            self._work.notify()
        return ticket

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Do something else with a model between two tokens, such as reading a text.

        Raises:
            Busy: as `submit`.
        """
        future: Future[Any] = Future()
        with self._work:
            if self._closed or len(self._calls) >= self.queue:
                raise Busy(BUSY)
            self._calls.append((future, function))
            self._work.notify()
        return future

    def swap(self, engine: Engine) -> None:
        """Let another model answer from now on; what was begun is ended by the model that began it."""
        with self._work:
            self._lines.append(_Line(engine))
            self._work.notify()

    def close(self) -> None:
        """Take nothing new, end what was begun, and stop."""
        with self._work:
            self._closed = True
            self._work.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait():
                while self._calls:
                    self._answer(*self._calls.popleft())
                self._step()
        finally:
            # Reached with work left only by a fault in the program: nobody is to wait for what will not come.
            self._closed = True
            for line in self._lines:
                line.close(STOPPED)
            for future, _ in self._calls:
                future.set_exception(ChatwrightError(STOPPED))

    # Loops over lines stand in functions that end: a name left over would keep a model that is gone in memory.

    def _step(self) -> None:
        for line in list(self._lines):
            if not line.idle:
                line.step()

    def _let_go(self) -> None:
        """Of models that others have taken over from, and that have nothing more to say."""
        for line in [line for line in self._lines[:-1] if line.idle]:
            line.close("")
            self._lines.remove(line)

    def _wait(self) -> bool:
        """Until there is work; False once all is done and nothing more will come."""
        with self._work:
            while True:
                self._let_go()
                if self._calls or not all(line.idle for line in self._lines):
                    return True
                if self._closed:
                    return False
                self._work.wait()

    def _answer(self, future: Future[Any], function: Callable[[], Any]) -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function())
            except (ChatwrightError, RuntimeError) as error:
                future.set_exception(error)


class _Line:
    """A model with those whom it answers and those who wait for it."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.waiting: deque[Ticket] = deque()
        self.answering: list[Ticket] = []
        self._stack = ExitStack()
        self._decoder: Decoder | None = None

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.answering)

    def step(self) -> None:
        """Let in who fits and write a token of every row; a failure ends those who are being answered, not the line."""
        if self._decoder is None:
            self._decoder = self._stack.enter_context(self.engine.decoder())
        tickets = list(self.waiting)
        wanted = [ticket for ticket in tickets if not ticket.ended]
        requests = deque(ticket.request for ticket in wanted)
        error = ""
        try:
            self._decoder.admit(requests)
            if self._decoder.rows:
                self._decoder.step()
        except (ChatwrightError, RuntimeError) as failure:
            error = str(failure) or type(failure).__name__
        entered = len(wanted) - len(requests)
        self.answering += wanted[:entered]
        for _ in tickets:
            self.waiting.popleft()
        self.waiting.extendleft(reversed(wanted[entered:]))
        self._tell(error)
        if error:
            self._stack.close()
            self._decoder = None

    def close(self, error: str) -> None:
        self.answering += self.waiting
        self._tell(error)
        self._stack.close()

    def _tell(self, error: str) -> None:
        now = time.monotonic()
        for ticket in self.answering:
            ticket.error = error or None
            if ticket.ended or now - ticket.told >= PACE:
                ticket.told = now
                ticket.changed()
        self.answering = [ticket for ticket in self.answering if not ticket.ended]
