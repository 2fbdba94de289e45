"""Work on many records in several processes, as Python itself uses only one core."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from chatwright.data.rendered import Rendered
from chatwright.errors import ChatwrightError
from chatwright.training.progress import Bar

T = TypeVar("T")
R = TypeVar("R")

# Fewer rows are rendered sooner than processes are started.
FEW_ROWS = 1000
ROWS_AT_ONCE = 64


def render_rows(render: Callable[[T], Rendered], records: Sequence[T]) -> list[Rendered]:
    """``render``, e.g. `Renderer.document`, of every record; of many in as many processes as torch has threads.

    Raises:
        ChatwrightError: the first that ``render`` raises.
    """
    if len(records) < FEW_ROWS:
        return [render(records[i]) for i in range(len(records))]
    return [_with_tensors(row) for row in each(_Light(render), records, "rendering", ROWS_AT_ONCE)]


def each(function: Callable[[T], R], items: Sequence[T], title: str, at_once: int = 1) -> Iterator[R]:
    """``function`` of every item, in their order, from as many processes as torch has threads.

    Args:
        function: of one item; what it gives goes from one process to the other, so let it be small.
        title: of the progress.
        at_once: how many items a process does before it hands them over.

    Raises:
        ChatwrightError: the first that ``function`` raises.
    """
    processes = torch.get_num_threads()
    loader = DataLoader(
        _Calls(function, items),
        batch_size=at_once,
        collate_fn=list,
        num_workers=processes if processes > 1 else 0,
        generator=torch.Generator(),  # it draws a seed, which must not come from the run's own random numbers
    )
    with Bar(title, len(items)) as bar:
        for results in loader:
            for result in results:
                if isinstance(result, ChatwrightError):
                    raise result
                yield result
            bar.advance(len(results))


class _Calls(Dataset, Generic[T, R]):
    def __init__(self, function: Callable[[T], R], items: Sequence[T]) -> None:
        self.function, self.items = function, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> R | ChatwrightError:
        try:
            return self.function(self.items[index])
        except ChatwrightError as error:  # raised here, it would reach the user with the trace of a process around it
            return error


class _Light(Generic[T]):
    """A row with arrays for tensors: between processes every tensor would hold a file open."""

    def __init__(self, render: Callable[[T], Rendered]) -> None:
        self.render = render

    def __call__(self, record: T) -> Rendered:
        row = self.render(record)
        return replace(row, media={name: tensor.numpy() for name, tensor in row.media.items()})  # type: ignore[misc]


def _with_tensors(row: Rendered) -> Rendered:
    media: dict[str, Any] = row.media
    return replace(row, media={name: torch.from_numpy(array) for name, array in media.items()})
