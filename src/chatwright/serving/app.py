"""The web application: routes, limits and errors around one service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.staticfiles import StaticFiles
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatwright.serving import files, openai
from chatwright.serving.errors import ApiError, add_handlers
from chatwright.serving.gate import Gate, Headers, Rate
from chatwright.serving.pages import html, people, talks
from chatwright.serving.served import Served
from chatwright.serving.writing import Writings

ATTEMPTS = 10  # at the password of one account in a minute
VISITS = 30  # attempts at passwords and links from one address in a minute


def create_app(served: Served) -> FastAPI:
    """The application; it closes the service when it is shut down, after the last answer is saved."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(served.service.close)
        await writings.close()

    app = FastAPI(title="Chatwright", lifespan=lifespan, docs_url=None, redoc_url=None)
    writings, attempts, visits = Writings(served), Rate(ATTEMPTS), Rate(VISITS)
    add_handlers(app)
    app.include_router(openai.routes(served))
    app.include_router(files.routes(served))
    app.include_router(html.routes(served, attempts, visits))
    app.include_router(talks.routes(served, writings))
    app.include_router(people.routes(served, writings, attempts))
    app.mount("/static", Static(directory=Path(__file__).parent / "static"))

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    # The last one that is added is the first that a request meets.
    app.add_middleware(Gate, database=served.database, rate=Rate(served.rate))
    app.add_middleware(BodyLimit, most=served.limits.body)
    app.add_middleware(Headers)
    return app


class Static(StaticFiles):
    """Files that a browser keeps, and asks each time whether they have changed."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response


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
