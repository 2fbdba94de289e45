"""What leaves the database for training: the right records, of those who agreed and of nobody else."""

from uuid import uuid4

import PIL.Image
import pytest
from tests.feedback.people import ORIGIN, person, talk, text

from chatwright.data.records import Part
from chatwright.feedback import accounts, conversations, evaluations, export
from chatwright.feedback.conversations import Content
from chatwright.feedback.tables import Evaluation, User

PNG = Part.of_image(PIL.Image.new("RGB", (4, 4), "red")).media


@pytest.fixture
def ann(database):
    """A person who agrees, with one opinion of each kind on an answer with a picture."""
    ann = person(database, "ann.smith@example.org", consent=True)
    with database.writing(ann) as session:
        conversation, (_, bad) = talk(session, "hello", "go away", title="private title")
        evaluations.thumb(session, bad, False, ["harmful"], "rude")
        picture = conversations.upload(session, PNG, "image/png")
        content = [Content("image", sha256=picture.sha256), Content("text", "What?")]
        asked = conversations.add(session, conversation, uuid4(), bad, "user", content).id
        cut = vars(ORIGIN) | {"finish_reason": "length"}
        first, second = (
            conversations.add(session, conversation, uuid4(), asked, "assistant", text(words), origin).id
            for words, origin in (("a dog", ORIGIN), ("a cat and", conversations.Origin(**cut)))
        )
        evaluations.compare(session, first, second, "second")
        evaluations.thumb(session, first, True)
        evaluations.correct(session, first, "a red square")
    return ann


def words(record):
    return [turn.text for turn in record.messages]


def everything(database):
    with database.reading() as session:
        kinds = (export.demonstrations, export.comparisons, export.labelled, export.prompts)
        return [list(kind(session)) for kind in kinds]


def test_feedback_becomes_records(database, ann):
    (demonstration,), (comparison,), (down, up), prompts = everything(database)
    asked = ["hello", "go away", "What?"]
    assert words(demonstration) == [*asked, "a red square"]
    assert demonstration.messages[2].content[0] == Part("image", media=PNG)
    assert demonstration.meta["learn"] == "last"  # not the rude answer before it
    assert (demonstration.meta["models"], demonstration.meta["checkpoints"]) == (["tiny"], ["a" * 64])
    assert demonstration.meta["at"].startswith("20") and demonstration.meta["role"] == "user"
    assert words(comparison) == asked
    assert (comparison.responses, comparison.ranks) == (("a dog", "a cat and"), (1, 0))
    assert comparison.how == "pair" and comparison.meta["finished"] == [True, False]
    assert (words(down), down.responses, down.ranks) == (["hello"], ("go away",), (1,))
    assert (words(up), up.responses, up.ranks, up.how) == (asked, ("a dog",), (0,), "label")
    assert (down.meta["reasons"], down.meta["comment"]) == (["harmful"], "rude")
    assert [words(prompt) for prompt in prompts] == [["hello"], asked]


def test_two_bad_answers_are_a_tie_that_says_so(database, ann):
    with database.writing(ann) as session:
        one = session.query(Evaluation).filter_by(kind="comparison").one()
        for verdict, ranks in [("neither", (0, 0)), ("tie", (0, 0)), ("first", (0, 1))]:
            evaluations.compare(session, one.message_id, one.other_id, verdict)
            (comparison,) = export.comparisons(session)
            assert (comparison.ranks, comparison.meta["verdict"]) == (ranks, verdict)


def test_nothing_leaves_without_consent(database, ann):
    bob = person(database, "bob")
    with database.writing(bob) as session:
        assert not session.actor.consent
        _, (asked, answer) = talk(session, "bob's question", "an answer")
        evaluations.thumb(session, answer, True)
        evaluations.correct(session, answer, "bob's correction")
        # One day annotators will judge what others were answered: both must agree.
        judged = {"owner_id": ann, "prompt_id": asked, "message_id": answer}
        session.add(Evaluation(**judged, kind="correction", text="ann's, of bob's"))
    before = everything(database)
    assert "bob" not in str(before) and [len(kind) for kind in before] == [1, 1, 2, 2]
    with database.writing(bob) as session:
        accounts.set_consent(session, True)
    assert [len(kind) for kind in everything(database)] == [3, 1, 3, 3]
    for who in (ann, bob):
        with database.writing(who) as session:
            accounts.set_consent(session, False)
    assert everything(database) == [[], [], [], []]


def test_people_are_named_by_pseudonym(database, ann):
    with database.writing() as session:
        session.get(User, ann).pseudonym = "annotator-7"
    records = everything(database)
    assert {record.annotator for record in records[1] + records[2]} == {"annotator-7"}
    assert {record.meta["annotator"] for kind in records[:3] for record in kind} == {"annotator-7"}
    assert not [part for part in ("smith", "example.org", str(ann), "private title") if part in str(records)]
