"""What people have written and judged as records to train on, of those who agreed to it and of nobody else.

Both who wrote a conversation and who judged it must agree. People are named by their pseudonym. Texts are as they were
written: what somebody tells about themselves in a message stands in it.
"""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from chatwright.data import records
from chatwright.data.records import Comparison, Demonstration, Prompt
from chatwright.feedback.conversations import ancestry, records_of
from chatwright.feedback.tables import Conversation, Evaluation, Message, User

RANKS = {"first": (0, 1), "second": (1, 0), "tie": (0, 0), "neither": (0, 0)}


def demonstrations(session: Session) -> Iterator[Demonstration]:
    """Corrections: the conversation up to the answer, then what it should have been. Only that is to be learned: the
    answers before it are the model's own."""
    for evaluation, judge in _evaluations(session, "correction"):
        corrected = records.Message.of("assistant", evaluation.text or "")
        meta = {**_meta(session, evaluation, judge), "learn": "last"}
        yield Demonstration((*_prompt(session, evaluation), corrected), meta)


def comparisons(session: Session) -> Iterator[Comparison]:
    """Pairs of answers in the order in which they were shown. Two bad ones are a tie; ``meta["verdict"]`` says so."""
    for evaluation, judge in _evaluations(session, "comparison"):
        meta = {**_meta(session, evaluation, judge), "verdict": evaluation.verdict}
        ranks = RANKS[evaluation.verdict or "tie"]
        yield Comparison(
            _prompt(session, evaluation), _texts(session, evaluation), ranks, judge.pseudonym, "pair", meta
        )


def labelled(session: Session) -> Iterator[Comparison]:
    """Thumbs: single answers, of rank 0 if good and 1 if bad, as kto learns from them."""
    for evaluation, judge in _evaluations(session, "thumb"):
        told = {"reasons": evaluation.reasons, "comment": evaluation.comment}
        meta = {**_meta(session, evaluation, judge), **told}
        ranks = (0 if evaluation.good else 1,)
        yield Comparison(
            _prompt(session, evaluation), _texts(session, evaluation), ranks, judge.pseudonym, "label", meta
        )


def prompts(session: Session) -> Iterator[Prompt]:
    """What people asked, judged or not: the conversation up to each of their messages."""
    asked = select(Message.id, Message.conversation_id).join(Conversation).join(User, User.id == Conversation.owner_id)
    asked = asked.where(User.consent, Message.role == "user")
    for key, conversation in session.execute(asked.order_by(Message.conversation_id, Message.number)).all():
        yield Prompt(records_of(ancestry(session, key)), meta={"conversation": str(conversation)})


def _evaluations(session: Session, kind: str) -> Iterator[tuple[Evaluation, User]]:
    judge, writer = aliased(User), aliased(User)
    query = (
        select(Evaluation, judge)
        .join(judge, judge.id == Evaluation.owner_id)
        .join(Message, Message.id == Evaluation.message_id)
        .join(Conversation, Conversation.id == Message.conversation_id)
        .join(writer, writer.id == Conversation.owner_id)
        .where(Evaluation.kind == kind, judge.consent, writer.consent)
        .order_by(Evaluation.created_at, Evaluation.id)
    )
    yield from session.execute(query).all()


def _prompt(session: Session, evaluation: Evaluation) -> tuple[records.Message, ...]:
    return records_of(ancestry(session, evaluation.prompt_id))


def _answers(session: Session, evaluation: Evaluation) -> list[Message]:
    """The answers that are judged, in the order in which they were shown."""
    keys = [key for key in (evaluation.message_id, evaluation.other_id) if key]
    return [session.get_one(Message, key) for key in keys]


def _texts(session: Session, evaluation: Evaluation) -> tuple[str, ...]:
    return tuple(answer.text for answer in _answers(session, evaluation))


def _meta(session: Session, evaluation: Evaluation, judge: User) -> dict[str, Any]:
    """Which model answered and how, who judged and when; ``finished``: whether each answer came to its end."""
    answers = _answers(session, evaluation)
    return {
        "conversation": str(answers[0].conversation_id),
        "models": [answer.model for answer in answers],
        "checkpoints": [answer.checkpoint for answer in answers],
        "sampling": [answer.sampling for answer in answers],
        "finished": [answer.finish_reason == "stop" for answer in answers],
        "at": evaluation.changed_at.isoformat(),
        "annotator": judge.pseudonym,
        "role": judge.role,
    }
