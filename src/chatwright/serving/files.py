"""OpenAI's files over the database: pictures that a client uploads once and names in its conversations."""

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import Response

from chatwright.data import media
from chatwright.feedback import conversations, tables
from chatwright.feedback.database import Database, NotFound
from chatwright.serving.answers import picture_of
from chatwright.serving.served import Served

PREFIX = "file-"


def routes(served: Served) -> APIRouter:
    """The routes under ``/v1/files``; everybody sees their own files alone."""
    router = APIRouter(prefix="/v1/files")
    database = served.database

    @router.post("")
    def upload(
        request: Request,
        file: Annotated[UploadFile, File()],
        purpose: Annotated[Literal["vision", "user_data"], Form()] = "vision",
    ) -> dict[str, Any]:
        data = file.file.read()
        picture_of(data, served.limits)
        with database.writing(request.state.person) as session:
            kept = conversations.upload(session, data, media.type_of(data) or "", served.quota)
            return _about(kept, purpose)

    @router.get("")
    def listed(request: Request) -> dict[str, Any]:
        with database.reading(request.state.person) as session:
            return {"object": "list", "data": [_about(one) for one in conversations.files(session)], "has_more": False}

    @router.get("/{key}")
    def one(request: Request, key: str) -> dict[str, Any]:
        with database.reading(request.state.person) as session:
            return _about(session.own(tables.File, _id(key)))

    @router.get("/{key}/content", response_class=Response)
    def content(request: Request, key: str) -> Response:
        with database.reading(request.state.person) as session:
            file = session.own(tables.File, _id(key))
            return Response(file.data, media_type=file.type)

    @router.delete("/{key}")
    def delete(request: Request, key: str) -> dict[str, Any]:
        with database.writing(request.state.person) as session:
            conversations.delete_file(session, _id(key))
        return {"id": key, "object": "file", "deleted": True}

    return router


def content_of(database: Database, person: UUID, key: str) -> bytes:
    """What is in a file that the person has uploaded.

    Raises:
        NotFound: there is none of theirs with that id.
    """
    with database.reading(person) as session:
        return conversations.download(session, _id(key))


def _about(file: tables.File, purpose: str = "vision") -> dict[str, Any]:
    return {
        "id": f"{PREFIX}{file.id.hex}",
        "object": "file",
        "bytes": file.size,
        "created_at": int(file.created_at.timestamp()),
        "filename": f"{file.sha256[:12]}.{file.type.rpartition('/')[2]}",
        "purpose": purpose,
        "status": "processed",
    }


def _id(key: str) -> UUID:
    try:
        return UUID(key.removeprefix(PREFIX))
    except ValueError:
        raise NotFound("there is no such file of yours; it may have been deleted") from None
