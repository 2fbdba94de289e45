"""What the pages about accounts ask for: one's own keys, password, consent and data; and others' accounts."""

import tempfile
from collections.abc import Iterator
from typing import IO, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse
from pydantic import Field

from chatwright.data.store import json_line
from chatwright.feedback import accounts, conversations
from chatwright.feedback.database import NotFound
from chatwright.feedback.tables import ApiKey, User, now
from chatwright.serving.errors import ApiError
from chatwright.serving.gate import COOKIE, Rate
from chatwright.serving.pages.talks import Asked, Person
from chatwright.serving.served import Served
from chatwright.serving.writing import Writings

IN_MEMORY = 16 * 2**20  # bytes of an export; more of it goes to a file without a name
Role = Literal["owner", "admin", "annotator", "user"]


class Consent(Asked):
    consent: bool


class NewPassword(Asked):
    old: str = Field(max_length=2000)
    new: str = Field(max_length=2000)


class NewKey(Asked):
    name: str = Field(max_length=200)


class Invitation(Asked):
    role: Role


class Change(Asked):
    role: Role | None = None
    active: bool | None = None


def routes(served: Served, writings: Writings, attempts: Rate) -> APIRouter:
    """Args:
    attempts: at a password, by account.
    """
    router, database = APIRouter(prefix="/api"), served.database

    # ---- one's own

    @router.put("/consent", status_code=204)
    def consent(person: Person, asked: Consent) -> None:
        with database.writing(person) as session:
            accounts.set_consent(session, asked.consent)

    @router.put("/password", status_code=204)
    def password(person: Person, asked: NewPassword, request: Request) -> Response:
        with database.reading(person) as session:
            name = session.actor.name
        if not attempts.allows(name):
            raise ApiError(429, "too many attempts; wait a minute and try again")
        accounts.change_password(database, person, asked.old, asked.new)
        response = Response(status_code=204)
        stay(response, request, accounts.sign_in(database, name, asked.new))
        return response

    @router.get("/keys")
    def keys(person: Person) -> dict[str, Any]:
        with database.reading(person) as session:
            return {"keys": [_key(one) for one in accounts.keys(session)]}

    @router.post("/keys")
    def new_key(person: Person, asked: NewKey) -> dict[str, Any]:
        with database.writing(person) as session:
            kept, key = accounts.create_key(session, asked.name)
            return {**_key(kept), "key": key}

    @router.delete("/keys/{key}", status_code=204)
    def revoke(person: Person, key: UUID) -> None:
        with database.writing(person) as session:
            accounts.revoke_key(session, key)

    @router.get("/export", response_class=StreamingResponse)
    def export(person: Person) -> StreamingResponse:
        # Made before it is sent: a slow reader must not hold a transaction.
        file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
        with database.reading(person) as session:
            for record in conversations.export(session):
                file.write(json_line(record))
        headers = {"Content-Disposition": 'attachment; filename="conversations.jsonl"'}
        return StreamingResponse(_pieces(file), media_type="application/jsonl", headers=headers)

    @router.delete("/account", status_code=204)
    async def delete(person: Person) -> None:
        def delete() -> None:
            with database.writing(person) as session:
                accounts.delete_account(session)

        await run_in_threadpool(delete)
        writings.stop(person)

    # ---- others'

    @router.get("/people")
    def people(person: Person) -> dict[str, Any]:
        with database.reading(person) as session:
            found = [_person(one) for one in accounts.users(session)]
            return {"people": found, "may": accounts.RULES[session.actor.role]}

    @router.patch("/people/{account}")
    def change(person: Person, account: UUID, asked: Change) -> dict[str, Any]:
        with database.writing(person) as session:
            found = {one.id: one for one in accounts.users(session)}.get(account)
            if found is None:
                raise NotFound("there is no such account; it may have been deleted")
            if asked.role is not None:
                accounts.change_role(session, account, asked.role)
            if asked.active is not None:
                accounts.set_active(session, account, asked.active)
            return _person(found)

    @router.post("/invitations")
    def invite(person: Person, asked: Invitation) -> dict[str, Any]:
        with database.writing(person) as session:
            secret = accounts.invite(session, asked.role)
        return {"link": f"/join/{secret}", "expires": (now() + accounts.INVITATION).isoformat()}

    @router.post("/people/{account}/reset")
    def reset(person: Person, account: UUID) -> dict[str, Any]:
        with database.writing(person) as session:
            secret = accounts.reset_link(session, account)
        return {"link": f"/reset/{secret}", "expires": (now() + accounts.RESET).isoformat()}

    return router


def stay(response: Response, request: Request, token: str) -> None:
    """Let the browser keep a sign-in (or the token of a visitor's page)."""
    response.set_cookie(
        COOKIE,
        token,
        max_age=int(accounts.SIGN_IN.total_seconds()),
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )


def _key(one: ApiKey) -> dict[str, Any]:
    return {
        "id": str(one.id),
        "name": one.name,
        "prefix": one.prefix,
        "created": one.created_at.isoformat(),
        "revoked": one.revoked_at and one.revoked_at.isoformat(),
    }


def _person(one: User) -> dict[str, Any]:
    return {
        "id": str(one.id),
        "name": one.name,
        "role": one.role,
        "active": one.active,
        "created": one.created_at.isoformat(),
    }


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        file.seek(0)
        while piece := file.read(2**16):
            yield piece
