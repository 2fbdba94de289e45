"""The cache of keys and values of rows that come and go while answers are written."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

GROWTH = 1.5
ROOM = 128  # places reserved ahead at first: most answers end long before the longest that is allowed


@dataclass
class Window:
    """The places that the rows occupy. Row i begins at ``begins[i]``; all of them end at ``end``."""

    begins: list[int] = field(default_factory=list)
    end: int = 0

    @property
    def start(self) -> int:
        return min(self.begins, default=self.end)

    @property
    def width(self) -> int:
        return self.end - self.start


class SlotLayer(DynamicLayer):
    """Keys and values in memory that is reserved ahead: row i in slot i, and every token written in place.

    What lies in a slot before its row begins is hidden by the attention mask. Layers with a sliding window keep all
    places too: their mask hides what is out of the window.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, window: Window):
        super().__init__()
        self.window = window
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write [rows, heads, T, width] behind the end and give everything from the start of the window."""
        rows, start, end = len(key_states), self.window.start, self.window.end
        after = end + key_states.shape[2]
        self.keys[:rows, :, end:after] = key_states
        self.values[:rows, :, end:after] = value_states
        return self.keys[:rows, :, start:after], self.values[:rows, :, start:after]

    def get_seq_length(self) -> int:
        return self.window.width

    def move(self, slots: int, places: int, to: int, like: Tensor) -> None:
        """Into new memory of so many slots and places, the window to the place ``to``.

        It is zeroed: what the mask hides is multiplied by zero, which does not hide what is not a number. ``like`` is a
        tensor of the same kind.
        """
        rows, start, end = len(self.window.begins), self.window.start, self.window.end
        keys, values = (like.new_zeros(slots, like.shape[1], places, like.shape[3]) for _ in range(2))
        if rows:
            keys[:rows, :, to : to + end - start] = self.keys[:rows, :, start:end]
            values[:rows, :, to : to + end - start] = self.values[:rows, :, start:end]
        self.keys, self.values = keys, values


class SlotCache:
    """The cache of a model for rows that come and go.

    A row that comes is written into the next free slot, in front of the common end; when one goes, the last row moves
    into its slot. So no other row is copied, and attention reaches over the longest row alone.

    ``shared`` is False for models with layers of other kinds, such as recurrent states: their rows come together.
    ``windowed`` is True where some layers see the latest tokens alone, counted by places.
    """

    def __init__(self, config: PreTrainedConfig):
        self.config = config
        self.window = Window()
        self.cache = DynamicCache(config=config)
        self.windowed = any(isinstance(layer, DynamicSlidingWindowLayer) for layer in self.cache.layers)
        self.cache.layers = [
            SlotLayer(self.window) if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) else layer
            for layer in self.cache.layers
        ]
        self.slots = self.places = 0

    @property
    def shared(self) -> bool:
        return all(isinstance(layer, SlotLayer) for layer in self.cache.layers)

    def for_prompts(self, known: Sequence[list[Tensor]] = ()) -> DynamicCache:
        """A cache to read prompts into, which `enter` then takes over; nothing in it is forgotten.

        Args:
            known: of every prompt the states of its beginning, as `states` gives them, [] where it has none; they stand
                in front of what is read, at the right.
        """
        cache = DynamicCache(config=self.config)
        cache.layers = [
            DynamicLayer() if isinstance(own, SlotLayer) else other
            for own, other in zip(self.cache.layers, cache.layers, strict=True)
        ]
        if any(known):
            longest = max(states[0].shape[2] for states in known if states)
            for place, layer in enumerate(cache.layers):
                like = next(states[place] for states in known if states)
                both = like.new_zeros(2, len(known), like.shape[1], longest, like.shape[3])
                for row, states in enumerate(known):
                    if states:
                        both[:, row, :, longest - states[place].shape[2] :] = states[place]
                layer.update(*both)
        return cache

    def states(self, slot: int) -> list[Tensor]:
        """Copies of a row's keys and values: of every layer [2, heads, P, width]."""
        used = slice(self.window.begins[slot], self.window.end)
        layers = [layer for layer in self.cache.layers if isinstance(layer, SlotLayer)]
        return [torch.stack((layer.keys[slot, :, used], layer.values[slot, :, used])) for layer in layers]

    def enter(self, prompts: DynamicCache, sources: Sequence[int], lengths: Sequence[int]) -> None:
        """Let rows come: new row j is row ``sources[j]`` of the cache of left-padded prompts, ``lengths[j]`` long."""
        window, rows = self.window, len(self.window.begins)
        longest = max(lengths)
        if not rows or rows + len(sources) > self.slots or longest > window.end:
            self._move(rows + len(sources), longest, prompts)
        chosen = torch.tensor(sources)
        for place, (own, other) in enumerate(zip(self.cache.layers, prompts.layers, strict=True)):
            if isinstance(own, SlotLayer):
                for store, given in ((own.keys, other.keys), (own.values, other.values)):
                    picked = given[:, :, given.shape[2] - longest :].index_select(0, chosen.to(given.device))
                    store[rows : rows + len(sources), :, window.end - longest : window.end] = picked
            else:
                other.reorder_cache(chosen)
                self.cache.layers[place] = other
        window.begins += [window.end - length for length in lengths]

    def leave(self, slots: Sequence[int]) -> list[int]:
        """Let the rows in ``slots`` go.

        Returns:
            For every slot that is still occupied, where its row was before.
        """
        window = self.window
        order = list(range(len(window.begins)))
        for slot in sorted(slots, reverse=True):
            last = len(window.begins) - 1
            if slot != last:
                used = slice(window.begins[last], window.end)
                for layer in self.cache.layers:
                    if isinstance(layer, SlotLayer):
                        layer.keys[slot, :, used] = layer.keys[last, :, used]
                        layer.values[slot, :, used] = layer.values[last, :, used]
                window.begins[slot], order[slot] = window.begins[last], order[last]
            window.begins.pop()
            order.pop()
        for layer in self.cache.layers:
            if not isinstance(layer, SlotLayer) and order:
                layer.reorder_cache(torch.tensor(order))
        return order

    def mask(self, device: torch.device) -> Tensor | None:
        """[rows, width + 1] of 0 and 1, the next token included; None where nothing is to be hidden."""
        window = self.window
        if all(begin == window.start for begin in window.begins):
            return None
        places = torch.arange(window.start, window.end + 1, device=device)
        return (places >= torch.tensor(window.begins, device=device)[:, None]).long()

    @contextmanager
    def next_token(self) -> Iterator[DynamicCache]:
        """What a model takes that reads one more token of every row."""
        if self.window.end == self.places:
            self._move(self.slots, 0, self.cache)
        yield self.cache
        self.window.end += 1

    def _move(self, slots: int, longest: int, like: DynamicCache) -> None:
        """Make room for so many slots, a prompt so long in front of the end, and tokens behind it."""
        window = self.window
        to = max(0, longest - window.width)
        end = to + window.width
        self.slots = max(slots, self.slots) if window.begins else slots
        self.places = max(end + ROOM, int(GROWTH * end))
        for own, other in zip(self.cache.layers, like.layers, strict=True):
            if isinstance(own, SlotLayer):
                own.move(self.slots, self.places, to, other.keys)
        window.begins[:] = [begin - window.start + to for begin in window.begins]
        window.end = end


def close_gaps(cache: DynamicCache, known: Sequence[int], read: Sequence[int]) -> None:
    """Move the known beginning of every prompt next to what was read after it, padded on the left, behind the longest.

    Args:
        known: tokens of the beginnings. read: tokens that were read.
    """
    end = max(known)
    for row, (before, after) in enumerate(zip(known, read, strict=True)):
        if before and (gap := max(read) - after):
            for layer in cache.layers:
                for store in (layer.keys, layer.values):
                    store[row, :, end - before + gap : end + gap] = store[row, :, end - before : end].clone()


def bytes_per_token(model: PreTrainedModel) -> int:
    """What the keys and values of one token take in all layers, by the model's configuration."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize
