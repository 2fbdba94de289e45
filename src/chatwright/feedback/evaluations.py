"""What people think of answers: thumbs with reasons, corrections, and which of two is better.

Each is a person's one opinion of its kind on an answer: given again, it takes the place of the former, so that sending
one again changes nothing. People judge what was answered to themselves.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import or_, select

from chatwright.errors import ChatwrightError
from chatwright.feedback.database import Transaction
from chatwright.feedback.tables import REASONS, VERDICTS, Conversation, Evaluation, Message


def thumb(
    session: Transaction, message: UUID, good: bool, reasons: Sequence[str] = (), comment: str = ""
) -> Evaluation:
    """Say that an answer is good or bad, why (some of `REASONS`), and what else there is to say."""
    if unknown := set(reasons) - set(REASONS[good]):
        raise ChatwrightError(f"reason {min(unknown)!r} is not known; use {', '.join(REASONS[good])}")
    return _judge(session, message, None, "thumb", good=good, reasons=sorted(set(reasons)), comment=comment)


def correct(session: Transaction, message: UUID, text: str) -> Evaluation:
    """Write what an answer should have said."""
    if not text.strip():
        raise ChatwrightError("the correction says nothing; write what the answer should have been")
    return _judge(session, message, None, "correction", text=text)


def compare(session: Transaction, first: UUID, second: UUID, verdict: str) -> Evaluation:
    """Say which of two answers to the same message is better: first, second, tie or neither (both are bad).

    Args:
        first, second: in the order in which they were shown.
    """
    if verdict not in VERDICTS:
        raise ChatwrightError(f"verdict {verdict!r} is not known; use {', '.join(VERDICTS)}")
    return _judge(session, first, second, "comparison", verdict=verdict)


def withdraw(session: Transaction, evaluation: UUID) -> None:
    """Take an opinion back."""
    session.delete(session.own(Evaluation, evaluation))


def withdraw_from(session: Transaction, message: UUID, kind: str) -> None:
    """Take back the thumb or the correction that the actor gave to an answer; nothing happens if there is none."""
    session.own(Message, message)
    query = select(Evaluation).where(Evaluation.owner_id == session.actor.id, Evaluation.message_id == message)
    if found := session.scalar(query.where(Evaluation.kind == kind, Evaluation.other_id.is_(None))):
        session.delete(found)


def given(session: Transaction, conversation: UUID) -> Sequence[Evaluation]:
    """What the actor has said about the answers of a conversation."""
    query = select(Evaluation).join(Message, Message.id == Evaluation.message_id)
    query = query.where(Message.conversation_id == session.own(Conversation, conversation).id)
    return session.scalars(query.where(Evaluation.owner_id == session.actor.id).order_by(Evaluation.created_at)).all()


def _judge(session: Transaction, message: UUID, other: UUID | None, kind: str, **opinion: Any) -> Evaluation:
    answers = [session.own(Message, key) for key in (message, other) if key]
    if any(answer.role != "assistant" for answer in answers):
        raise ChatwrightError("only what the assistant said is judged; choose one of its answers")
    if other and (answers[0].parent_id != answers[1].parent_id or message == other):
        raise ChatwrightError("two answers are compared that answer the same message; choose such two")
    query = select(Evaluation).where(Evaluation.owner_id == session.actor.id, Evaluation.kind == kind)
    if other:
        pairs = ((message, other), (other, message))
        query = query.where(or_(*((Evaluation.message_id == a) & (Evaluation.other_id == b) for a, b in pairs)))
    else:
        query = query.where(Evaluation.message_id == message)
    evaluation = session.scalar(query)
    if evaluation is None:
        evaluation = Evaluation(owner_id=session.actor.id, kind=kind, prompt_id=answers[0].parent_id)
        session.add(evaluation)
    evaluation.message_id, evaluation.other_id = message, other
    for name, value in opinion.items():
        setattr(evaluation, name, value)
    session.flush()
    return evaluation
