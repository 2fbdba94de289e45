"""Accounts on the chat page: joining, keys, passwords, one's data, and who may change whom."""

import json
from uuid import uuid4

import httpx
import pytest
from tests.databases import on_both
from tests.serving.clients import PASSWORD, Browser

from chatwright.feedback import accounts
from chatwright.feedback.tables import User, now


@on_both
def test_a_link_makes_one_account_and_an_owner_invites_the_next(running):
    with running.database.writing() as session:
        session.delete(session.query(User).one())
    with Browser(running.url) as first, Browser(running.url) as second:
        link = f"/join/{accounts.first_owner_link(running.database)}"
        assert first.join(link, "Ann", "short").status_code == 400
        answer = first.join(link, "Ann")
        assert (answer.status_code, answer.headers["location"]) == (303, "/") and first.get("/").status_code == 200
        assert second.join(link, "eve").status_code == 404
        invitation = first.post("/api/invitations", json={"role": "user"}).json()["link"]
        assert second.join(invitation, "ANN").status_code == 409
        assert second.join(invitation, "bob").status_code == 303
        people = first.get("/api/people").json()
        assert [(one["name"], one["role"]) for one in people["people"]] == [("ann", "owner"), ("bob", "user")]
        assert people["may"] == ["owner", "admin", "annotator", "user"]
        bob = people["people"][1]["id"]
        assert first.patch(f"/api/people/{bob}", json={"role": "admin"}).json()["role"] == "admin"
        assert first.patch(f"/api/people/{uuid4()}", json={}).status_code == 404
        assert first.patch(f"/api/people/{bob}", json={"active": False}).json()["active"] is False
        assert second.get("/").headers["location"] == "/sign-in"


@on_both
@pytest.mark.parametrize("role", ["user", "annotator"])
def test_accounts_are_for_owners_and_admins(role, running):
    ann, owner = running.person("ann", role), running.person("boss", "owner")
    assert ann.get("/people").status_code == ann.get("/api/people").status_code == 403
    assert ann.post("/api/invitations", json={"role": "user"}).status_code == 403
    assert ann.post(f"/api/people/{ann.person}/reset").status_code == 403
    for change in ({"role": "owner"}, {"active": False}, {}):
        assert ann.patch(f"/api/people/{owner.person}", json=change).status_code == 403
        assert ann.patch(f"/api/people/{ann.person}", json=change).status_code == 403
    admin = running.person("admin", "admin")
    assert admin.get("/people").status_code == 200
    assert admin.post("/api/invitations", json={"role": "admin"}).status_code == 403
    assert admin.patch(f"/api/people/{owner.person}", json={"active": False}).status_code == 403
    assert admin.patch(f"/api/people/{ann.person}", json={"role": "user"}).status_code == 200
    assert admin.post(f"/api/people/{owner.person}/reset").status_code == 403
    assert admin.post(f"/api/people/{ann.person}/reset").status_code == 200


@on_both
def test_a_key_is_shown_once_and_ends_when_it_is_revoked(running):
    ann = running.person("ann")
    made = ann.post("/api/keys", json={"name": "laptop"}).json()
    (listed,) = ann.get("/api/keys").json()["keys"]
    assert listed == {name: value for name, value in made.items() if name != "key"} and listed["revoked"] is None
    header = {"Authorization": f"Bearer {made['key']}"}
    assert httpx.get(f"{running.url}/v1/models", headers=header).status_code == 200
    assert ann.delete(f"/api/keys/{made['id']}").status_code == 204
    assert httpx.get(f"{running.url}/v1/models", headers=header).status_code == 401
    assert ann.get("/api/keys").json()["keys"][0]["revoked"]


@on_both
def test_another_password_ends_every_other_sign_in(running):
    ann = running.person("ann")
    with Browser(running.url) as elsewhere:
        elsewhere.sign_in("ann")
        assert ann.put("/api/password", json={"old": "wrong", "new": "another password"}).status_code == 403
        assert ann.put("/api/password", json={"old": PASSWORD, "new": "another password"}).status_code == 204
        assert ann.look("/").status_code == 200 and elsewhere.get("/").headers["location"] == "/sign-in"
        assert elsewhere.sign_in("ann").status_code == 403
        assert elsewhere.sign_in("ann", "another password").status_code == 303


@on_both
def test_a_lost_password_is_set_anew_by_a_link(running):
    owner, ann = running.person("boss", "owner"), running.person("ann")
    made = owner.post(f"/api/people/{ann.person}/reset").json()
    assert made["link"].startswith("/reset/") and made["expires"] > now().isoformat()
    assert owner.post(f"/api/people/{uuid4()}/reset").status_code == 404
    with Browser(running.url) as elsewhere:
        assert "works once" in elsewhere.look(made["link"]).text
        short = elsewhere.post(made["link"], data={"password": "short"})
        assert short.status_code == 400 and "8 to 1024" in short.text
        answer = elsewhere.post(made["link"], data={"password": "another password"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert elsewhere.get("/settings").text.count("ann")
        elsewhere.look(made["link"])
        assert elsewhere.post(made["link"], data={"password": "a third password"}).status_code == 404
    assert ann.get("/").headers["location"] == "/sign-in"
    assert ann.sign_in("ann").status_code == 403 and ann.sign_in("ann", "another password").status_code == 303


@on_both
def test_consent_ones_data_and_leaving(running):
    ann = running.person("ann")
    assert "is not used for training" in ann.get("/").text
    assert ann.put("/api/consent", json={"consent": True}).status_code == 204
    assert "may be used for training" in ann.get("/").text
    conversation = ann.talk()
    ann.ask(conversation, ann.say(conversation, "How many dogs?"))
    export = ann.get("/api/export")
    assert "attachment" in export.headers["content-disposition"]
    (line,) = map(json.loads, export.text.splitlines())
    assert line["messages"][0] == {"role": "user", "content": "How many dogs?"}
    assert ann.delete("/api/account").status_code == 204
    assert ann.get("/").headers["location"] == "/sign-in" and ann.sign_in("ann").status_code == 403
    with running.database.reading() as session:
        assert session.get(User, ann.person) is None


@pytest.mark.parametrize(
    ("headers", "language"),
    [({}, "en"), ({"Accept-Language": "zh-CN,zh;q=0.9,en"}, "zh"), ({"Accept-Language": "fr, en;q=0.5, zh"}, "zh"),
     ({"Accept-Language": "en", "Cookie": "language=zh"}, "zh"), ({"Cookie": "language=xx"}, "en")],
)  # fmt: skip
def test_the_page_speaks_the_language_of_its_reader(headers, language, running):
    assert f'<html lang="{language}' in httpx.get(f"{running.url}/sign-in", headers=headers).text
