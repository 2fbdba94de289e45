"""Rows of files as plain dicts, before anything knows what they mean."""

import difflib
import json
import mmap
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chatwright.errors import ChatwrightError

T = TypeVar("T")
S = TypeVar("S")
SUFFIXES = (".parquet", ".jsonl", ".json", ".txt")

# Row groups of a Parquet file that stay in memory, as Arrow buffers; `store.save` writes groups of at most 16 MB.
HELD_GROUPS = 64


class Rows(Sequence[T]):
    """A sequence that makes its rows when they are asked for."""

    def row(self, index: int) -> T:
        """Row ``index``, from 0 to ``len(self) - 1``."""
        raise NotImplementedError

    def number(self, index: int) -> int:
        """What people call row ``index``: counted from 1, in lines where the file has lines."""
        return index + 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.row(i) for i in range(*index.indices(len(self)))]
        return self.row(range(len(self))[index])


class Decoded(Rows[T], Generic[T, S]):
    """Other rows, those of the file ``path``, seen through ``decode(number, row)``."""

    def __init__(self, rows: Rows[S], decode: Callable[[int, S], T], path: Path):
        self.rows, self.decode, self.path = rows, decode, path

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> T:
        number = self.rows.number(index)
        return self.decode(number, self.rows.row(index))

    def number(self, index: int) -> int:
        return self.rows.number(index)


class ParquetRows(Rows[dict[str, Any]]):
    """A memory-mapped Parquet file; a row group is decompressed when one of its rows is first needed."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.file = pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
        except (pa.ArrowInvalid, OSError) as error:
            raise ChatwrightError(f"{path}: not a Parquet file ({_one_line(error)}); make it again") from error
        self.schema = self.file.schema_arrow.remove_metadata()
        sizes = [self.file.metadata.row_group(group).num_rows for group in range(self.file.num_row_groups)]
        self.starts = np.cumsum([0, *sizes])
        self.group = lru_cache(maxsize=HELD_GROUPS)(self._read)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def row(self, index: int) -> dict[str, Any]:
        group = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.group(group).slice(index - self.starts[group], 1).to_pylist()[0]

    def _read(self, group: int) -> pa.Table:
        try:
            return self.file.read_row_group(group)
        except (pa.ArrowInvalid, OSError) as error:
            raise ChatwrightError(f"{self.path}: damaged ({_one_line(error)}); make it again") from error


class JsonLines(Rows[Any]):
    """A memory-mapped file with one JSON value a line; empty lines are skipped."""

    def __init__(self, path: Path):
        self.path = path
        self.spans: list[tuple[int, int, int]] = []
        with open(path, "rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
            start = 0
            for number, line in enumerate(file, 1):
                if line.strip():
                    self.spans.append((number, start, start + len(line)))
                start += len(line)

    def __len__(self) -> int:
        return len(self.spans)

    def number(self, index: int) -> int:
        return self.spans[index][0]

    def row(self, index: int) -> Any:
        number, start, end = self.spans[index]
        try:
            return json.loads(self.bytes[start:end].decode("utf-8-sig"))
        except ValueError as error:
            raise ChatwrightError(f"{self.path}:{number}: not JSON ({error}); write one object a line") from error


class ListRows(Rows[Any]):
    """Rows that are all in memory."""

    def __init__(self, rows: list[Any]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Any:
        return self.rows[index]


def open_rows(path: Path) -> Rows[Any]:
    """The rows of a .parquet, .jsonl, .json (an array, or one object a line) or .txt (paragraphs) file.

    Raises:
        ChatwrightError: there is no such file, its suffix is not known, or it cannot be read as what it is named.
    """
    if path.is_dir():
        inside = [file.name for file in sorted(path.iterdir()) if file.suffix in SUFFIXES]
        raise ChatwrightError(f"{path}: is a folder; name a file in it ({', '.join(inside[:5]) or 'it has no data'})")
    if not path.is_file():
        raise ChatwrightError(f"{path}: no such file; {nearest(path)}")
    if path.suffix not in SUFFIXES:
        raise ChatwrightError(f"{path}: unknown kind of file {path.suffix!r}; use {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".parquet":
            return ParquetRows(path)
        if path.suffix == ".txt":
            paragraphs = path.read_text(encoding="utf-8-sig").split("\n\n")
            return ListRows([{"text": text.strip()} for text in paragraphs if text.strip()])
        if path.suffix == ".json" and _starts_with_bracket(path):
            return ListRows(json.loads(path.read_text(encoding="utf-8-sig")))
        return JsonLines(path)
    except UnicodeDecodeError as error:
        raise ChatwrightError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise ChatwrightError(f"{path}:{error.lineno}: not JSON ({error.msg}); mend it or make it again") from error
    except PermissionError as error:
        raise ChatwrightError(f"{path}: no permission to read it; chmod it or choose another file") from error


def place_of(records: Sequence[Any], index: int) -> str:
    """How a line about a bad record begins: ``file:row`` where the records were loaded from a file."""
    if isinstance(records, Decoded):
        return f"{records.path}:{records.number(index)}"
    return f"row {index + 1}"


def nearest(path: Path) -> str:
    """A remedy for a missing path: the names beside it that come nearest."""
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    alike = difflib.get_close_matches(path.name, os.listdir(folder), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(alike)}?" if alike else f"check its name in {folder}"


def _starts_with_bracket(path: Path) -> bool:
    with open(path, encoding="utf-8-sig") as file:
        return file.read(4096).lstrip().startswith("[")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
