import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen3Config
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from chatwright.generation.cache import RoomyLayer, roomy_cache


@given(
    st.integers(0, 9), st.lists(st.one_of(st.integers(1, 7), st.just("rows")), min_size=1, max_size=12), st.integers()
)
def test_it_holds_what_the_growing_layer_of_transformers_holds(room, actions, seed):
    """Through appends of any length, and rows that leave, stay or are repeated."""
    random = torch.Generator().manual_seed(seed % 2**32)
    ours, theirs, rows = RoomyLayer(room), DynamicLayer(), 3
    for action in [2, *actions]:
        if action == "rows":
            chosen = torch.randint(rows, (int(torch.randint(1, 5, (), generator=random)),), generator=random)
            ours.reorder_cache(chosen)
            theirs.reorder_cache(chosen)
            rows = len(chosen)
        else:
            keys, values = torch.randn(2, rows, 2, action, 4, generator=random)
            found, expected = ours.update(keys, values), theirs.update(keys, values)
            assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
        assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)
        assert ours.get_seq_length() == theirs.get_seq_length()


def test_tokens_within_the_room_are_written_in_place():
    layer = RoomyLayer(room=8)
    layer.update(torch.zeros(1, 1, 5, 2), torch.zeros(1, 1, 5, 2))
    before = layer.keys.data_ptr()
    for _ in range(8):
        layer.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    assert layer.keys.data_ptr() == before
    assert layer.keys.sum() == 16


@pytest.mark.parametrize("kind", ["full_attention", "sliding_attention"])
def test_only_plain_layers_are_replaced(kind):
    config = Qwen3Config(
        num_hidden_layers=2, layer_types=["full_attention", kind], use_sliding_window=True, sliding_window=4
    )
    first, second = roomy_cache(config, room=3).layers
    assert isinstance(first, RoomyLayer)
    assert isinstance(second, RoomyLayer if kind == "full_attention" else DynamicSlidingWindowLayer)
