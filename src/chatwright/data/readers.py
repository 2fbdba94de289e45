"""The formats that people already have, as records.

| format        | row                                                                                            |
|---------------|------------------------------------------------------------------------------------------------|
| messages      | {"messages": [{"role", "content"}]}: OpenAI, Hugging Face; content is a string or a list of parts |
| conversations | {"conversations": [{"from", "value"}]}: ShareGPT; LLaVA with "image" and <image> in the text    |
| alpaca        | {"instruction", "input", "output"}, also "system" and "history"                                 |
| completion    | {"prompt", "completion"}: TRL                                                                   |
| question      | {"prompt" or "question", "answer" or "reference"}, also "choices", "score", "image"             |
| preference    | {"prompt", "chosen", "rejected"}: TRL, LLaMA-Factory; the prompt in any form of the above       |
| comparison    | {"messages", "responses", "ranks"}: `chatwright.data.store`                                     |
| document      | {"text"} or {"content"}                                                                         |

Pictures, sounds and videos stand in the content parts, or in "image", "images", "audio" ... beside it; then <image> in
a text or a bare {"type": "image"} marks their places, and without marks they come first. A file has one format. Columns
that a format does not use become ``meta``. Nothing is ever downloaded.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from chatwright.data.files import Decoded, ParquetRows, Rows
from chatwright.data.records import MODALITIES, Comparison, Demonstration, Document, Message, Part, Prompt, Record
from chatwright.data.row import Row
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
    return Decoded(rows, decode)


def format_of(row: Any, path: Path, number: int) -> str:
    """The name of the format that a row is written in, by its keys."""
    if not isinstance(row, dict):
        raise ChatwrightError(f"{path}:{number}: row: is {row!r:.40} and not an object; write one {{...}} a row")
    for name, (keys, _) in FORMATS.items():
        if any(choice <= row.keys() for choice in keys):
            return name
    known = "; ".join(f"{name} {{{', '.join(sorted(keys[0]))}}}" for name, (keys, _) in FORMATS.items())
    raise ChatwrightError(f"{path}:{number}: row: unknown format with {', '.join(row)}; use one of: {known}")


def convert(record: Any, kind: type[R], path: Path, number: int) -> R:
    """A record as another kind, where that loses nothing that the other kind is made of.

    A demonstration without its last answer is a prompt with that answer as reference; a prompt with a reference is a
    demonstration; the prompt of a comparison is a prompt.
    """
    where = f"{path}:{number}: "
    if kind is Prompt:
        if isinstance(record, Comparison):
            record = Prompt(record.messages, meta=record.meta)
        elif isinstance(record, Demonstration):
            last = max(at for at, turn in enumerate(record.messages) if turn.role == "assistant")
            record = Prompt(record.messages[:last], record.messages[last].text, meta=record.meta)
        if isinstance(record, Prompt) and (not record.messages or record.messages[-1].role == "assistant"):
            raise ChatwrightError(f"{where}messages: ends with an answer; end it with what is to be answered")
    if kind is Demonstration and isinstance(record, Prompt):
        messages = record.messages
        if record.reference:
            messages = (*messages, Message("assistant", (Part.of_text(record.reference),)))
        if not any(turn.role == "assistant" for turn in messages):
            raise ChatwrightError(f"{where}messages: has no assistant turn; add the answer that the model should give")
        record = Demonstration(messages, record.meta)
    if not isinstance(record, kind):
        raise ChatwrightError(f"{where}row: is a {record.kind} and no {kind.kind}; choose a file of {kind.kind}s")
    return record


def _conversation(row: Row) -> Record:
    """The record of a conversation: a prompt when it comes with a reference or has no answer, else a demonstration."""
    column = next(name for name in ("messages", "conversations", "prompt", "question") if name in row.row)
    turns = row.take(column)
    system = row.take("system")
    if system:
        turns = [{"role": "user", "content": turns}] if isinstance(turns, str) else turns
        turns = [{"role": "system", "content": system}, *(turns or [])]
    messages = row.messages(turns, column)
    names = [name for name in ("answer", "reference") if name in row.row]
    if not names and "choices" not in row.row and any(turn.role == "assistant" for turn in messages):
        return Demonstration(messages, row.meta())
    answer, choices = row.take("answer", "reference"), row.texts("choices")
    if isinstance(answer, int) and choices and not isinstance(answer, bool):
        if not 0 <= answer < len(choices):
            raise row.error(names[0], f"is {answer} but there are {len(choices)} choices; count from 0")
        answer = choices[answer]
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if answer is not None and not isinstance(answer, str):
        raise row.error(names[0], f"is {answer!r:.40}; write a text or a number")
    if choices and answer is not None and answer not in choices:
        raise row.error(names[0], f"{answer!r:.40} is not among the choices; add it to them")
    score = row.text("score") if "score" in row.row else "choice" if choices else "contains"
    return Prompt(messages, answer, choices, score, row.meta())


def _alpaca_turns(row: Row) -> list[dict[str, Any]]:
    """The turns that an Alpaca row asks with: system, history, then the instruction with its input below."""
    turns = []
    if system := row.take("system"):
        turns.append({"role": "system", "content": system})
    for pair in row.take("history") or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise row.error("history", f"holds {pair!r:.40}; write [question, answer] pairs")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    asked = row.text("instruction")
    given = row.take("input")
    return [*turns, {"role": "user", "content": f"{asked}\n{given}" if given else asked}]


def _alpaca(row: Row) -> Record:
    turns = [*_alpaca_turns(row), {"role": "assistant", "content": row.text("output")}]
    return Demonstration(row.messages(turns, "row"), row.meta())


def _completion(row: Row) -> Record:
    prompt, completion = row.take("prompt"), row.take("completion")
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt or [])
    turns += [{"role": "assistant", "content": completion}] if isinstance(completion, str) else list(completion or [])
    return Demonstration(row.messages(turns, "prompt + completion"), row.meta())


def _preference(row: Row) -> Record:
    """Chosen and rejected are texts, turns, or whole conversations of which the last turn is the response."""
    if "instruction" in row.row:
        turns: Any = _alpaca_turns(row)
    else:
        turns = row.take("messages", "conversations", "prompt", "question")
        turns = [{"role": "user", "content": turns}] if isinstance(turns, str) else turns or []
    responses, leads = [], []
    for name in ("chosen", "rejected"):
        value = row.take(name)
        answer = [{"role": "assistant", "content": value}] if isinstance(value, str) else value
        answer = [answer] if isinstance(answer, dict) else answer
        if not isinstance(answer, list) or not answer:
            raise row.error(name, f"is {value!r:.40}; write a text, a turn or a conversation")
        *lead, last = answer
        response = row.message(last, name)
        if response.role != "assistant" or any(part.type != "text" for part in response.content):
            raise row.error(name, "does not end with an assistant's text; end it with the response")
        responses.append(response.text)
        leads.append(lead)
    if leads[0] != leads[1]:
        raise row.error("rejected", "answers another conversation than chosen; make the earlier turns equal")
    if leads[0][: len(turns)] == turns:
        turns = []
    messages = row.messages([*turns, *leads[0]], "prompt")
    return Comparison(messages, tuple(responses), (0, 1), str(row.take("annotator") or "file"), "pair", row.meta())


def _comparison(row: Row) -> Record:
    messages = row.messages(row.take("messages"), "messages")
    responses, ranks = row.texts("responses"), row.take("ranks")
    if len(responses) < 2:
        raise row.error("responses", f"has {len(responses)}; a comparison needs two")
    if not isinstance(ranks, list) or not all(type(rank) is int for rank in ranks) or len(ranks) != len(responses):
        raise row.error("ranks", f"is {ranks!r:.40}; write {len(responses)} places, 0 the best")
    annotator, how = str(row.take("annotator") or "file"), str(row.take("how") or "ranking")
    return Comparison(messages, responses, tuple(ranks), annotator, how, row.meta())


def _document(row: Row) -> Record:
    column = "text" if "text" in row.row else "content"
    content = row.content(row.take(column), column)
    unmarked = [row.part(modality, value, name) for modality in MODALITIES[1:] for name, value in row.beside[modality]]
    return Document((*unmarked, *content), row.meta())


FORMATS: dict[str, tuple[tuple[set[str], ...], Callable[[Row], Record]]] = {
    "comparison": (({"messages", "responses", "ranks"},), _comparison),
    "preference": (({"chosen", "rejected"},), _preference),
    "messages": (({"messages"},), _conversation),
    "conversations": (({"conversations"},), _conversation),
    "alpaca": (({"instruction", "output"},), _alpaca),
    "completion": (({"prompt", "completion"},), _completion),
    "question": (({"prompt"}, {"question"}), _conversation),
    "document": (({"text"}, {"content"}), _document),
}
