"""Conversations and judgements: trees, resending, searching, deleting, and that everything is its owner's alone."""

import hashlib
import inspect
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from uuid import uuid4

import PIL.Image
import pytest
from sqlalchemy import func, select
from tests.feedback.people import ORIGIN, person, talk, text

from chatwright.data.records import Demonstration, Part, Prompt
from chatwright.data.store import load, save
from chatwright.errors import ChatwrightError
from chatwright.feedback import accounts, conversations, evaluations
from chatwright.feedback.conversations import Content
from chatwright.feedback.database import Conflict, NotAllowed, NotFound, Transaction
from chatwright.feedback.tables import Base, Evaluation, Journal, Message
from chatwright.feedback.tables import Part as StoredPart

PNG = Part.of_image(PIL.Image.new("RGB", (4, 4), "red")).media


@pytest.fixture
def ann(database):
    return person(database, "ann")


def texts(messages):
    return [message.text for message in messages]


def test_a_conversation_is_a_tree(database, ann):
    with database.writing(ann) as session:
        conversation, (dogs, three) = talk(session, "How many dogs?", "three")
        other = conversations.add(session, conversation, uuid4(), dogs, "assistant", text("four"), ORIGIN)
        cats = conversations.edit(session, dogs, uuid4(), text("How many cats?"))
        two = conversations.add(session, conversation, uuid4(), cats.id, "assistant", text("two"), ORIGIN)
    with database.reading(ann) as session:
        assert texts(conversations.read(session, conversation)) == [
            "How many dogs?",
            "three",
            "four",
            "How many cats?",
            "two",
        ]
        assert texts(conversations.path(session, other.id)) == ["How many dogs?", "four"]
        assert texts(conversations.path(session, two.id)) == ["How many cats?", "two"]
        assert texts(conversations.branches(session, three)) == ["three", "four"]
        assert texts(conversations.branches(session, dogs)) == ["How many dogs?", "How many cats?"]
        answer = conversations.path(session, three)[-1]
        assert {name: getattr(answer, name) for name in vars(ORIGIN)} == vars(ORIGIN)


def test_sending_again_is_not_a_second_message(database, ann):
    conversation, key = uuid4(), uuid4()
    for _ in range(2):
        with database.writing(ann) as session:
            conversations.create(session, conversation, "a talk")
        with database.writing(ann) as session:
            conversations.add(session, conversation, key, None, "user", text("How many dogs?"))
    with database.writing(ann) as session:
        assert len(conversations.read(session, conversation)) == len(conversations.listed(session)) == 1
        with pytest.raises(Conflict):
            conversations.add(session, conversation, key, None, "user", text("How many cats?"))
        with pytest.raises(Conflict):
            conversations.add(session, talk(session, "elsewhere")[0], key, None, "user", text("How many dogs?"))


def test_sent_by_many_at_once_it_is_one_message(database, ann):
    conversation, key = uuid4(), uuid4()

    def send(_):
        with database.writing(ann) as session:
            conversations.create(session, conversation, "a talk")
            file = conversations.upload(session, PNG, "image/png")
            content = [Content("image", sha256=file.sha256)]
            return conversations.add(session, conversation, key, None, "user", content).number

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(send, range(16))) == [1] * 16


def test_what_makes_no_sense_is_refused_with_its_remedy(database, ann):
    with database.writing(ann) as session:
        conversation, (asked, answer) = talk(session, "How many dogs?", "three")
        elsewhere = talk(session, "hello")[1][0]
    for parent, role, content, origin, error in [
        (asked, "user", text("two questions"), None, "cannot follow user"),
        (None, "assistant", text("unasked"), ORIGIN, "cannot follow nothing"),
        (answer, "system", text("be kind"), None, "cannot follow assistant"),
        (answer, "robot", text("beep"), None, "cannot follow"),
        (answer, "user", text(" \n"), None, "says nothing"),
        (answer, "user", [], None, "says nothing"),
        (answer, "user", text("forged"), ORIGIN, "origin"),
        (asked, "assistant", text("forged"), None, "origin"),
        (elsewhere, "assistant", text("hi"), ORIGIN, "in this conversation"),
        (uuid4(), "user", text("hi"), None, "in this conversation"),
        (answer, "user", [Content("image", sha256="0" * 64)], None, "upload it"),
    ]:
        with pytest.raises(ChatwrightError, match=error), database.writing(ann) as session:
            conversations.add(session, conversation, uuid4(), parent, role, content, origin)
    for act, error in [
        (lambda session: conversations.edit(session, answer, uuid4(), text("forged")), "stays as it is"),
        (lambda session: evaluations.thumb(session, asked, True), "its answers"),
        (lambda session: evaluations.thumb(session, answer, True, ["wrong"]), "use correct"),
        (lambda session: evaluations.correct(session, answer, " "), "says nothing"),
        (lambda session: evaluations.compare(session, answer, answer, "tie"), "same message"),
        (lambda session: evaluations.compare(session, answer, answer, "best"), "not known"),
    ]:
        with pytest.raises(ChatwrightError, match=error), database.writing(ann) as session:
            act(session)


def test_search_finds_titles_and_texts_in_any_case_and_language(database, ann):
    with database.writing(ann) as session:
        talk(session, "图片里有几只狗？", title="Dogs")
        talk(session, "Où est l'ÉTÉ ?", "100% _here_", title="Seasons")
    for words, found in [
        ("dOGS", ["Dogs"]),
        ("几只狗", ["Dogs"]),
        ("été", ["Seasons"]),
        ("0% _", ["Seasons"]),
        ("0%h", []),
        ("", ["Seasons", "Dogs"]),
    ]:
        with database.reading(ann) as session:
            assert [one.title for one in conversations.search(session, words)] == found, words
    with pytest.raises(ChatwrightError), database.reading(ann) as session:
        conversations.search(session, "\0")


def test_the_latest_to_be_spoken_in_comes_first(database, ann):
    with database.writing(ann) as session:
        first, _ = talk(session, "hello", title="first")
    with database.writing(ann) as session:
        talk(session, "hello", title="second")
    with database.writing(ann) as session:
        assert [one.title for one in conversations.listed(session)] == ["second", "first"]
        conversations.add(session, first, uuid4(), None, "user", text("again"))
        assert [one.title for one in conversations.listed(session)] == ["first", "second"]
        assert [one.title for one in conversations.listed(session, limit=1, offset=1)] == ["second"]


def test_deleting_takes_messages_judgements_and_pictures_that_stand_nowhere_else(database, ann):
    with database.writing(ann) as session:
        kept, gone = (conversations.upload(session, data, "image/png") for data in (PNG, PNG + b"2"))
        conversation, (_, answer) = talk(session, "hello", "hi")
        pictures = [Content("image", sha256=file.sha256) for file in (kept, gone)]
        conversations.add(session, conversation, uuid4(), answer, "user", pictures)
        evaluations.correct(session, answer, "Hello!")
        other, _ = talk(session, "stays", "yes")
        conversations.add(session, other, uuid4(), None, "user", pictures[:1])
        with pytest.raises(Conflict, match="delete the conversation"):
            conversations.delete_file(session, kept.id)
        conversations.delete(session, conversation)
        assert [file.id for file in conversations.files(session)] == [kept.id]
        assert session.scalar(select(func.count()).select_from(Evaluation)) == 0
        assert session.scalar(select(func.count()).select_from(StoredPart)) == 3
        assert texts(conversations.read(session, other)) == ["stays", "yes", ""]
        conversations.delete(session, other)
        free = conversations.upload(session, b"free", "audio/wav")
        conversations.delete_file(session, free.id)
        assert conversations.files(session) == []


def test_a_conversation_of_any_length_can_be_read_and_deleted(database, ann):
    with database.writing(ann) as session:
        conversation = conversations.create(session, uuid4(), "long").id
        keys = [None, *(uuid4() for _ in range(1100))]  # SQLite cascades through no more than 1,000 rows
        for number, (parent, key) in enumerate(pairwise(keys), 1):
            place = {"id": key, "conversation_id": conversation, "parent_id": parent, "number": number}
            session.add(Message(**place, role="user", content=[StoredPart(place=0, type="text", text="more")]))
    with database.writing(ann) as session:
        assert [message.id for message in conversations.path(session, keys[-1])] == keys[1:]
        conversations.delete(session, conversation)
        assert session.scalar(select(func.count()).select_from(StoredPart)) == 0


def test_an_opinion_given_again_takes_the_place_of_the_former(database, ann):
    with database.writing(ann) as session:
        conversation, (asked, answer) = talk(session, "How many dogs?", "three")
        other = conversations.add(session, conversation, uuid4(), asked, "assistant", text("four"), ORIGIN).id
        for good, reasons in [(True, ["helpful", "correct"]), (False, ["wrong"]), (False, ["wrong"])]:
            evaluations.thumb(session, answer, good, reasons, "hm")
        evaluations.compare(session, answer, other, "first")
        compared = evaluations.compare(session, other, answer, "neither")
        evaluations.correct(session, answer, "thirty")
        evaluations.correct(session, answer, "three dogs")
    with database.writing(ann) as session:
        thumb, comparison, correction = evaluations.given(session, conversation)
        assert (thumb.good, thumb.reasons, thumb.comment) == (False, ["wrong"], "hm")
        assert (comparison.message_id, comparison.other_id, comparison.verdict) == (other, answer, "neither")
        assert correction.text == "three dogs"
        evaluations.withdraw(session, compared.id)
        assert [one.kind for one in evaluations.given(session, conversation)] == ["thumb", "correction"]


def test_ones_own_data_come_as_records(database, ann, tmp_path):
    with database.writing(ann) as session:
        picture = conversations.upload(session, PNG, "image/png")
        conversation, (asked, answer) = talk(session, "How many dogs? 几只？", "three")
        content = [Content("image", sha256=picture.sha256), Content("text", "And here?")]
        conversations.add(session, conversation, uuid4(), answer, "user", content)
        evaluations.thumb(session, answer, False, ["wrong"], "There are four.")
        conversations.edit(session, asked, uuid4(), text("unanswered"))
    with database.writing(person(database, "bob")) as session:
        talk(session, "not ann's")
    with database.reading(ann) as session:
        save(conversations.export(session), tmp_path / "mine.jsonl")
    answered, unanswered = load(tmp_path / "mine.jsonl", Prompt)
    assert unanswered.messages[0].text == "unanswered"
    assert answered.reference == "three"
    (tmp_path / "line.jsonl").write_text((tmp_path / "mine.jsonl").read_text().splitlines()[0])
    whole = load(tmp_path / "line.jsonl", Demonstration)[0]
    assert [turn.text for turn in whole.messages] == ["How many dogs? 几只？", "three", "And here?"]
    assert whole.messages[2].content[0] == Part("image", media=PNG)
    told = whole.meta["messages"][1]
    assert (told["model"], told["checkpoint"], told["finish_reason"]) == ("tiny", "a" * 64, "stop")
    assert told["evaluations"][0]["comment"] == "There are four." and whole.meta["title"] == "a talk"


# ---- whose things are whose

# Every operation, applied to ann's things; None where it takes nobody's thing and so shows or makes one's own.
OPERATIONS = {
    "upload": lambda session, ann: conversations.upload(session, PNG, "image/png").id != ann["file"],
    "files": lambda session, ann: not conversations.files(session),
    "download": lambda session, ann: conversations.download(session, ann["file"]),
    "delete_file": lambda session, ann: conversations.delete_file(session, ann["file"]),
    "create": lambda session, ann: conversations.create(session, ann["conversation"], "mine"),
    "listed": lambda session, ann: not conversations.listed(session),
    "search": lambda session, ann: not conversations.search(session, "dogs"),
    "spoken_at": lambda session, ann: not conversations.spoken_at(session, [ann["conversation"]]),
    "answered": lambda session, ann: not conversations.answered(session),
    "file_of": lambda session, ann: conversations.file_of(session, hashlib.sha256(PNG).hexdigest()),
    "rename": lambda session, ann: conversations.rename(session, ann["conversation"], "mine"),
    "delete": lambda session, ann: conversations.delete(session, ann["conversation"]),
    "add": lambda session, ann: conversations.add(
        session, ann["conversation"], uuid4(), ann["answer"], "user", text("me too")
    ),
    "edit": lambda session, ann: conversations.edit(session, ann["asked"], uuid4(), text("me too")),
    "read": lambda session, ann: conversations.read(session, ann["conversation"]),
    "path": lambda session, ann: conversations.path(session, ann["answer"]),
    "branches": lambda session, ann: conversations.branches(session, ann["answer"]),
    "export": lambda session, ann: not list(conversations.export(session)),
    "thumb": lambda session, ann: evaluations.thumb(session, ann["answer"], True),
    "correct": lambda session, ann: evaluations.correct(session, ann["answer"], "no"),
    "compare": lambda session, ann: evaluations.compare(session, ann["answer"], ann["other"], "tie"),
    "withdraw": lambda session, ann: evaluations.withdraw(session, ann["thumb"]),
    "withdraw_from": lambda session, ann: evaluations.withdraw_from(session, ann["answer"], "thumb"),
    "given": lambda session, ann: evaluations.given(session, ann["conversation"]),
    "create_key": lambda session, ann: accounts.create_key(session, "mine")[0].id != ann["key"],
    "keys": lambda session, ann: not accounts.keys(session),
    "revoke_key": lambda session, ann: accounts.revoke_key(session, ann["key"]),
    "set_consent": lambda session, ann: accounts.set_consent(session, True) is None,
    "sign_out": lambda session, ann: accounts.sign_out(session, ann["token"]) is None,
    "delete_account": lambda session, ann: accounts.delete_account(session) is None,
}
OWN = {"upload", "files", "listed", "search", "export", "create_key", "keys", "set_consent", "sign_out"}
OWN |= {"delete_account", "spoken_at", "answered"}
# Theirs is the role to check, not the owner; see test_accounts.py.
BY_ROLE = {"invite", "users", "change_role", "set_active", "reset_link", "journal"}


def test_every_operation_is_in_the_list():
    public = {
        name
        for module in (conversations, evaluations, accounts)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
        if next(iter(inspect.signature(function).parameters.values())).annotation is Transaction
    }
    assert public == OPERATIONS.keys() | BY_ROLE


def test_nobody_else_touches_or_sees_what_is_anns_and_the_journal_knows_every_change(database, ann):
    with database.writing(ann) as session:
        conversation, (asked, answer) = talk(session, "How many dogs?", "three")
        other = conversations.add(session, conversation, uuid4(), asked, "assistant", text("four"), ORIGIN).id
        things = {"conversation": conversation, "asked": asked, "answer": answer, "other": other}
        things["file"] = conversations.upload(session, PNG, "image/png").id
        things["thumb"] = evaluations.thumb(session, answer, False).id
        things["key"], things["token"] = accounts.create_key(session, "ann's")[0].id, "none"
    anns = everything(database, ann)
    for role in ("user", "annotator", "admin", "owner"):
        stranger = person(database, role, role)
        if role == "owner":
            person(database, "spare", "owner")
        for name, act in OPERATIONS.items():
            if name in OWN:
                with database.writing(stranger) as session:
                    assert act(session, things), name
                    session.rollback()
            else:
                with pytest.raises(NotFound if name != "create" else Conflict), database.writing(stranger) as session:
                    act(session, things)
        assert everything(database, ann) == anns
    closed = person(database, "closed")
    with database.writing() as session:
        session.get(accounts.User, closed).active = False
    for who in (None, closed, uuid4()):
        for name, act in OPERATIONS.items():
            with pytest.raises(NotAllowed), database.writing(who) as session:
                act(session, things)
                raise AssertionError(name)
    assert everything(database, ann) == anns
    # And ann herself may do it all, a line in the journal for each change.
    looks = {"files", "download", "listed", "search", "read", "path", "branches", "export", "given", "keys"}
    looks |= {"spoken_at", "answered", "file_of"}
    same = {"upload", "create", "sign_out"}  # It is there already, or there is nothing to do.
    count = select(func.count()).select_from(Journal)
    for name, act in OPERATIONS.items():
        with database.writing(ann) as session:
            before = session.scalar(count)
            act(session, things)
            session.flush()
            assert (session.scalar(count) > before) == (name not in looks | same), name
            lines = session.scalars(select(Journal).order_by(Journal.id).offset(before)).all()
            assert {line.actor_id for line in lines} <= {ann}
            session.rollback()


def everything(database, who):
    """All rows but the journal's, of accounts that were there before."""
    with database.reading() as session:
        tables = [table for table in Base.metadata.sorted_tables if table.name not in ("journal", "users")]
        return [session.execute(select(table)).all() for table in tables]
