"""Reading a conversation's next turn without reading again what was read before (Zheng et al. 2023, "SGLang")."""

from collections import deque
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from chatwright.data.rendered import Rendered

SHORTEST = 32  # tokens; a shorter beginning is read faster than it is put back


@dataclass(frozen=True)
class Begun:
    """A prompt of which the beginning is known.

    states: of every layer [2, G, P, D], the keys and values of its first P tokens. rest: what is still to be read.
    """

    states: list[Tensor]
    rest: Rendered


@dataclass(frozen=True, eq=False)
class _Row:
    tokens: np.ndarray
    media: bytes
    states: list[Tensor]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in self.states)


class Prefixes:
    """Keys and values of rows that have ended, for prompts that begin as these did.

    Args:
        most: bytes that they may take; the row that was of no use for longest is forgotten first.
        placeholders: tokens that stand for media.
    """

    def __init__(self, most: int, placeholders: set[int]):
        self.most = most
        self.placeholders = sorted(placeholders)
        self.rows: deque[_Row] = deque()  # the one that was of use last stands last

    def keep(self, prompt: Rendered, tokens: list[int], states: list[Tensor]) -> None:
        """Remember a row: a prompt, the tokens that were read after it, and of every layer the states [2, G, P, D]."""
        row = _Row(np.array([*prompt.input_ids, *tokens]), prompt.media_digest, states)
        for one in list(self.rows):
            if one.media == row.media and np.array_equal(one.tokens, row.tokens[: len(one)]):
                self.rows.remove(one)  # the new row begins with it
        self.rows.append(row)
        while sum(one.nbytes for one in self.rows) > self.most:
            self.rows.popleft()

    def find(self, prompt: Rendered) -> Begun | None:
        """The longest beginning of a prompt that is known; at least its last token is always left to be read."""
        tokens = np.array(prompt.input_ids)
        marks = np.flatnonzero(np.isin(tokens, self.placeholders))

        def common(row: _Row) -> int:
            size = min(len(row), len(tokens) - 1)
            differ = np.flatnonzero(row.tokens[:size] != tokens[:size])
            known = int(differ[0]) if len(differ) else size
            # The marks of one picture are those of any other. So these have to be the same, and known as a whole.
            if len(marks) and (row.media != prompt.media_digest or known <= marks[-1]):
                known = min(known, int(marks[0]))
            return known

        row = max(self.rows, key=common, default=None)
        if row is None or (known := common(row)) < SHORTEST:
            return None
        self.rows.remove(row)
        self.rows.append(row)
        media = {} if len(marks) and known > marks[-1] else prompt.media
        rest = Rendered(prompt.input_ids[known:], prompt.loss_mask[known:], media, prompt.begun)
        return Begun([states[:, :, :known] for states in row.states], rest)
