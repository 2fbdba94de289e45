"""The order in which rows are seen: shuffled, micro-batches of like length to save padding, resumable at any step."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from chatwright.data.rendered import Rendered
from chatwright.errors import ChatwrightError

T = TypeVar("T")


class Batches:
    """Yields the micro-batches of one optimiser step after another.

    Args:
        rows: what to learn from; rows are read only when their batch comes up.
        collate: turns a list of rows into a batch, e.g. `Renderer.collate`.
        size: rows in a step.
        steps: how many steps, through as many epochs as that takes.
        seed: decides the order; the same seed gives the same batches in every run.
        micro: rows in a micro-batch; 0 for all of a step that fall to a process at once.
        lengths: length of each row: those of a step are sorted, so that a micro-batch holds little padding.

    Raises:
        ChatwrightError: there are fewer rows than one step needs.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        collate: Callable[[list[Any]], dict[str, Any]],
        size: int,
        steps: int,
        seed: int,
        micro: int = 0,
        lengths: Sequence[int] | None = None,
    ) -> None:
        if len(rows) < size:
            raise ChatwrightError(f"{len(rows)} rows do not fill one batch of {size}; use a smaller batch or more data")
        self.rows, self.collate, self.size, self.steps, self.seed = rows, collate, size, steps, seed
        self.micro = micro
        self.rank, self.processes = 0, 1
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.step = 0
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        while self.step < self.steps:
            batch = self.indices(self.step)
            self.step += 1
            size = self.micro or -(-len(batch) // self.processes)
            parts = [batch[i : i + size] for i in range(0, len(batch), size)]
            mine = share_of(parts, self.rank, self.processes)
            yield [self.collate([self.rows[int(i)] for i in part]) | marks for part, marks in mine]

    def indices(self, step: int) -> np.ndarray:
        """The rows of a step."""
        epoch, place = divmod(step, len(self.rows) // self.size)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._shuffled(epoch))
        return self._epoch[1][place]

    def share(self, rank: int, size: int) -> None:
        """Yield from now on only what falls to process ``rank`` of ``size``."""
        self.rank, self.processes = rank, size

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = int(state["step"])

    def _shuffled(self, epoch: int) -> list[np.ndarray]:
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(len(self.rows))
        if self.lengths is not None:
            # Only within a step: steps of one length each would hold one kind of row each, and pull one way each.
            parts = (order[i : i + self.size] for i in range(0, len(order), self.size))
            order = np.concatenate([part[np.argsort(self.lengths[part], kind="stable")] for part in parts])
        count = len(order) // self.size
        return np.split(order[: count * self.size], count)


def share_of(parts: Sequence[T], rank: int, size: int) -> list[tuple[T, dict[str, bool]]]:
    """The micro-batches of a step that fall to process ``rank`` of ``size``, each with what to add to its batch.

    All processes get as many; one for which no other is left repeats that of the first, marked ``repeated``, which the
    loop counts for nothing.
    """
    rounds = (parts[start : start + size] for start in range(0, len(parts), size))
    return [(some[rank], {}) if rank < len(some) else (some[0], {"repeated": True}) for some in rounds]


def lengths_of(rows: Sequence[Rendered]) -> list[int]:
    return [len(row) for row in rows]
