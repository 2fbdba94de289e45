"""Errors as OpenAI's API writes them: ``{"error": {"message", "type", "param", "code"}}`` with a matching status."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from chatwright.errors import ChatwrightError
from chatwright.feedback.database import Conflict, NotAllowed, NotFound, TooMuch
from chatwright.generation.service import Busy

RETRY_AFTER = 5  # seconds
STATUS = {NotAllowed: 403, NotFound: 404, Conflict: 409, TooMuch: 413}
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """What a client did wrong, or what keeps us from answering."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_AFTER)} if self.status == 429 else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def as_api_error(error: Exception) -> ApiError:
    """What a client is told about a failure of ours or of its own."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Busy):
        return ApiError(429, str(error), code="queue_full")
    status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 400)
    code = "context_length_exceeded" if "the model's context is" in str(error) else None
    return ApiError(status, str(error), code=code)


def add_handlers(app: FastAPI) -> None:
    """Let every failure of the app leave in this form."""

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(ChatwrightError)
    async def bad_input(_: Request, error: ChatwrightError) -> JSONResponse:
        return as_api_error(error).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if part != "body"]
        where = ".".join(place)
        return ApiError(400, f"{where}: {first['msg']}" if where else first["msg"], where or None).response()

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return ApiError(error.status_code, str(error.detail)).response()
