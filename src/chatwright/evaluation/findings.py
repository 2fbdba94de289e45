"""What a measuring stage found, for the report of its run: ``findings.json`` in its folder.

A stage that measures something of its own (win rates, agreement, what a reward model is worth far from its data) saves
its numbers with the charts and tables that show them; the report draws them without knowing what they are about.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from chatwright.errors import ChatwrightError
from chatwright.files import write


@dataclass(frozen=True)
class Series:
    """Points of a chart: ``x`` and ``y`` of equal length, ``low`` and ``high`` the ends of their intervals.

    "points" are measurements, "line" connects them, "curve" is a fitted or theoretical line without points.
    ``colour`` is its number; series of one colour belong together. None takes the next.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    style: Literal["points", "line", "curve"] = "line"
    colour: int | None = None


@dataclass(frozen=True)
class Chart:
    """Series over one pair of axes; ``text`` says what is to be seen."""

    title: str
    text: str
    x: str
    y: str
    series: Sequence[Series]
    log_x: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers; ``text`` says what is to be seen."""

    title: str
    text: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]


@dataclass(frozen=True)
class Findings:
    """``numbers`` go into ``report.json`` under the name that the report's settings give them; a measurement is an
    object {score, low, high, n}, so that claims can point at it."""

    title: str
    text: str
    numbers: dict[str, Any]
    charts: Sequence[Chart] = field(default=())
    tables: Sequence[Table] = field(default=())

    def save(self, folder: Path) -> None:
        write(folder / "findings.json", json.dumps(asdict(self), indent=1, ensure_ascii=False))

    @classmethod
    def load(cls, folder: Path) -> "Findings":
        """Raises ChatwrightError: there are none, or the file is not what `save` wrote."""
        path = folder / "findings.json"
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            charts = [
                Chart(**{**chart, "series": [Series(**one) for one in chart["series"]]}) for chart in saved["charts"]
            ]
            tables = [Table(**table) for table in saved["tables"]]
            return cls(saved["title"], saved["text"], saved["numbers"], charts, tables)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ChatwrightError(f"{path}: cannot be read ({error}); run that stage again") from error
