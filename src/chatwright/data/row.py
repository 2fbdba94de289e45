"""One row of a user's file while it is read: its columns, its media and its conversation."""

import json
import re
from pathlib import Path
from typing import Any, cast

from chatwright.data import media
from chatwright.data.records import MODALITIES, ROLES, Message, Part, Role
from chatwright.errors import ChatwrightError

ROLE_OF = {
    **{role: role for role in ROLES},
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "bot", "model", "function_call"), "assistant"),
    **dict.fromkeys(("observation", "function"), "tool"),
    "developer": "system",
}
MARK = re.compile(r"\n?<(image|audio|video)>\n?")


class Row:
    """One row while it is read: what a format takes is removed, what remains is meta."""

    def __init__(self, row: dict[str, Any], path: Path, number: int, fetch: bool):
        self.row, self.path, self.number, self.fetch = dict(row), path, number, fetch
        self.beside: dict[str, list[tuple[str, Any]]] = {}
        for modality in MODALITIES[1:]:
            for column in (modality, f"{modality}s"):
                given = self.row.pop(column, None)
                given = [given] if given is not None and not isinstance(given, list) else given or []
                self.beside.setdefault(modality, []).extend((column, value) for value in given)
        self.given = {modality: len(values) for modality, values in self.beside.items()}
        # LLaVA's <image> without a picture is a mistake; elsewhere it is a text like any other.
        self.has_marks = any(self.given.values()) or "conversations" in row

    def error(self, field: str, problem: object) -> ChatwrightError:
        line = str(problem).replace("\n", " ")
        return ChatwrightError(f"{self.path}:{self.number}: {field}: {line}")

    def take(self, name: str) -> Any:
        """Remove a column and give what it holds; None when there is no such column."""
        return self.row.pop(name, None)

    def text(self, name: str) -> str:
        """A column that must hold text."""
        value = self.take(name)
        if value is None or value == "":
            raise self.error(name, "is empty; fill it or remove the row")
        if not isinstance(value, str):
            raise self.error(name, f"is {value!r:.40}; write a text")
        return self.whole(value, name)

    def whole(self, text: str, field: str) -> str:
        """The text, if it can be written as UTF-8: JSON escapes may hold half of a surrogate pair."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise self.error(field, f"holds {text[error.start]!r}, half of a character; remove it") from error
        return text

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.take(name) or []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(name, f"is {value!r:.40}; write a list of texts")
        return tuple(self.whole(item, name) for item in value)

    def turns(self, field: str, role: Role) -> list[Any]:
        """A column that holds turns: a list of them, a single one, or a text that ``role`` says."""
        value = self.take(field)
        if not value:
            raise self.error(field, "is empty; write its turns or remove the row")
        if isinstance(value, str):
            return [{"role": role, "content": value}]
        if isinstance(value, dict):
            return [value]
        if not isinstance(value, list):
            raise self.error(field, f"is {value!r:.40}; write a text or a list of turns")
        return value

    def meta(self) -> dict[str, Any]:
        given = self.take("meta")
        if isinstance(given, str) and given.startswith("{"):  # As `store.save` writes it to Parquet.
            try:
                given = json.loads(given)
            except ValueError as error:
                raise self.error("meta", f"is not JSON ({error}); write an object") from error
        rest = {name: value for name, value in self.row.items() if isinstance(value, str | int | float)}
        return {**rest, **(given if isinstance(given, dict) else {})}

    def part(self, modality: str, value: Any, field: str) -> Part:
        try:
            part = Part(cast(Any, modality), media=media.read(value, self.path.parent, self.fetch))
            if self.fetch and modality == "image":
                part.image()  # Decoded only to name the row of a broken picture.
        except ChatwrightError as error:
            raise self.error(field, error) from error
        return part

    def next_beside(self, modality: str, field: str) -> Part:
        if not self.beside[modality]:
            raise self.error(field, f"marks one {modality} more than the row has; add it or remove the mark")
        column, value = self.beside[modality].pop(0)
        return self.part(modality, value, column)

    def unmarked(self) -> tuple[Part, ...]:
        """The media beside the text when no mark places them; all of a modality are placed, or none."""
        parts: list[Part] = []
        for modality, left in self.beside.items():
            if left and len(left) < self.given[modality]:
                raise self.error(left[0][0], f"has {len(left)} more than the text marks; add <{modality}> to the text")
            parts += [self.part(modality, value, column) for column, value in left]
        return tuple(parts)

    def content(self, value: Any, field: str) -> tuple[Part, ...]:
        """A string, or parts as OpenAI and Hugging Face write them."""
        if isinstance(value, str):
            return self.marked_text(value, field)
        if not isinstance(value, list):
            raise self.error(field, f"is {value!r:.40}; write a text or a list of parts")
        parts: list[Part] = []
        for at, item in enumerate(value):
            place = f"{field}[{at}]"
            if isinstance(item, str):
                parts.append(Part.of_text(self.whole(item, place)))
                continue
            given = {key: inner for key, inner in item.items() if inner is not None} if isinstance(item, dict) else {}
            name = str(given.pop("type", "nothing"))
            modality = name.removeprefix("input_").removesuffix("_url")
            if modality == "text":
                text = given.get("text", given.get("value"))
                if not isinstance(text, str):
                    raise self.error(place, f"has no text but {sorted(given)}; write {{'type': 'text', 'text': ...}}")
                parts.append(Part.of_text(self.whole(text, place)))
            elif modality not in MODALITIES:
                raise self.error(f"{place}.type", f"unknown part {name!r}; use {', '.join(MODALITIES)} or image_url")
            elif not given:
                parts.append(self.next_beside(modality, place))
            else:
                source = next((given[key] for key in (name, modality, "media") if key in given), given)
                parts.append(self.part(modality, source, place))
        return tuple(parts)

    def marked_text(self, text: str, field: str) -> tuple[Part, ...]:
        """A text whose <image> marks are replaced by the media beside it."""
        text = self.whole(text, field)
        pieces = MARK.split(text) if self.has_marks else [text]
        parts = []
        for at, piece in enumerate(pieces):
            if at % 2:
                parts.append(self.next_beside(piece, field))
            elif piece or len(pieces) == 1:
                parts.append(Part.of_text(piece))
        return tuple(parts)

    def messages(self, turns: list[Any], field: str) -> tuple[Message, ...]:
        """Turns of {"role", "content"} or {"from", "value"}; media that no mark places join the first user turn."""
        if not turns:
            raise self.error(field, "is empty; write its turns or remove the row")
        messages = [self.message(turn, f"{field}[{at}]") for at, turn in enumerate(turns)]
        if any(turn.role == "system" for turn in messages[1:]):
            raise self.error(field, "has a system turn after the first turn; keep one, at the start")
        if unmarked := self.unmarked():
            first = next((at for at, turn in enumerate(messages) if turn.role == "user"), None)
            if first is None:
                raise self.error(field, f"has no user turn for the {unmarked[0].type}; add one")
            messages[first] = Message("user", unmarked + messages[first].content)
        for at, turn in enumerate(messages):
            if not any(part.type != "text" or (part.text and part.text.strip()) for part in turn.content):
                raise self.error(f"{field}[{at}]", f"the {turn.role} says nothing; write its text or remove the row")
        return tuple(messages)

    def message(self, turn: Any, field: str) -> Message:
        if not isinstance(turn, dict) or not ({"role", "content"} <= turn.keys() or {"from", "value"} <= turn.keys()):
            raise self.error(field, f"is {turn!r:.60}; write {{'role': ..., 'content': ...}}")
        role = turn.get("role", turn.get("from"))
        if not isinstance(role, str) or role not in ROLE_OF:
            raise self.error(f"{field}.role", f"unknown role {role!r}; use {', '.join(ROLES)}")
        if turn.get("tool_calls"):
            raise self.error(f"{field}.tool_calls", "cannot be kept; write the call as text in content")
        column = "content" if "content" in turn else "value"
        return Message(cast(Role, ROLE_OF[role]), self.content(turn[column], f"{field}.{column}"))
