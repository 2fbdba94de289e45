"""The cache of keys and values while answers are written."""

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

GROWTH = 1.5


class RoomyLayer(DynamicLayer):
    """Keys and values in memory reserved ahead, so that a token is written in place.

    `DynamicLayer` copies everything into new memory for every token, which took 60% of the time for 256 rows of a small
    model on a CPU.
    """

    def __init__(self, room: int):
        super().__init__()
        self.room = room

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append [B, heads, T, width] and give all so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.length = 0
            self.key_store, self.value_store = key_states[:, :, :0], value_states[:, :, :0]
        start, end = self.length, self.length + key_states.shape[2]
        if end > self.key_store.shape[2]:
            size = max(end + self.room, int(GROWTH * self.key_store.shape[2]))
            self.room = 0
            self.key_store = _enlarged(self.key_store, start, size)
            self.value_store = _enlarged(self.value_store, start, size)
        self.key_store[:, :, start:end] = key_states
        self.value_store[:, :, start:end] = value_states
        self._show(end)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the given rows: some, all, or some repeated."""
        self.key_store = self.key_store.index_select(0, beam_idx)
        self.value_store = self.value_store.index_select(0, beam_idx)
        self._show(self.length)

    def _show(self, length: int) -> None:
        self.length = length
        self.keys, self.values = self.key_store[:, :, :length], self.value_store[:, :, :length]


def roomy_cache(config: PreTrainedConfig, room: int) -> DynamicCache:
    """The model's own kind of cache, its plain layers with room for so many tokens after the prompt.

    Layers of other kinds (sliding windows, recurrent states) do not grow and stay as they are.
    """
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _enlarged(store: Tensor, length: int, size: int) -> Tensor:
    larger = store.new_empty(*store.shape[:2], size, store.shape[3])
    larger[:, :, :length] = store[:, :, :length]
    return larger
