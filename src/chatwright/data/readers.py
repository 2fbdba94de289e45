"""The formats that people already have, as records.

| format        | row                                                                                            |
|---------------|------------------------------------------------------------------------------------------------|
| messages      | {"messages": [{"role", "content"}]}: OpenAI, Hugging Face; content is a string or a list of parts |
| conversations | {"conversations": [{"from", "value"}]}: ShareGPT; LLaVA with "image" and <image> in the text    |
| alpaca        | {"instruction", "input", "output"}, also "system" and "history"                                 |
| completion    | {"prompt", "completion"}: TRL; with a "label", true or false, a response that was judged (KTO)  |
| steps         | {"prompt", "completions", "labels"}: TRL; the steps of an answer and whether each is right      |
| question      | {"prompt" or "question", "answer" or "reference"}, also "choices", "score", "image"             |
| preference    | {"prompt", "chosen", "rejected"}: TRL, LLaMA-Factory; the prompt in any form of the above       |
| comparison    | {"messages", "responses", "ranks" or "ratings" or both}: `chatwright.data.store`                |
| document      | {"text"} or {"content"}                                                                         |

Pictures, sounds and videos stand in the content parts, or beside the text in "image", "images", "audio" ...; there,
<image> in a text or a bare {"type": "image"} marks their places, and without marks they come first. A file has one
format. Texts and numbers in columns that a format does not know become ``meta``. Nothing is ever downloaded.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from chatwright.data.records import (
    Comparison,
    Demonstration,
    Document,
    Prompt,
    Record,
    answered,
    is_ratings,
)
from chatwright.data.row import Row
from chatwright.data.tables import Decoded, ParquetRows, Rows
from chatwright.errors import ChatwrightError

R = TypeVar("R", Document, Demonstration, Prompt, Comparison)


def read(rows: Rows[Any], path: Path, kind: type[R]) -> Sequence[R]:
    """Rows of one format as records of one kind.

    Raises:
        ChatwrightError: ``file:row: field: what is wrong; remedy``.
    """
    if not rows:
        return []
    first = format_of(rows.row(0), path, rows.number(0))

    def decode(number: int, row: Any, fetch: bool = True) -> R:
        name = format_of(row, path, number)
        if name != first:
            where = f"{path}:{number}: row"
            raise ChatwrightError(f"{where}: is {name!r}, the first row is {first!r}; give each format its own file")
        return convert(FORMATS[name][1](Row(row, path, number, fetch)), kind, path, number)

    # Text is checked whole, now. Parquet has one schema for all its rows and is too large to be read twice.
    for index in range(1 if isinstance(rows, ParquetRows) else len(rows)):
        decode(rows.number(index), rows.row(index), fetch=False)
    return Decoded(rows, decode, path)


def format_of(row: Any, path: Path, number: int) -> str:
    """The name of the format that a row is written in, by its keys."""
    if not isinstance(row, dict):
        raise ChatwrightError(f"{path}:{number}: row: is {row!r:.40} and not an object; write one {{...}} a row")
    for name, (keys, _) in FORMATS.items():
        if any(choice <= row.keys() for choice in keys):
            return name
    known = "; ".join(f"{name} {{{', '.join(sorted(keys[0]))}}}" for name, (keys, _) in FORMATS.items())
    raise ChatwrightError(f"{path}:{number}: row: unknown format with {list(row)!r:.80}; use one of: {known}")


def convert(record: Record, kind: type[R], path: Path, number: int) -> R:
    """A record as the kind that is wanted.

    A demonstration without its last answer is a prompt with that answer as reference; a prompt with a reference is a
    demonstration; the prompt of a comparison is a prompt. A prompt whose last turn is the assistant's (a row with a
    reference or choices, or one that `store.save` wrote) ends with the beginning of its answer.
    """
    wanted: Record = record
    if kind is Prompt and isinstance(record, Comparison):
        wanted = Prompt(record.messages, meta=record.meta)
    if kind is Prompt and isinstance(record, Demonstration):
        last = max((at for at, turn in enumerate(record.messages) if turn.role == "assistant"), default=None)
        reference = None if last is None else record.messages[last].text
        wanted = Prompt(record.messages[:last], reference, meta=record.meta)
    if kind is Demonstration and isinstance(record, Prompt):
        messages = answered(record.messages, record.reference) if record.reference else record.messages
        wanted = Demonstration(messages, record.meta)

    where = f"{path}:{number}"
    if not isinstance(wanted, kind):
        raise ChatwrightError(f"{where}: row: is a {record.kind} and not a {kind.kind}; choose a file of {kind.kind}s")
    if isinstance(wanted, Demonstration) and all(turn.role != "assistant" for turn in wanted.messages):
        raise ChatwrightError(f"{where}: messages: has no assistant turn; add the answer that the model should give")
    if isinstance(wanted, Prompt) and not wanted.messages:
        raise ChatwrightError(f"{where}: messages: asks nothing at its end; end it with what is to be answered")
    return wanted


def _conversation(row: Row) -> Record:
    """A prompt when the row has a reference or no answer, else a demonstration."""
    column = next(name for name in ("messages", "conversations", "prompt", "question") if name in row.row)
    system = row.take("system")
    turns = [{"role": "system", "content": system}] if system else []
    messages = row.messages(turns + row.turns(column, "user"), column)
    name = next((name for name in ("answer", "reference") if name in row.row), None)
    if name is None and "choices" not in row.row and any(turn.role == "assistant" for turn in messages):
        return Demonstration(messages, row.meta())
    choices = row.texts("choices")
    score = row.text("score") if "score" in row.row else "choice" if choices else "contains"
    return Prompt(messages, _reference(row, name, choices) if name else None, choices, score, row.meta())


def _reference(row: Row, name: str, choices: tuple[str, ...]) -> str | None:
    """The text of an answer that is given as a text, as a number, or as a place among the choices."""
    answer = row.take(name)
    if isinstance(answer, int) and not isinstance(answer, bool) and choices:
        if not 0 <= answer < len(choices):
            raise row.error(name, f"is {answer} but there are {len(choices)} choices; count from 0")
        return choices[answer]
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        return str(answer)
    if answer is not None and not isinstance(answer, str):
        raise row.error(name, f"is {answer!r:.40}; write a text or a number")
    if choices and answer is not None and answer not in choices:
        raise row.error(name, f"{answer!r:.40} is not among the choices; add it to them")
    return answer and row.whole(answer, name)


def _alpaca_turns(row: Row) -> list[dict[str, Any]]:
    """The turns that an Alpaca row asks with: system, history, then the instruction with its input below."""
    turns = []
    if system := row.take("system"):
        turns.append({"role": "system", "content": system})
    history = row.take("history") or []
    if not isinstance(history, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in history):
        raise row.error("history", f"is {history!r:.40}; write [question, answer] pairs")
    for pair in history:
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    asked = row.text("instruction")
    given = row.take("input")
    return [*turns, {"role": "user", "content": f"{asked}\n{given}" if given else asked}]


def _alpaca(row: Row) -> Record:
    turns = [*_alpaca_turns(row), {"role": "assistant", "content": row.text("output")}]
    return Demonstration(row.messages(turns, "turns"), row.meta())


def _completion(row: Row) -> Record:
    messages = row.messages(row.turns("prompt", "user") + row.turns("completion", "assistant"), "turns")
    if not isinstance(row.row.get("label"), bool):
        return Demonstration(messages, row.meta())
    good = row.take("label")
    annotator = str(row.take("annotator") or "file")
    return Comparison(messages[:-1], (messages[-1].text,), (0 if good else 1,), annotator, "label", row.meta())


def _steps(row: Row) -> Record:
    """A demonstration with a line for every step of its answer and their labels as ``meta["steps"]``."""
    steps, labels = row.texts("completions"), row.take("labels")
    for at, step in enumerate(steps):
        if len(step.strip().splitlines()) != 1:
            raise row.error(f"completions[{at}]", f"is {step!r:.40}; write a step as one line of text")
    if not isinstance(labels, list) or len(labels) != len(steps):
        raise row.error("labels", f"is {labels!r:.40}; write {len(steps)}, one for each of the completions")
    answer = "\n".join(step.strip() for step in steps)
    turns = [*row.turns("prompt", "user"), {"role": "assistant", "content": answer}]
    return Demonstration(row.messages(turns, "turns"), {**row.meta(), "steps": labels})


def _preference(row: Row) -> Record:
    """Chosen and rejected are texts, turns, or whole conversations of which the last turn is the response."""
    column = next((name for name in ("messages", "conversations", "prompt", "question") if name in row.row), None)
    asked = _alpaca_turns(row) if "instruction" in row.row else row.turns(column, "user") if column else []
    *before, chosen = row.turns("chosen", "assistant")
    *before_rejected, rejected = row.turns("rejected", "assistant")
    if before != before_rejected:
        raise row.error("rejected", "answers another conversation than chosen; make the earlier turns equal")
    responses = [row.message(turn, name) for name, turn in (("chosen", chosen), ("rejected", rejected))]
    for name, response in zip(("chosen", "rejected"), responses, strict=True):
        if response.role != "assistant" or any(part.type != "text" for part in response.content):
            raise row.error(name, "does not end with a text of the assistant; end it with the response")
    # The whole conversation repeats the prompt, a mere completion does not.
    messages = row.messages(before if before[: len(asked)] == asked else asked + before, "prompt")
    texts = tuple(response.text for response in responses)
    return Comparison(messages, texts, (0, 1), str(row.take("annotator") or "file"), "pair", row.meta())


def _comparison(row: Row) -> Record:
    messages = row.messages(row.turns("messages", "user"), "messages")
    responses, ranks, ratings = row.texts("responses"), row.take("ranks"), row.take("ratings")
    if len(responses) < (1 if row.row.get("how") == "label" else 2):
        raise row.error("responses", f"has {len(responses)}; a comparison needs two")
    if ranks is None and ratings is not None:
        if not is_ratings(ratings, len(responses)) or None in ratings:
            raise row.error("ratings", f"is {ratings!r:.40}; write {len(responses)} numbers, or `ranks` beside them")
        ranks = [sum(other > rating for other in ratings) for rating in ratings]
    if not isinstance(ranks, list) or not all(type(rank) is int for rank in ranks) or len(ranks) != len(responses):
        raise row.error("ranks", f"is {ranks!r:.40}; write {len(responses)} places, 0 the best")
    annotator, how = str(row.take("annotator") or "file"), str(row.take("how") or "ranking")
    meta = row.meta() | ({} if ratings is None else {"ratings": ratings})
    return Comparison(messages, responses, tuple(ranks), annotator, how, meta)


def _document(row: Row) -> Record:
    column = "text" if "text" in row.row else "content"
    content = row.content(row.take(column), column)
    return Document(row.unmarked() + content, row.meta())


FORMATS: dict[str, tuple[tuple[set[str], ...], Callable[[Row], Record]]] = {
    "comparison": (({"messages", "responses", "ranks"}, {"messages", "responses", "ratings"}), _comparison),
    "preference": (({"chosen", "rejected"},), _preference),
    "messages": (({"messages"},), _conversation),
    "conversations": (({"conversations"},), _conversation),
    "alpaca": (({"instruction", "output"},), _alpaca),
    "completion": (({"prompt", "completion"},), _completion),
    "steps": (({"prompt", "completions", "labels"},), _steps),
    "question": (({"prompt"}, {"question"}), _conversation),
    "document": (({"text"}, {"content"}), _document),
}
