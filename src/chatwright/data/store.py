"""Records on disk: `save` and `load`, Parquet or JSONL by the file's suffix.

Parquet is what the stages write: nested columns, pictures as binary, ``meta`` as a JSON string. JSONL is for people and
other tools: media inline as data URLs. Both keep every field (``meta`` as JSON keeps it: tuples come back as lists).
`load` also takes the formats that people already have, see `chatwright.data.readers`.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from chatwright.data import readers
from chatwright.data.media import data_url
from chatwright.data.records import Comparison, Demonstration, Document, Message, Part, Prompt, Record
from chatwright.data.tables import Decoded, ParquetRows, open_rows
from chatwright.errors import ChatwrightError
from chatwright.files import atomic

R = TypeVar("R", Document, Demonstration, Prompt, Comparison)

TEXT, TEXTS, PLACES = pa.string(), pa.list_(pa.string()), pa.list_(pa.int32())
CONTENT = pa.list_(pa.struct({"type": TEXT, "text": TEXT, "media": pa.binary()}))
MESSAGES = pa.list_(pa.struct({"role": TEXT, "content": CONTENT}))
COLUMNS: dict[type[Record], dict[str, pa.DataType]] = {
    Document: {"content": CONTENT},
    Demonstration: {"messages": MESSAGES},
    Prompt: {"messages": MESSAGES, "reference": TEXT, "choices": TEXTS, "score": TEXT},
    Comparison: {"messages": MESSAGES, "responses": TEXTS, "ranks": PLACES, "annotator": TEXT, "how": TEXT},
}
SCHEMAS = {kind: pa.schema(columns | {"meta": TEXT}) for kind, columns in COLUMNS.items()}

GROUP_BYTES = 16 * 2**20
GROUP_ROWS = 1000


def save(records: Iterable[Record], path: Path | str) -> None:
    """Write records of one kind; the file appears whole or not at all.

    Raises:
        ChatwrightError: the suffix is not known, the kinds are mixed, or the disk is full or not writable.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".jsonl"):
        raise ChatwrightError(f"{path}: cannot write {path.suffix or 'a file without suffix'}; use .parquet or .jsonl")
    with atomic(path) as file:
        if path.suffix == ".parquet":
            _write_parquet(_of_one_kind(records, path), file)
        else:
            _write_jsonl(_of_one_kind(records, path), file)


def load(path: Path | str, kind: type[R]) -> Sequence[R]:
    """Read records of one kind; a row is decoded when it is asked for, so large files need little memory.

    Args:
        path: .parquet, .jsonl, .json or .txt, written by `save` or in any format of `chatwright.data.readers`.
        kind: the record wanted; conversations give Demonstrations as well as Prompts.

    Raises:
        ChatwrightError: the file is missing, or a row is bad: ``file:row: field: what is wrong; remedy``. JSON and text
            are checked now; Parquet rows, and whether pictures can be decoded, when a row is read.
    """
    path = Path(path)
    rows = open_rows(path)
    if isinstance(rows, ParquetRows):
        written = next((stored for stored, schema in SCHEMAS.items() if rows.schema.equals(schema)), None)
        if written:
            return Decoded(rows, lambda number, row: readers.convert(_decode(row, written), kind, path, number), path)
    return readers.read(rows, path, kind)


def _of_one_kind(records: Iterable[Record], path: Path) -> Iterator[Record]:
    first = None
    for record in records:
        first = first or record
        if type(record) is not type(first):
            raise ChatwrightError(f"{path}: cannot hold both a {first.kind} and a {record.kind}; save two files")
        yield record


def _write_parquet(records: Iterator[Record], file: IO[bytes]) -> None:
    first = next(records, None)
    if first is None:
        # Without a record the kind is not known: a file without columns is an empty file of every kind.
        pq.write_table(pa.table({}), file)
        return
    schema = SCHEMAS[type(first)]
    options = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}
    with pq.ParquetWriter(file, schema, **options) as writer:
        rows: list[dict[str, Any]] = []
        size = 0
        for record in chain([first], records):
            rows.append(_encode(record))
            size += sum(len(part.media or part.text or "") for part in _parts(record))
            if size >= GROUP_BYTES or len(rows) == GROUP_ROWS:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows, size = [], 0
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _write_jsonl(records: Iterator[Record], file: IO[bytes]) -> None:
    for record in records:
        file.write(json_line(record))


def json_line(record: Record) -> bytes:
    """A record as a line of JSONL."""
    row = dict(vars(record))
    if isinstance(record, Document):
        row["content"] = _plain(record.content)
    else:
        row["messages"] = [{"role": turn.role, "content": _plain(turn.content)} for turn in record.messages]
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _plain(content: tuple[Part, ...]) -> str | list[dict[str, str | None]]:
    """Content as OpenAI and Hugging Face write it: a string when it is one text, else a list of parts."""
    if len(content) == 1 and content[0].type == "text":
        return content[0].text or ""
    return [
        {"type": "text", "text": part.text}
        if part.type == "text"
        else {"type": part.type, part.type: data_url(part.media or b"", part.type)}
        for part in content
    ]


def _parts(record: Record) -> Iterable[Part]:
    if isinstance(record, Document):
        return record.content
    return chain.from_iterable(turn.content for turn in record.messages)


def _encode(record: Record) -> dict[str, Any]:
    row = vars(record) | {"meta": json.dumps(record.meta, ensure_ascii=False)}
    if isinstance(record, Document):
        row["content"] = [vars(part) for part in record.content]
    else:
        row["messages"] = [
            {"role": turn.role, "content": [vars(part) for part in turn.content]} for turn in record.messages
        ]
    return row


def _decode(row: dict[str, Any], kind: type[Record]) -> Record:
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    fields["meta"] = json.loads(row["meta"])
    if kind is Document:
        fields["content"] = tuple(Part(**part) for part in row["content"])
    else:
        fields["messages"] = tuple(
            Message(turn["role"], tuple(Part(**part) for part in turn["content"])) for turn in row["messages"]
        )
    return kind(**fields)
