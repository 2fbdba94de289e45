"""Accounts: passwords, links that make accounts or set passwords, roles, sign-ins and API keys.

Secrets are 256 random bits, of which only SHA-256 is kept: what cannot be guessed needs no slow hash, and a look-up by
hash tells nothing through the time it takes, since nobody can choose how a hash begins. Passwords are kept by argon2,
which takes its time on purpose; functions that need it take the `Database` and do it before they hold a transaction.
"""

import hashlib
import secrets
import unicodedata
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError
from sqlalchemy import Select, delete, exists, select

from chatwright.errors import ChatwrightError
from chatwright.feedback.database import Conflict, Database, NotAllowed, NotFound, Transaction
from chatwright.feedback.tables import ROLES, ApiKey, Conversation, Journal, Link, PasswordReset, SignIn, User, now

FIRST_OWNER_LINK = timedelta(days=1)
INVITATION = timedelta(days=7)
RESET = timedelta(days=1)
SIGN_IN = timedelta(days=30)
PASSWORD = range(8, 1025)  # characters
KEY = "cw-"

USED = "this link was used, has expired or never was; ask for a new one"

# Whom a role may invite, and whose role, access and password it may change.
RULES = {"owner": ROLES, "admin": ("annotator", "user")}

hasher = PasswordHasher()
# What is compared with when nobody has the name that was given, so that this takes as long.
NOBODY = hasher.hash(secrets.token_urlsafe())


# ---- making accounts


def first_owner_link(database: Database) -> str | None:
    """The secret of a link that makes the first owner, to be printed where only who runs the server sees it; None when
    there is an owner. It takes the place of any such link before it."""
    with database.writing() as session:
        if session.scalar(select(exists().where(User.role == "owner"))):
            return None
        for link in session.scalars(select(Link).where(Link.made_by.is_(None))):
            session.delete(link)
        session.flush()
        return _link(session, "owner", None, FIRST_OWNER_LINK)


def invite(session: Transaction, role: str) -> str:
    """The secret of a link with which one person can make an account.

    Raises:
        NotAllowed: the actor's role does not extend to that.
    """
    actor = session.require(*RULES)
    if role not in RULES[actor.role]:
        raise NotAllowed(f"an {actor.role} can invite {' and '.join(RULES[actor.role])}; ask an owner")
    return _link(session, role, actor.id, INVITATION)


def _link(session: Transaction, role: str, made_by: UUID | None, lasts: timedelta) -> str:
    secret = secrets.token_urlsafe(32)
    session.add(Link(token_hash=hash_of(secret), role=role, made_by=made_by, expires_at=now() + lasts))
    return secret


def accept(database: Database, secret: str, name: str, password: str) -> UUID:
    """Make the account that a link is for; the link works once.

    Raises:
        NotFound: the link is not known, used or expired.
        Conflict: the name is taken.
        ChatwrightError: the name or the password will not do.
    """
    name, hashed = plain_name(name), _hash(password)
    with database.writing() as session:
        link = session.scalar(select(Link).where(Link.token_hash == hash_of(secret)).with_for_update())
        if link is None or link.expires_at <= now():
            raise NotFound(USED)
        if session.scalar(select(exists().where(User.name == name))):
            raise Conflict(f"the name {name} is taken; choose another one")
        user = User(name=name, password_hash=hashed, role=link.role, pseudonym=f"annotator-{secrets.token_hex(6)}")
        session.add(user)
        session.delete(link)
        session.flush()
        return user.id


def plain_name(name: str) -> str:
    """A name as it is kept: the same however it is typed.

    Raises:
        ChatwrightError: it is empty, too long or not one line of text.
    """
    name = _folded(name)
    if not 1 <= len(name) <= 64 or not name.isprintable():
        raise ChatwrightError("a name has 1 to 64 characters that can be seen; choose another one")
    return name


# ---- signing in


def sign_in(database: Database, name: str, password: str) -> str:
    """The token of a new sign-in.

    Raises:
        NotAllowed: wrong name or password, or a closed account; it does not tell which, nor does the time it takes.
    """
    with database.reading() as session:
        user = session.scalar(select(User).where(User.name == _folded(name)))
    right = _verify(user.password_hash if user else NOBODY, password)
    if user is None or not right or not user.active:
        raise NotAllowed("the name or the password is wrong; try again")
    token = secrets.token_urlsafe(32)
    with database.writing(user.id) as session:
        session.execute(delete(SignIn).where(SignIn.expires_at <= now()))
        session.add(SignIn(token_hash=hash_of(token), owner_id=session.actor.id, expires_at=now() + SIGN_IN))
    return token


def sign_out(session: Transaction, token: str) -> None:
    """End a sign-in of the actor; nothing happens if it has ended."""
    query = select(SignIn).where(SignIn.token_hash == hash_of(token), SignIn.owner_id == session.actor.id)
    if found := session.scalar(query):
        session.delete(found)


def who_signed_in(database: Database, token: str) -> UUID | None:
    """The id of the account that a token stands for, None when it is not known, expired or the account is closed."""
    query = select(User.id).join(SignIn, SignIn.owner_id == User.id)
    return _who(database, query.where(SignIn.token_hash == hash_of(token), SignIn.expires_at > now(), User.active))


def change_password(database: Database, person: UUID, old: str, new: str) -> None:
    """Set another password; all sign-ins end.

    Raises:
        NotAllowed: the old one is wrong.
    """
    with database.reading(person) as session:
        known = session.actor.password_hash
    if not _verify(known, old):
        raise NotAllowed("the old password is wrong; try again")
    hashed = _hash(new)
    with database.writing(person) as session:
        _set_password(session, session.actor, hashed)


def reset_password(database: Database, secret: str, new: str) -> str:
    """Set another password with a link of `reset_link`, which works once; all sign-ins end. Gives the account's name.

    Raises:
        NotFound: the link is not known, used or expired, or who made it may not change this account any more.
        ChatwrightError: the password will not do.
    """
    hashed = _hash(new)
    with database.writing() as session:
        link = session.scalar(
            select(PasswordReset).where(PasswordReset.token_hash == hash_of(secret)).with_for_update()
        )
        if link is None or link.expires_at <= now():
            raise NotFound(USED)
        user, maker = session.get_one(User, link.id), session.get_one(User, link.made_by)
        # Roles may have changed since: nobody gets into the account of a new owner with a link for a user.
        if not (user.active and maker.active and user.role in RULES.get(maker.role, ())):
            raise NotFound(USED)
        _set_password(session, user, hashed)
        return user.name


def _set_password(session: Transaction, user: User, hashed: str) -> None:
    user.password_hash = hashed
    _end_sign_ins(session, user.id)
    _end_reset(session, user.id)


def _end_reset(session: Transaction, person: UUID) -> None:
    if link := session.get(PasswordReset, person):
        session.delete(link)
        session.flush()


def _end_sign_ins(session: Transaction, person: UUID) -> None:
    for found in session.scalars(select(SignIn).where(SignIn.owner_id == person)):
        session.delete(found)


# ---- API keys


def create_key(session: Transaction, name: str) -> tuple[ApiKey, str]:
    """A new API key of the actor: what is kept of it, and the key itself, which nobody can see again."""
    key = KEY + secrets.token_urlsafe(32)
    kept = ApiKey(owner_id=session.actor.id, name=plain_name(name), prefix=key[:9], key_hash=hash_of(key))
    session.add(kept)
    session.flush()
    return kept, key


def keys(session: Transaction) -> Sequence[ApiKey]:
    """The actor's keys, revoked ones too, the newest first."""
    query = select(ApiKey).where(ApiKey.owner_id == session.actor.id)
    return session.scalars(query.order_by(ApiKey.created_at.desc())).all()


def revoke_key(session: Transaction, key: UUID) -> None:
    """End one of the actor's keys."""
    found = session.own(ApiKey, key)
    found.revoked_at = found.revoked_at or now()


def whose_key(database: Database, key: str) -> UUID | None:
    """The id of the account that a key stands for, None when it is not known, revoked or the account is closed."""
    query = select(User.id).join(ApiKey, ApiKey.owner_id == User.id)
    return _who(database, query.where(ApiKey.key_hash == hash_of(key), ApiKey.revoked_at.is_(None), User.active))


# ---- one's own account


def set_consent(session: Transaction, consent: bool) -> None:
    """Say whether what one writes and judges, before and after, may be used for training."""
    session.actor.consent = consent


def delete_account(session: Transaction) -> None:
    """Remove the actor and everything that is theirs; the journal keeps their id and no more.

    Raises:
        Conflict: the last owner cannot go.
    """
    _keep_an_owner(session, session.actor)
    # Messages before the files that stand in them.
    for conversation in session.scalars(select(Conversation).where(Conversation.owner_id == session.actor.id)):
        session.delete(conversation)
    session.flush()
    session.delete(session.actor)


# ---- others' accounts


def users(session: Transaction) -> Sequence[User]:
    """All accounts, by name; for owners and admins."""
    session.require(*RULES)
    return session.scalars(select(User).order_by(User.name)).all()


def change_role(session: Transaction, person: UUID, role: str) -> None:
    """Give an account another role.

    Raises:
        NotAllowed: the actor's role does not extend to that account or to that role.
        Conflict: it is the last owner.
    """
    user = _subject(session, person, role)
    if role != "owner":
        _keep_an_owner(session, user)
    user.role = role


def set_active(session: Transaction, person: UUID, active: bool) -> None:
    """Close an account, which ends its sign-ins and stops its keys, or open it again; nothing of it is lost."""
    user = _subject(session, person)
    if not active:
        _keep_an_owner(session, user)
        _end_sign_ins(session, person)
    user.active = active


def reset_link(session: Transaction, person: UUID) -> str:
    """The secret of a link with which somebody whose password is lost sets another one; it takes the place of any such
    link before it.

    Raises:
        NotAllowed: the actor's role does not extend to that account.
    """
    user = _subject(session, person)
    _end_reset(session, user.id)
    secret = secrets.token_urlsafe(32)
    expires = now() + RESET
    session.add(PasswordReset(id=user.id, token_hash=hash_of(secret), made_by=session.actor.id, expires_at=expires))
    return secret


def journal(session: Transaction, limit: int = 1000) -> Sequence[Journal]:
    """The latest lines of the journal, the newest first; for owners and admins."""
    session.require(*RULES)
    return session.scalars(select(Journal).order_by(Journal.id.desc()).limit(limit)).all()


def _subject(session: Transaction, person: UUID, role: str = "user") -> User:
    """The account that the actor changes."""
    may = RULES[session.require(*RULES).role]
    user = session.get(User, person, with_for_update=True)
    if user is None:
        raise NotFound("there is no such account; it may have been deleted")
    if user.role not in may or role not in may:
        raise NotAllowed(f"an {session.actor.role} can change {' and '.join(may)}; ask an owner")
    return user


def _keep_an_owner(session: Transaction, user: User) -> None:
    """Refuse to lose the last owner; owners are kept from other writers, so that two cannot leave at once."""
    owners = select(User.id).where(User.role == "owner", User.active).order_by(User.id).with_for_update()
    if session.scalars(owners).all() == [user.id]:
        raise Conflict("this is the last owner; make somebody else one first")


# ---- secrets


def hash_of(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def _who(database: Database, query: Select[UUID]) -> UUID | None:
    with database.reading() as session:
        return session.scalar(query)


def _normal(text: str) -> str:
    """The same text however a keyboard writes it (NIST SP 800-63B asks for NFKC or NFKD in passwords)."""
    return unicodedata.normalize("NFKC", text)


def _folded(name: str) -> str:
    return " ".join(_normal(name).casefold().split())


def _hash(password: str) -> str:
    if len(password) not in PASSWORD:
        raise ChatwrightError(f"a password has {PASSWORD.start} to {PASSWORD.stop - 1} characters; choose another one")
    return hasher.hash(_normal(password).encode(errors="surrogatepass"))


def _verify(hashed: str, password: str) -> bool:
    """Whether it is the password; argon2 compares in constant time."""
    try:  # One character more than can be set is enough to be wrong.
        return hasher.verify(hashed, _normal(password[: PASSWORD.stop]).encode(errors="surrogatepass"))
    except VerifyMismatchError:
        return False
