"""What a model reads of a conversation: a row of tokens with its media, and rows padded into a batch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from chatwright.data.packing import pack

# The names under which models ask of every token whether it is a word or stands for a picture, a video or a sound.
TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")


@dataclass
class Rendered:
    """One row for a model.

    input_ids: token ids; loss_mask: True where the token is to be predicted; media: keyword arguments of the model
    such as ``pixel_values`` [pictures, C, H, W], empty for text; begun: True for a prompt that ends with the beginning
    of the answer.
    """

    input_ids: list[int]
    loss_mask: list[bool]
    media: dict[str, Tensor] = field(default_factory=dict)
    begun: bool = False

    def __len__(self) -> int:
        return len(self.input_ids)

    @cached_property
    def digest(self) -> bytes:
        """What identifies a row by its tokens and its media."""
        return self._digest(np.asarray(self.input_ids, dtype=np.int64).tobytes())

    @cached_property
    def media_digest(self) -> bytes:
        """What identifies its media."""
        return self._digest(b"")

    def _digest(self, tokens: bytes) -> bytes:
        digest = hashlib.blake2b(tokens, digest_size=16)
        for name in sorted(self.media):
            digest.update(name.encode())
            digest.update(self.media[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.digest()


def collate(rows: Sequence[Rendered], pad_id: int, marks: set[int], side: Literal["right", "left"]) -> dict[str, Any]:
    """Pad rows into a batch.

    Args:
        rows: B rows, T the longest.
        pad_id: the token that pads. marks: the tokens that stand for media.
        side: where padding goes: "right" to train, "left" to generate.

    Returns:
        ``input_ids``, ``attention_mask``, ``position_ids`` (counted over real tokens), ``loss_mask``, each [B, T],
        the media of all rows, concatenated, and, padded on the right, ``packing``: the same without padding.
    """
    lengths = np.array([len(row) for row in rows])
    places = np.arange(lengths.max())
    real = places >= lengths.max() - lengths[:, None] if side == "left" else places < lengths[:, None]
    ids = np.full(real.shape, pad_id, dtype=np.int64)
    ids[real] = np.fromiter(chain.from_iterable(row.input_ids for row in rows), np.int64, lengths.sum())
    loss = np.zeros(real.shape, dtype=bool)
    loss[real] = np.fromiter(chain.from_iterable(row.loss_mask for row in rows), bool, lengths.sum())
    media = {
        key: torch.cat([row.media[key] for row in rows if key in row.media])
        for key in sorted({key for row in rows for key in row.media})
    }
    attention = torch.from_numpy(real.astype(np.int64))
    batch: dict[str, Any] = {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": attention,
        "position_ids": (attention.cumsum(-1) - 1).clamp_min(0),
        "loss_mask": torch.from_numpy(loss),
        **media,
    }
    if side == "right":
        batch["packing"] = pack([row.input_ids for row in rows], [row.media for row in rows], marks, len(places))
    return batch
