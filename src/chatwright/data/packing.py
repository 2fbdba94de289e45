"""Batches without padding, in which what rows have in common at their beginning stands only once.

All rows of a batch become one sequence, so that no linear layer computes padding. A row that begins as the row before
it (the responses to one prompt) adds only what is its own: the prompt and its pictures are computed once for all of
its responses. No token sees another row: rows of like length attend together, each to itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

WORTH = 8  # tokens; a shorter common beginning is not worth the bookkeeping
STEP = 1.5  # how much longer than the shortest row of a block the longest may be


@dataclass
class Packing:
    """B rows of at most T tokens as one sequence of S.

    tokens: [S], for each of the sequence its place in the flattened batch [B * T]. index: [B, T], for each of the batch
    its place in the sequence; padding points at the first.
    masks: of each block of N rows that attend together [N, Q, K], True where a query sees a key; Q are the tokens of a
    row that stand in the sequence for it alone, K all it sees. queries, keys: the places in the sequence of those of
    all blocks, one block behind the other. asking, asked: [S], where each token of the sequence is among ``queries``
    and ``keys``; there are no ``asked`` where rows share tokens, which are among the keys more than once.
    media: of every media tensor the entries that belong to the sequence; none where all do. regular: whether the
    sequence is the flattened batch itself.
    """

    tokens: Tensor
    index: Tensor
    masks: list[Tensor]
    queries: Tensor
    keys: Tensor
    asking: Tensor
    asked: Tensor | None
    media: dict[str, Tensor]
    regular: bool

    def to(self, device: torch.device) -> Self:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {k: value.to(device) for k, value in values.items() if isinstance(value, Tensor)}
        masks = [mask.to(device) for mask in self.masks]
        media = {name: entries.to(device) for name, entries in self.media.items()}
        return replace(self, masks=masks, media=media, **moved)

    def inputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """``input_ids`` and ``position_ids`` [1, S] and the media that belong to them, of the batch that was packed."""
        media = {name: batch[name][entries] for name, entries in self.media.items()}
        sequence = {name: batch[name].flatten()[self.tokens].unsqueeze(0) for name in ("input_ids", "position_ids")}
        rest = batch.keys() - sequence.keys() - {"attention_mask", "loss_mask", "packing"}
        return {**sequence, **{name: media.get(name, batch[name]) for name in rest}}


def pack(ids: Sequence[Sequence[int]], media: Sequence[dict[str, Tensor]], marks: set[int], width: int) -> Packing:
    """Pack B rows.

    Args:
        ids: the tokens of each row. media: of each row, their tensors by name.
        marks: the tokens that stand for media; a beginning is shared with all of a row's media or with none.
        width: T of the batch, which is padded on the right.
    """
    rows = [np.asarray(row) for row in ids]
    lengths = np.array([len(row) for row in rows])
    begins = np.array([0, *(_in_common(rows, media, marks, b) for b in range(1, len(rows)))])
    owned = lengths - begins
    starts = np.concatenate([[0], np.cumsum(owned)[:-1]])
    places = np.arange(width)
    index = np.zeros((len(rows), width), dtype=np.int64)
    own = (places >= begins[:, None]) & (places < lengths[:, None])
    index[own] = np.arange(owned.sum())
    for b, begin in enumerate(begins):
        index[b, :begin] = index[b - 1, :begin]
    masks: list[Tensor] = []
    queries: list[np.ndarray] = []
    keys: list[np.ndarray] = []
    asking, asked = np.zeros((2, owned.sum()), dtype=np.int64)
    # Rows of like length attend together, those that have all of themselves apart from those that share a beginning.
    kinds = (begins > 0) * 100 + np.ceil(np.log(lengths) / np.log(STEP)).astype(int)
    for chosen in (np.flatnonzero(kinds == kind) for kind in np.unique(kinds)):
        begin, length = begins[chosen, None], lengths[chosen, None]
        query, key = places[: owned[chosen].max()], places[: length.max()]
        # Queries beyond the end of a row, of which nothing is used, are its last token once more.
        position = np.minimum(begin + query, length - 1)
        masks.append(torch.from_numpy((key <= position[:, :, None]) & (key < length[:, :, None])))
        for some, inside, known, where in (
            (queries, begin + query < length, starts[chosen, None] + position - begin, asking),
            (keys, key < length, index[chosen, : len(key)], asked),
        ):
            where[known[inside]] = sum(map(len, some)) + np.flatnonzero(inside)
            some.append(known.flatten())
    names = {name for one in media for name in one} if begins.any() else set()
    return Packing(
        torch.from_numpy(np.flatnonzero(own)),
        torch.from_numpy(index),
        masks,
        torch.from_numpy(np.concatenate(queries)),
        torch.from_numpy(np.concatenate(keys)),
        torch.from_numpy(asking),
        None if begins.any() else torch.from_numpy(asked),
        {name: _entries(media, name, begins) for name in names},
        regular=bool(own.all()),
    )


def _in_common(rows: Sequence[np.ndarray], media: Sequence[dict[str, Tensor]], marks: set[int], b: int) -> int:
    """How many tokens row ``b`` takes over from the row before it."""
    row, before = rows[b], rows[b - 1]
    most = min(len(row) - 1, len(before))
    same = row[:most] == before[:most]
    count = most if same.all() else int(same.argmin())
    if media[b]:
        others = media[b - 1]
        equal = media[b].keys() == others.keys() and all(
            one is others[name] or torch.equal(one, others[name]) for name, one in media[b].items()
        )
        if not equal or np.isin(row[count:], list(marks)).any():
            return 0
    return count if count >= WORTH else 0


def _entries(media: Sequence[dict[str, Tensor]], name: str, begins: np.ndarray) -> Tensor:
    """Which entries of a media tensor of the whole batch belong to rows that have them for themselves."""
    counts = np.array([len(one[name]) if name in one else 0 for one in media])
    return torch.from_numpy(np.flatnonzero(np.repeat(begins == 0, counts)))
