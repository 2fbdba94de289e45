"""The pages themselves, made on the server; what they show of a person's data their scripts ask for."""

import secrets
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from chatwright.errors import ChatwrightError
from chatwright.feedback import accounts
from chatwright.feedback.database import Transaction
from chatwright.feedback.tables import REASONS, Conversation
from chatwright.serving.errors import ApiError, as_api_error
from chatwright.serving.gate import COOKIE, Rate, csrf
from chatwright.serving.language import look, translated
from chatwright.serving.pages.people import stay
from chatwright.serving.pages.talks import Person
from chatwright.serving.served import Served
from chatwright.serving.writing import compare_next

TEMPLATES = Path(__file__).parent.parent / "templates"

environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
environment.filters["t"] = translated


def routes(served: Served, attempts: Rate, visits: Rate) -> APIRouter:
    """Args:
    attempts: at a password, by account.
    visits: attempts at a password or a link, by address.
    """
    router, database = APIRouter(default_response_class=HTMLResponse, include_in_schema=False), served.database

    def page(request: Request, template: str, code: int = 200, **context: Any) -> HTMLResponse:
        """A page; it gives a visitor a token, by which the page's form will be known as ours."""
        token = request.state.token or secrets.token_urlsafe(32)
        common = {"csrf": csrf(token), "model": served.model.name, **look(request)}
        response = HTMLResponse(environment.get_template(template).render({**common, **context}), code)
        if not request.state.token:
            stay(response, request, token)
        return response

    def refused(request: Request, error: ChatwrightError) -> HTMLResponse:
        told = as_api_error(error)
        return page(request, "error.html", told.status, status=told.status, message=told.message)

    # ---- anybody's

    def visit(request: Request) -> None:
        if not visits.allows(request.client and request.client.host):
            raise ApiError(429, "too many attempts from this address; wait a minute and try again")

    @router.get("/sign-in")
    def sign_in_page(request: Request) -> Response:
        if request.state.person:
            return RedirectResponse("/", 303)
        return page(request, "sign-in.html", error="", name="")

    @router.post("/sign-in")
    def sign_in(request: Request, name: Annotated[str, Form()] = "", password: Annotated[str, Form()] = "") -> Response:
        try:
            visit(request)
            if not attempts.allows(accounts.plain_name(name)):
                raise ApiError(429, "too many attempts for this account; wait a minute and try again")
            return entered(request, accounts.sign_in(database, name, password))
        except (ChatwrightError, ApiError) as error:
            told = as_api_error(error)
            return page(request, "sign-in.html", told.status, error=told.message, name=name)

    @router.get("/join/{secret}")
    def join_page(request: Request, secret: str) -> Response:
        return page(request, "join.html", error="", name="", secret=secret)

    @router.post("/join/{secret}")
    def join(
        request: Request, secret: str, name: Annotated[str, Form()] = "", password: Annotated[str, Form()] = ""
    ) -> Response:
        try:
            visit(request)
            accounts.accept(database, secret, name, password)
            return entered(request, accounts.sign_in(database, name, password))
        except (ChatwrightError, ApiError) as error:
            told = as_api_error(error)
            return page(request, "join.html", told.status, error=told.message, name=name, secret=secret)

    @router.get("/reset/{secret}")
    def reset_page(request: Request, secret: str) -> Response:
        return page(request, "reset.html", error="", secret=secret)

    @router.post("/reset/{secret}")
    def reset(request: Request, secret: str, password: Annotated[str, Form()] = "") -> Response:
        try:
            visit(request)
            name = accounts.reset_password(database, secret, password)
            return entered(request, accounts.sign_in(database, name, password))
        except (ChatwrightError, ApiError) as error:
            told = as_api_error(error)
            return page(request, "reset.html", told.status, error=told.message, secret=secret)

    def entered(request: Request, token: str) -> Response:
        response = RedirectResponse("/", 303)
        stay(response, request, token)
        return response

    # ---- of those who are signed in

    @router.post("/sign-out")
    def sign_out(request: Request, person: Person) -> Response:
        with database.writing(person) as session:
            accounts.sign_out(session, request.state.token)
        response = RedirectResponse("/sign-in", 303)
        response.delete_cookie(COOKIE)
        return response

    @router.get("/")
    def new_chat(request: Request, person: Person) -> Response:
        return chat(request, person, None)

    @router.get("/c/{conversation}")
    def chat(request: Request, person: Person, conversation: UUID | None) -> Response:
        try:
            with database.reading(person) as session:
                if conversation:
                    session.own(Conversation, conversation)
                who, two = about(session), compare_next(session, served.compare_every)
        except ChatwrightError as error:
            return refused(request, error)
        limits = {
            "images": served.limits.images,
            "bytes": served.limits.body,
            "pixels": served.limits.pixels,
            "characters": served.limits.characters,
        }
        return page(
            request,
            "chat.html",
            person=who,
            conversation=str(conversation or ""),
            pictures=served.model.pictures,
            limits=limits,
            compare_next=two,
            reasons={"good": REASONS[True], "bad": REASONS[False]},
        )

    @router.get("/settings")
    def settings(request: Request, person: Person) -> Response:
        with database.reading(person) as session:
            return page(request, "settings.html", person=about(session))

    @router.get("/people")
    def people(request: Request, person: Person) -> Response:
        try:
            with database.reading(person) as session:
                may = accounts.RULES[session.require(*accounts.RULES).role]
                return page(request, "people.html", person=about(session), may=may[::-1])
        except ChatwrightError as error:
            return refused(request, error)

    return router


def about(session: Transaction) -> dict[str, Any]:
    """The person who looks at a page."""
    return {"name": session.actor.name, "role": session.actor.role, "consent": session.actor.consent}
