"""What people have written and judged as records to train on, of those who agreed to it and of nobody else.

Both who wrote a conversation and who judged it must agree. People are named by their pseudonym. Texts are as they were
written: what somebody tells about themselves in a message stands in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from chatwright.data import records
from chatwright.data.records import Comparison, Demonstration, Prompt
from chatwright.feedback.conversations import ancestry, records_of
from chatwright.feedback.tables import Conversation, Evaluation, Message, User

RANKS = {"first": (0, 1), "second": (1, 0), "tie": (0, 0), "neither": (0, 0)}


@dataclass(frozen=True)
class Judged:
    """An evaluation, who made it, the conversation up to what was judged, and the answers in the order shown."""

    evaluation: Evaluation
    judge: User
    prompt: tuple[records.Message, ...]
    answers: list[Message]

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(answer.text for answer in self.answers)

    @property
    def meta(self) -> dict[str, Any]:
        """Which models answered and how, whether each answer came to its end, who judged and when."""
        return {
            "conversation": str(self.answers[0].conversation_id),
            "models": [answer.model for answer in self.answers],
            "checkpoints": [answer.checkpoint for answer in self.answers],
            "sampling": [answer.sampling for answer in self.answers],
            "finished": [answer.finish_reason == "stop" for answer in self.answers],
            "at": self.evaluation.changed_at.isoformat(),
            "annotator": self.judge.pseudonym,
            "role": self.judge.role,
        }


def demonstrations(session: Session) -> Iterator[Demonstration]:
    """Corrections: the conversation up to the answer, then what it should have been. Only that is to be learned: the
    answers before it are the model's own."""
    for one in _judged(session, "correction"):
        corrected = records.Message.of("assistant", one.evaluation.text or "")
        yield Demonstration((*one.prompt, corrected), {**one.meta, "learn": "last"})


def comparisons(session: Session) -> Iterator[Comparison]:
    """Pairs of answers. Two bad ones are a tie; ``meta["verdict"]`` says so."""
    for one in _judged(session, "comparison"):
        verdict = one.evaluation.verdict or "tie"
        meta = {**one.meta, "verdict": verdict}
        yield Comparison(one.prompt, one.texts, RANKS[verdict], one.judge.pseudonym, "pair", meta)


def labelled(session: Session) -> Iterator[Comparison]:
    """Thumbs: single answers, of rank 0 if good and 1 if bad, as kto learns from them."""
    for one in _judged(session, "thumb"):
        meta = {**one.meta, "reasons": one.evaluation.reasons, "comment": one.evaluation.comment}
        ranks = (0 if one.evaluation.good else 1,)
        yield Comparison(one.prompt, one.texts, ranks, one.judge.pseudonym, "label", meta)


def prompts(session: Session) -> Iterator[Prompt]:
    """What people asked, judged or not: the conversation up to each of their messages."""
    asked = select(Message.id, Message.conversation_id).join(Conversation).join(User, User.id == Conversation.owner_id)
    asked = asked.where(User.consent, Message.role == "user")
    for key, conversation in session.execute(asked.order_by(Message.conversation_id, Message.number)).all():
        yield Prompt(records_of(ancestry(session, key)), meta={"conversation": str(conversation)})


def _judged(session: Session, kind: str) -> Iterator[Judged]:
    """The evaluations of a kind where both the judge and who wrote the conversation agree."""
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
    for evaluation, person in session.execute(query).all():
        keys = [key for key in (evaluation.message_id, evaluation.other_id) if key]
        answers = [session.get_one(Message, key) for key in keys]
        yield Judged(evaluation, person, records_of(ancestry(session, evaluation.prompt_id)), answers)
