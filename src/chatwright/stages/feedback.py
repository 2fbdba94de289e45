"""People's feedback from the database: as records to train on, and from one database into another."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy.orm import Session

from chatwright.data.records import Record
from chatwright.data.store import save
from chatwright.errors import ChatwrightError
from chatwright.feedback import export
from chatwright.feedback.database import Database, copy, parse
from chatwright.files import write
from chatwright.stages.base import Stage
from chatwright.terminal import console

KINDS: dict[str, Callable[[Session], Iterator[Record]]] = {
    "demonstrations": export.demonstrations,
    "comparisons": export.comparisons,
    "labelled": export.labelled,
    "prompts": export.prompts,
}


@dataclass
class FeedbackExport(Stage):
    """Write what people said and judged as records to train on, of those who agreed to it.

    Writes ``demonstrations.parquet`` (corrections), ``comparisons.parquet`` (pairs), ``labelled.parquet`` (thumbs, for
    ``prefer --method kto``), ``prompts.parquet`` (what people asked) and ``counts.json``. Run again, it does nothing
    unless the database has changed.

    Args:
        database: the path of the SQLite file, or ``postgresql://user@host/name``.
        heldout: part of the conversations that goes to ``comparisons_heldout.parquet`` and so on, to test on. A
            conversation stays on its side from one export to the next.
    """

    database: str
    heldout: float = 0.0

    @classmethod
    def name(cls) -> str:
        return "feedback export"

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"database": parse(self.database).render_as_string(hide_password=True)}

    def inputs(self) -> dict[str, str]:
        return {"database": opened(self.database).state()}

    def run(self, out: Path) -> None:
        if not 0 <= self.heldout < 1:
            raise ChatwrightError(f"heldout={self.heldout}: give a part of all conversations, from 0 to less than 1")
        counts = {}
        with opened(self.database).reading() as session:
            for kind, records in KINDS.items():
                counts[kind] = _save(self._side(records(session), False), out / f"{kind}.parquet")
                if self.heldout:
                    name = f"{kind}_heldout"
                    counts[name] = _save(self._side(records(session), True), out / f"{name}.parquet")
        if not any(counts.values()):
            raise ChatwrightError(
                f"{self.database}: nobody has said anything and agreed to its use; ask people to agree"
            )
        write(out / "counts.json", json.dumps(counts, indent=1))
        console.print(", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in counts.items()), soft_wrap=True)

    def _side(self, records: Iterable[Record], heldout: bool) -> Iterator[Record]:
        """The records of the conversations that are held out, or those of the others."""
        for record in records:
            place = hashlib.sha256(record.meta["conversation"].encode()).digest()
            if (int.from_bytes(place[:8], "big") < self.heldout * 2**64) == heldout:
                yield record


@dataclass
class FeedbackCopy(Stage):
    """Copy all that is in one database into a new one, of the same kind or the other.

    Args:
        database: the path of a SQLite file, or ``postgresql://user@host/name``.
        to: the new one, likewise.
    """

    artifact: ClassVar[bool] = False

    database: str
    to: str

    @classmethod
    def name(cls) -> str:
        return "feedback copy"

    def run(self, out: Path) -> None:
        source, target = opened(self.database), Database(self.to)
        console.print(f"{target.name}: {copy(source, target)} rows copied from {source.name}", soft_wrap=True)


def opened(url: str) -> Database:
    """A database that must be there already."""
    parsed = parse(url)
    if parsed.drivername == "sqlite" and not Path(parsed.database or "").is_file():
        raise ChatwrightError(f"{parsed.database}: no such database; check its path")
    return Database(url)


def _save(records: Iterable[Record], path: Path) -> int:
    """Save records and count them."""
    count = 0

    def counted() -> Iterator[Record]:
        nonlocal count
        for record in records:
            count += 1
            yield record

    save(counted(), path)
    return count
