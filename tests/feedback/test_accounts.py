"""Accounts: links, passwords, sign-ins, keys, and what each role may do."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import uuid4

import pytest
from argon2 import PasswordHasher
from sqlalchemy import func, select, text
from tests.feedback.people import person, talk

from chatwright.errors import ChatwrightError
from chatwright.feedback import accounts, conversations
from chatwright.feedback.accounts import accept, first_owner_link, invite, sign_in, who_signed_in, whose_key
from chatwright.feedback.database import Conflict, NotAllowed, NotFound
from chatwright.feedback.tables import (
    ROLES,
    ApiKey,
    Base,
    Conversation,
    Evaluation,
    File,
    Journal,
    Link,
    PasswordReset,
    SignIn,
    User,
    now,
)

PASSWORD = "correct horse"


@pytest.fixture(autouse=True)
def _cheap(monkeypatch):
    """Passwords cost less time here than outside."""
    monkeypatch.setattr(accounts, "hasher", PasswordHasher(time_cost=1, memory_cost=64))


def test_the_first_owner_comes_by_a_link_that_works_once(database):
    stale = first_owner_link(database)
    link = first_owner_link(database)  # The server was started again.
    with pytest.raises(NotFound):
        accept(database, stale, "eve", PASSWORD)
    with pytest.raises(ChatwrightError, match="8 to 1024"):
        accept(database, link, "ann", "short")
    ann = accept(database, link, "Ann", PASSWORD)
    with database.reading(ann) as session:
        assert (session.actor.name, session.actor.role, session.actor.consent) == ("ann", "owner", False)
    assert first_owner_link(database) is None
    with pytest.raises(NotFound, match="was used"):
        accept(database, link, "eve", PASSWORD)


def test_a_link_that_many_use_at_once_makes_one_account(database):
    link = first_owner_link(database)

    def use(number):
        try:
            return accept(database, link, f"person {number}", PASSWORD)
        except NotFound:
            return None

    with ThreadPoolExecutor(4) as threads:
        assert [bool(made) for made in threads.map(use, range(4))].count(True) == 1
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(User)) == 1


def test_two_owners_who_leave_at_once_do_not_both_leave(database):
    for turn in range(4):
        with database.writing() as session:
            for user in session.scalars(select(User)):
                session.delete(user)
        owners = [person(database, f"owner {turn} {i}", "owner") for i in range(2)]

        def leave(who):
            try:
                with database.writing(who) as session:
                    accounts.change_role(session, who, "user")
                return True
            except Conflict:
                return False

        with ThreadPoolExecutor(2) as threads:
            assert [*threads.map(leave, owners)].count(True) == 1


def test_a_link_expires(database):
    link = first_owner_link(database)
    with database.writing() as session:
        session.scalars(select(Link)).one().expires_at = now() - timedelta(seconds=1)
    with pytest.raises(NotFound, match="expired"):
        accept(database, link, "ann", PASSWORD)


def test_a_name_is_one_persons_however_it_is_typed(database):
    boss = person(database, "boss", "owner")
    with database.writing(boss) as session:
        first, second = invite(session, "user"), invite(session, "user")
    ann = accept(database, first, " Zoë  Ann ", PASSWORD)
    for name, error in [("zoe\u0308 ANN", Conflict), ("", ChatwrightError), ("a\u202eb", ChatwrightError)]:
        with pytest.raises(error):
            accept(database, second, name, PASSWORD)
    assert who_signed_in(database, sign_in(database, "ZOË ann", PASSWORD)) == ann


@pytest.fixture
def ann(database):
    """An owner with a password."""
    return accept(database, first_owner_link(database), "ann", PASSWORD)


def invitation(database, maker):
    with database.writing(maker) as session:
        return invite(session, "user")


def test_signing_in_and_out(database, ann):
    token, other = sign_in(database, "ann", PASSWORD), sign_in(database, "ann", PASSWORD)
    assert who_signed_in(database, token) == who_signed_in(database, other) == ann
    assert who_signed_in(database, "guess") is None
    with database.writing(person(database, "bob")) as session:
        accounts.sign_out(session, token)  # It is not his.
    assert who_signed_in(database, token) == ann
    with database.writing(ann) as session:
        accounts.sign_out(session, token)
    assert who_signed_in(database, token) is None and who_signed_in(database, other) == ann
    with database.writing() as session:
        session.scalars(select(SignIn)).one().expires_at = now()
    assert who_signed_in(database, other) is None


def test_a_wrong_name_and_a_wrong_password_are_the_same_answer_after_the_same_work(database, ann, monkeypatch):
    monkeypatch.setattr(accounts, "hasher", PasswordHasher())
    accounts.change_password(database, ann, PASSWORD, "as outside")
    verified = []
    verify = PasswordHasher.verify
    monkeypatch.setattr(PasswordHasher, "verify", lambda *given: verified.append(given[1]) or verify(*given))
    messages = set()
    for name, password in [("ann", "wrong password"), ("nobody", "wrong password"), ("nobody", PASSWORD)]:
        with pytest.raises(NotAllowed) as caught:
            sign_in(database, name, password)
        messages.add(str(caught.value))
    assert len(messages) == 1
    # Once each, with the same cost: all parameters before the salt are equal.
    assert len(verified) == 3 and len({known.rsplit("$", 2)[0] for known in verified}) == 1


def test_another_password_ends_all_sign_ins(database, ann):
    token = sign_in(database, "ann", PASSWORD)
    with pytest.raises(NotAllowed, match="old password"):
        accounts.change_password(database, ann, "wrong password", "better horse")
    accounts.change_password(database, ann, PASSWORD, "better horse 马")
    assert who_signed_in(database, token) is None
    with pytest.raises(NotAllowed):
        sign_in(database, "ann", PASSWORD)
    assert sign_in(database, "ann", "better horse 马")


def test_a_lost_password_is_set_anew_with_a_link_that_works_once(database, ann):
    bob = accept(database, invitation(database, ann), "bob", PASSWORD)
    token = sign_in(database, "bob", PASSWORD)
    with database.writing(bob) as session:
        _, key = accounts.create_key(session, "k")
    with database.writing(ann) as session:
        stale = accounts.reset_link(session, bob)
    with database.writing(ann) as session:
        link = accounts.reset_link(session, bob)
    with pytest.raises(NotFound, match="was used"):
        accounts.reset_password(database, stale, "better horse")
    with pytest.raises(ChatwrightError, match="8 to 1024"):
        accounts.reset_password(database, link, "short")
    assert accounts.reset_password(database, link, "better horse") == "bob"
    assert who_signed_in(database, token) is None and whose_key(database, key) == bob
    assert who_signed_in(database, sign_in(database, "bob", "better horse")) == bob
    for used in (link, "guess"):
        with pytest.raises(NotFound, match="was used"):
            accounts.reset_password(database, used, "worse horse")
    with database.reading() as session:
        lines = session.scalars(select(Journal).where(Journal.subject_id == bob).order_by(Journal.id)).all()
        told = [(line.action, line.kind, line.actor_id, line.fields) for line in lines[1:]]
    link_made = ("added", "password_resets", ann, {"made_by": str(ann)})
    assert told[:3] == [link_made, ("removed", "password_resets", ann, {}), link_made]
    assert sorted(told[3:]) == [
        ("changed", "users", None, {"password_hash": None}), ("removed", "password_resets", None, {})
    ]  # fmt: skip


def test_a_link_for_a_password_ends_with_time_with_the_password_and_with_the_right_to_make_it(database, ann):
    admin, bob = person(database, "admin", "admin"), accept(database, invitation(database, ann), "bob", PASSWORD)

    def made(maker):
        with database.writing(maker) as session:
            return accounts.reset_link(session, bob)

    def change(act, *arguments):
        with database.writing(ann) as session:
            act(session, *arguments)

    link = made(ann)
    with database.writing() as session:
        session.get(PasswordReset, bob).expires_at = now()
    with pytest.raises(NotFound):
        accounts.reset_password(database, link, "better horse")
    link = made(ann)
    accounts.change_password(database, bob, PASSWORD, "my horse")
    with pytest.raises(NotFound):
        accounts.reset_password(database, link, "better horse")
    for before, after in [
        ((accounts.change_role, bob, "owner"), (accounts.change_role, bob, "user")),
        ((accounts.change_role, admin, "user"), (accounts.change_role, admin, "admin")),
        ((accounts.set_active, admin, False), (accounts.set_active, admin, True)),
        ((accounts.set_active, bob, False), (accounts.set_active, bob, True)),
    ]:
        link = made(admin)
        change(*before)
        with pytest.raises(NotFound):
            accounts.reset_password(database, link, "better horse")
        change(*after)
        assert accounts.reset_password(database, link, "better horse") == "bob"


def test_a_key_is_shown_once_and_can_be_revoked(database, ann):
    with database.writing(ann) as session:
        kept, key = accounts.create_key(session, "my script")
    assert whose_key(database, key) == ann and key.startswith(kept.prefix)
    assert whose_key(database, key[:-1]) is None and whose_key(database, kept.prefix) is None
    with pytest.raises(NotFound), database.writing(person(database, "bob")) as session:
        accounts.revoke_key(session, kept.id)
    with database.writing(ann) as session:
        accounts.revoke_key(session, kept.id)
        assert [one.revoked_at is not None for one in accounts.keys(session)] == [True]
    assert whose_key(database, key) is None


def test_no_secret_is_kept(database, ann):
    with database.writing(ann) as session:
        secrets = [PASSWORD, accounts.create_key(session, "k")[1], invite(session, "user")]
        secrets.append(accounts.reset_link(session, ann))
    secrets.append(sign_in(database, "ann", PASSWORD))
    with database.reading() as session:
        kept = str([session.execute(select(table)).all() for table in Base.metadata.sorted_tables])
    assert [secret for secret in secrets if secret in kept] == []
    assert "$argon2id$" in kept


def test_a_closed_account_is_shut_out_and_opens_again(database, ann):
    bob = person(database, "bob")
    with database.writing(bob) as session:
        conversation, _ = talk(session, "hello")
        _, key = accounts.create_key(session, "k")
    with database.writing(ann) as session:
        accounts.set_active(session, bob, False)
    assert whose_key(database, key) is None
    with pytest.raises(NotAllowed), database.reading(bob) as session:
        conversations.read(session, conversation)
    with database.writing(ann) as session:
        accounts.set_active(session, bob, True)
    assert whose_key(database, key) == bob


# Who may do what to an account of which role: inviting one, giving one that role, closing one, a link for its password.
EXTENT = {"owner": ROLES, "admin": ("annotator", "user"), "annotator": (), "user": ()}


@pytest.mark.parametrize("role", ROLES)
def test_a_role_extends_as_far_as_it_should(database, role):
    actor = person(database, "actor", role)
    for target in ROLES:
        subject = person(database, f"a {target}", target)
        for act in [
            lambda session, target=target: invite(session, target),
            lambda session, target=target: accounts.change_role(session, person_of(session, "plain"), target),
            lambda session, subject=subject: accounts.change_role(session, subject, "user"),
            lambda session, subject=subject: accounts.set_active(session, subject, False),
            lambda session, subject=subject: accounts.reset_link(session, subject),
        ]:
            plain = person(database, "plain")
            if target == "owner":
                spare = person(database, "spare", "owner")
            try:
                with database.writing(actor) as session:
                    act(session)
                    session.rollback()
                allowed = True
            except NotAllowed:
                allowed = False
            assert allowed == (target in EXTENT[role]), (role, target)
            with database.writing() as session:
                session.delete(session.get(User, plain))
                if target == "owner":
                    session.delete(session.get(User, spare))
    for look in (accounts.users, accounts.journal):
        if EXTENT[role]:
            with database.reading(actor) as session:
                assert look(session)
        else:
            with pytest.raises(NotAllowed), database.reading(actor) as session:
                look(session)


def person_of(session, name):
    return session.scalar(select(User.id).where(User.name == name))


def test_the_last_owner_stays(database, ann):
    for act in [
        lambda session: accounts.change_role(session, ann, "user"),
        lambda session: accounts.set_active(session, ann, False),
        accounts.delete_account,
    ]:
        with pytest.raises(Conflict, match="last owner"), database.writing(ann) as session:
            act(session)
    second = person(database, "second", "owner")
    with database.writing(ann) as session:
        accounts.set_active(session, second, False)  # An owner who cannot come in does not count.
        with pytest.raises(Conflict):
            accounts.change_role(session, ann, "user")
        accounts.set_active(session, second, True)
        accounts.change_role(session, ann, "user")
        assert session.actor.role == "user"


def test_an_account_goes_with_everything_that_is_its_owners(database, ann):
    bob = person(database, "bob")
    with database.writing(bob) as session:
        file = conversations.upload(session, b"\x89PNG", "image/png")
        conversation, keys = talk(session, *["more"] * 2)
        picture = [conversations.Content("image", sha256=file.sha256)]
        conversations.add(session, conversation, uuid4(), keys[-1], "user", picture)
        accounts.create_key(session, "k")
    with database.writing(ann) as session:
        talk(session, "ann's own")
    with database.writing(bob) as session:
        accounts.delete_account(session)
    with database.reading() as session:
        left = [session.scalar(select(func.count()).select_from(kind)) for kind in (User, Conversation, ApiKey, File)]
        assert left == [1, 1, 0, 0]
        assert session.scalar(select(func.count()).select_from(Evaluation)) == 0
        last = session.scalars(select(Journal).order_by(Journal.id.desc())).first()
        assert (last.action, last.kind, last.subject_id, last.actor_id) == ("removed", "users", bob, bob)
        assert session.scalars(text("SELECT text FROM parts")).all() == ["ann's own"]
