"""Progress that people can read: a live bar in a terminal, a line every few seconds elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from chatwright.terminal import console

LINE_SECONDS = 10.0


class Bar:
    """Progress of one stage.

    Args:
        title: what is being done, e.g. "sft".
        total: how many steps there are.
        start: how many of them were done before (a resumed run).

    Example:
        >>> with Bar("sft", total=100) as bar:
        ...     bar.advance(1, loss=2.31, tokens_per_second=5120.0)
    """

    place = ""  # "stage 3 of 12 · warmup" while a recipe runs

    def __init__(self, title: str, total: int, start: int = 0) -> None:
        named = Bar.place.endswith(f" {title}")
        self.title = Bar.place if named else f"{Bar.place} ({title})" if Bar.place else title
        self.total, self.done, self.start = total, start, start
        self.live = console.is_terminal and sys.stdout.isatty()
        self.begun = self.printed = time.monotonic()
        self.values = ""
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TextColumn("{task.fields[values]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=4,
            disable=not self.live,
        )

    def __enter__(self) -> Self:
        self.bar.start()
        self.task = self.bar.add_task(self.title, total=self.total, completed=self.start, values="")
        return self

    def advance(self, steps: int = 1, **values: float) -> None:
        """Go on by ``steps``; ``values`` (loss, tokens_per_second ...) are shown beside the bar."""
        self.done += steps
        if values:
            self.values = "  ".join(f"{_label(name)} {_number(value)}" for name, value in values.items())
        self.bar.update(self.task, advance=steps, values=self.values)
        now = time.monotonic()
        if not self.live and now - self.printed >= LINE_SECONDS:
            self.printed = now
            left = (now - self.begun) / max(1, self.done - self.start) * (self.total - self.done)
            console.print(f"{self.title}  {self.done:,}/{self.total:,}  {self.values}  {left:.0f} s left")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        if error is None and not self.live:
            console.print(f"{self.title}  {self.done:,}/{self.total:,}  {self.values}  done")


def _label(name: str) -> str:
    return {"tokens_per_second": "tokens/s", "images_per_second": "images/s"}.get(name, name)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}"
