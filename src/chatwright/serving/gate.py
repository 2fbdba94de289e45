"""Who is let in: the gate before every route, how often somebody may come, and the headers of every answer."""

import hashlib
import hmac
import threading
from collections.abc import Hashable
from time import monotonic
from urllib.parse import parse_qs, urlsplit

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatwright.feedback import accounts
from chatwright.feedback.database import Database
from chatwright.serving.errors import ApiError

# All that anybody may ask for. What is not here is closed, also a route that nobody has thought of.
OPEN = ("/sign-in", "/health")
OPEN_BELOW = ("/static/", "/join/", "/reset/")

COOKIE = "chatwright"
SAFE = ("GET", "HEAD", "OPTIONS")  # methods that change nothing
FORM = 64 * 2**10  # bytes of a plain form
REMEMBERED = 10_000  # of those who came lately

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # With "no-referrer" browsers would send plain forms with the Origin "null".
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Gate:
    """Refuses every request that is not known to come from somebody, before any of its body is read.

    Under /v1 an API key tells who that is, elsewhere the cookie of a sign-in. Where a browser sends the cookie by
    itself, whatever changes something must also come from our own page: by its Origin, and by a token that only our
    page can know. Routes find who it is in ``request.state.person``, None on what is open.

    Args:
        rate: how often an account may come.
    """

    def __init__(self, app: ASGIApp, database: Database, rate: "Rate"):
        self.app, self.database, self.rate = app, database, rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        request = Request(scope, receive)
        try:
            if _below(request, "/v1"):
                await self._by_key(request)
            else:
                await self._by_cookie(request)
                if request.method not in SAFE:
                    receive = await _genuine(request)
            if request.state.person and not self.rate.allows(request.state.person):
                raise ApiError(429, "too many requests; try again in a few seconds", code="rate_limit_exceeded")
        except ApiError as error:
            # A program that looks for a route takes a page for an answer; a browser asks for HTML.
            wants_page = request.method == "GET" and "text/html" in request.headers.get("accept", "")
            to_page = error.status == 401 and wants_page and not _below(request, "/v1", "/api")
            response = RedirectResponse("/sign-in", 303) if to_page else error.response()
            return await response(scope, receive, send)
        await self.app(scope, receive, send)

    async def _by_key(self, request: Request) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        known = scheme.lower() == "bearer"
        request.state.person = known and await run_in_threadpool(accounts.whose_key, self.database, key.strip())
        if not request.state.person:
            raise ApiError(401, "no valid API key; send it as 'Authorization: Bearer <key>'", code="invalid_api_key")

    async def _by_cookie(self, request: Request) -> None:
        token = request.state.token = request.cookies.get(COOKIE, "")
        request.state.person = (token and await run_in_threadpool(accounts.who_signed_in, self.database, token)) or None
        path = request.scope["path"]
        if not (request.state.person or path in OPEN or path.startswith(OPEN_BELOW)):
            raise ApiError(401, "nobody is signed in; sign in first")


def _below(request: Request, *places: str) -> bool:
    return any(f"{request.scope['path']}/".startswith(f"{place}/") for place in places)


async def _genuine(request: Request) -> Receive:
    """See that a request comes from our own page; gives what the routes read its body from.

    Raises:
        ApiError: its Origin is another one, or the token is missing.
    """
    origin, host = request.headers.get("origin", ""), request.headers.get("host", "")
    if not host or urlsplit(origin).netloc != host:
        raise ApiError(403, "this does not come from a page of this server; reload the page and try again")
    sent, receive = request.headers.get("x-csrf-token", ""), request.receive
    if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > FORM:
                raise ApiError(413, f"the form is larger than {FORM:,} bytes; send less")
        sent = sent or parse_qs(body.decode(errors="replace")).get("csrf", [""])[0]
        receive = _again(body, receive)
    if not hmac.compare_digest(sent.encode(), csrf(request.state.token).encode()):
        raise ApiError(403, "this page is out of date; reload it and try again")
    return receive


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read, to be read once more."""
    pieces: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pieces.pop() if pieces else await receive()

    return replayed


def csrf(token: str) -> str:
    """What a page sends along to show that it is ours: follows from the cookie, which no other site can read."""
    return hmac.new(token.encode(), b"csrf", hashlib.sha256).hexdigest()


class Rate:
    """So many times a minute for each of those who come, at once or one by one; kept in memory.

    (The generic cell rate algorithm: of each is known only until when the allowance is used up.)
    """

    def __init__(self, count: int):
        self.pause = 60 / count
        self._until: dict[Hashable, float] = {}
        self._lock = threading.Lock()

    def allows(self, who: Hashable) -> bool:
        now = monotonic()
        with self._lock:
            if len(self._until) > REMEMBERED:
                self._until = {key: until for key, until in self._until.items() if until > now}
            until = max(self._until.get(who, now), now) + self.pause
            if until - now > 60 + self.pause / 2:
                return False
            self._until[who] = until
        return True


class Headers:
    """Puts `HEADERS` on every answer that does not say otherwise."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, with_headers)
