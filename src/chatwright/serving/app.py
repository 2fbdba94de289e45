"""The web application: routes, limits and errors around one service."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatwright.serving import openai
from chatwright.serving.errors import ApiError, add_handlers
from chatwright.serving.openai import Served


def create_app(served: Served, authorise: Callable[[str], bool]) -> FastAPI:
    """The application; it closes the service when it is shut down.

    Args:
        authorise: whether a key may use the API; asked for every request.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(served.service.close)

    async def with_key(request: Request) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not await run_in_threadpool(authorise, key.strip()):
            raise ApiError(401, "no valid API key; send it as 'Authorization: Bearer <key>'", code="invalid_api_key")

    app = FastAPI(title="Chatwright", lifespan=lifespan, docs_url=None, redoc_url=None)
    add_handlers(app)
    app.include_router(openai.routes(served), dependencies=[Depends(with_key)])

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    app.add_middleware(BodyLimit, most=served.limits.body)
    return app


class BodyLimit:
    """Refuses a request whose body is larger than ``most`` bytes, before more of it is read."""

    def __init__(self, app: ASGIApp, most: int):
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        error = ApiError(413, f"the request is larger than {self.most:,} bytes; send less")
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.most:
            return await error.response()(scope, receive, send)
        count, refused = 0, False

        async def counted() -> Message:
            nonlocal count, refused
            message = await receive()
            count += len(message.get("body", b""))
            if count > self.most and not refused:
                await error.response()(scope, receive, send)
                refused = True
            return {"type": "http.disconnect"} if refused else message

        async def unless_refused(message: Message) -> None:
            if not refused:
                await send(message)

        await self.app(scope, counted, unless_refused)
