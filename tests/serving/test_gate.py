"""Nobody gets in by a way that was not opened, as somebody else, from another site, or too often."""

import re
from uuid import uuid4

import httpx
from fastapi.routing import iter_route_contexts
from tests.databases import on_both
from tests.serving.clients import PASSWORD, Browser

from chatwright.feedback import accounts
from chatwright.feedback.tables import SignIn, User
from chatwright.generation.engine import Engine
from chatwright.serving.gate import COOKIE, HEADERS, Rate

# What anybody may ask for.
OPEN = {("GET", "/health")} | {
    (method, path) for method in ("GET", "POST") for path in ("/sign-in", "/join/{secret}", "/reset/{secret}")
}
A_PAGE = {"Accept": "text/html"}


def routes(app):
    """All ways in: method, path as it was written, path with something in its places."""
    for route in iter_route_contexts(app.routes):
        for method in sorted(getattr(route, "methods", None) or {"GET"}):
            path = getattr(route, "path_format", None) or getattr(route.starlette_route, "path", "")
            yield (
                method,
                path,
                re.sub(r"\{sha256\}", "a" * 64, re.sub(r"\{(?!sha256)\w+(:path)?\}", str(uuid4()), path)),
            )


def test_every_route_refuses_who_is_unknown_unless_it_is_open_to_all(running):
    found = list(routes(running.app))
    assert len(found) > 40 and {(method, path) for method, path, _ in found} >= OPEN
    unknown = {"Authorization": "Bearer wrong", "Cookie": f"{COOKIE}=wrong", "Origin": running.url}
    with httpx.Client(base_url=running.url) as client:
        for method, path, place in found:
            if (method, path) in OPEN or path.startswith("/static"):
                continue
            for headers in ({}, unknown, A_PAGE):
                # The body is wrong too: who is refused does not learn what a right one would be.
                response = client.request(method, place, headers=headers, content=b"{")
                to_page = (response.status_code, response.headers.get("location")) == (303, "/sign-in")
                wanted = headers is A_PAGE and method == "GET"
                assert response.status_code == 401 or (to_page and wanted), (method, path)
        assert client.get("/no/such/page", headers=A_PAGE).headers["location"] == "/sign-in"
        assert client.get("/no/such/page").status_code == 401, "programs look for routes, and read no page"
        assert (
            client.get("/static/../health").status_code == 200
            and client.get("/static/%2e%2e/app.py").status_code == 404
        )


def test_every_change_has_to_come_from_our_own_page(running):
    ann = running.person("ann")
    token, origin = ann.headers["X-CSRF-Token"], {"Origin": running.url}
    forged = [
        {"X-CSRF-Token": token},  # no Origin: no browser of today
        {"X-CSRF-Token": token, "Origin": "http://evil.example"},
        {"X-CSRF-Token": token, "Origin": "null"},
        {"X-CSRF-Token": token, "Origin": f"{running.url}.evil.example"},
        origin,
        {**origin, "X-CSRF-Token": "0" * 64},
        {**origin, "X-CSRF-Token": running.person("bob").headers["X-CSRF-Token"]},
    ]
    with httpx.Client(base_url=running.url, cookies=ann.cookies) as client:
        changes = [one for one in routes(running.app) if one[0] not in ("GET", "HEAD") and not one[1].startswith("/v1")]
        assert len(changes) > 15
        for number, (method, path, place) in enumerate(changes):
            for headers in forged if number == 0 else forged[1:6:3]:
                assert client.request(method, place, headers=headers).status_code == 403, (method, path, headers)
        assert client.post("/sign-out", data={"csrf": "no"}, headers=origin).status_code == 403
        large = client.post("/sign-out", data={"csrf": token, "x": "x" * 70_000}, headers=origin)
        assert large.status_code == 413
        assert client.post("/sign-out", data={"csrf": token}, headers=origin).headers["location"] == "/sign-in"
        assert client.get("/", headers=A_PAGE).headers["location"] == "/sign-in"


def test_every_answer_has_the_headers_that_keep_scripts_out(running):
    ann = running.person("ann")
    for path in ("/", "/sign-in", "/join/x", "/settings", "/api/conversations", "/c/none", "/health", "/v1/models"):
        found = ann.get(path).headers
        assert {name: found[name] for name in HEADERS} == HEADERS, path
    assert HEADERS["X-Frame-Options"] == "DENY" and HEADERS["X-Content-Type-Options"] == "nosniff"
    assert HEADERS["Cache-Control"] == "no-store" and HEADERS["Referrer-Policy"] == "same-origin"
    policy = dict(rule.strip().split(" ", 1) for rule in HEADERS["Content-Security-Policy"].split(";"))
    ours, none = (
        ("script-src", "style-src", "connect-src", "form-action"),
        ("default-src", "frame-ancestors", "base-uri"),
    )
    assert {policy[name] for name in ours} == {"'self'"} and {policy[name] for name in none} == {"'none'"}


@on_both
def test_a_sign_in_lives_in_a_cookie_that_no_script_reads(running):
    with Browser(running.url) as visitor:
        before = visitor.look("/sign-in").headers["set-cookie"]
        running.person("ann")
        visitor.post("/sign-in", data={"name": "ann", "password": PASSWORD})
        (cookie,) = [one for one in visitor.cookies.jar if one.name == COOKIE]
        assert cookie.value not in before, "what was known before the sign-in is worth nothing after it"
        assert "HttpOnly" in before and "SameSite=lax" in before and "Secure" not in before
        with running.database.reading() as session:
            assert cookie.value not in str(session.query(SignIn.token_hash).all())
    https = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "10.1.2.3"}
    assert "Secure" in httpx.get(f"{running.url}/sign-in", headers=https).headers["set-cookie"]


@on_both
def test_a_closed_account_is_out_at_once(running):
    ann = running.person("ann")
    with running.database.writing(ann.person) as session:
        _, key = accounts.create_key(session, "mine")
    assert ann.get("/api/conversations").status_code == 200
    with running.database.writing() as session:
        session.get(User, ann.person).active = False
    assert ann.get("/api/conversations").status_code == 401
    header = {"Authorization": f"Bearer {key}"}
    assert httpx.get(f"{running.url}/v1/models", headers=header).status_code == 401


def test_passwords_and_links_cannot_be_tried_for_long(running):
    running.person("ann")
    with Browser(running.url) as visitor:
        statuses = [visitor.sign_in("Ann", "wrong").status_code for _ in range(11)]
        assert statuses == [403] * 9 + [429] * 2, "one of the ten was her own"
        told = visitor.sign_in(" ANN ")
        assert told.status_code == 429 and "wait a minute" in told.text
        statuses = [visitor.join("/join/guess", "eve").status_code for _ in range(25)]
        assert statuses[0] == 404 and statuses[-1] == 429
        assert visitor.post("/reset/guess", data={"password": PASSWORD}).status_code == 429
    with running.database.reading() as session:
        assert session.query(User).count() == 2


def test_an_account_may_come_so_many_times_a_minute(start, assistant, renderer):
    running = start(Engine(assistant, renderer), rate=20)
    ann, bob = running.person("ann"), running.person("bob")
    answers = [ann.get("/api/keys") for _ in range(30)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused and answers[0].status_code == 200
    assert all(answer.headers["retry-after"] for answer in refused) and bob.get("/api/keys").status_code == 200
    statuses = [
        running.client.with_options(max_retries=0).models.with_raw_response.list().status_code for _ in range(3)
    ]
    assert statuses == [200] * 3, "a key counts for its owner alone"


def test_the_allowance_comes_back(monkeypatch):
    now = 0.0
    monkeypatch.setattr("chatwright.serving.gate.monotonic", lambda: now)
    rate = Rate(6)
    assert [rate.allows("ann") for _ in range(8)] == [True] * 6 + [False] * 2
    now = 10.0
    assert [rate.allows("ann") for _ in range(2)] == [True, False] and rate.allows("bob")
    now = 1000.0
    assert [rate.allows("ann") for _ in range(7)] == [True] * 6 + [False]
