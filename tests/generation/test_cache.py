"""The cache of rows that come and go, against rows that are kept apart."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, Lfm2Config, Qwen3Config

from chatwright.generation.cache import ROOM, SlotCache, bytes_per_token

CONFIG = Qwen3Config(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=16, head_dim=4)
ACTIONS = st.one_of(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),  # rows of such lengths come
    st.integers(0, 3),  # the rows at places divisible by this go
    st.sampled_from(["token"] * 3 + ["many"]),
)


def layers_of(rows: list[torch.Tensor], cache: SlotCache) -> None:
    """Every row is where the cache says, token for token, in every layer."""
    window = cache.window
    assert len(window.begins) == len(rows)
    for number, layer in enumerate(cache.cache.layers):
        for slot, row in enumerate(rows):
            assert window.end - window.begins[slot] == row.shape[2]
            assert torch.equal(layer.keys[slot, :, window.begins[slot] : window.end], row[number])
            assert torch.equal(layer.values[slot, :, window.begins[slot] : window.end], -row[number])


@settings(deadline=None)
@given(st.lists(ACTIONS, min_size=1, max_size=12))
def test_rows_that_come_and_go_keep_what_they_hold(actions):
    random = torch.Generator().manual_seed(0)
    cache, rows = SlotCache(CONFIG), []  # a row is [layers, heads, tokens, width]; values are minus the keys
    for action in [[3], *actions]:
        if isinstance(action, list):
            longest = max(action)
            prompts = cache.for_prompts()
            keys = torch.randn(2, len(action), 2, longest, 4, generator=random)
            for layer, given_keys in zip(prompts.layers, keys, strict=True):
                layer.update(given_keys, -given_keys)
            sources = [place for place in range(len(action)) for _ in range(2)]  # two samples of each prompt
            cache.enter(prompts, sources, [action[place] for place in sources])
            rows += [keys[:, place, :, longest - action[place] :] for place in sources]
        elif isinstance(action, int):
            going = [slot for slot in range(len(rows)) if slot % (action + 1) == 0]
            rows = [rows[slot] for slot in cache.leave(going)]
        elif rows:
            for _ in range(1 if action == "token" else ROOM):
                mask = cache.mask(torch.device("cpu"))
                keys = torch.randn(2, len(rows), 2, 1, 4, generator=random)
                with cache.next_token() as taken:
                    before = taken.get_seq_length()
                    seen = [layer.update(key, -key) for layer, key in zip(taken.layers, keys, strict=True)]
                rows = [torch.cat([row, keys[:, slot]], 2) for slot, row in enumerate(rows)]
                assert seen[0][0].shape[2] == before + 1 == max(row.shape[2] for row in rows)
                lengths = [before + 1] * len(rows) if mask is None else mask.sum(1).tolist()
                assert lengths == [row.shape[2] for row in rows]
        layers_of(rows, cache)


def test_a_token_is_written_in_place_and_a_leaver_costs_one_row():
    cache = SlotCache(CONFIG)
    prompts = cache.for_prompts()
    for layer in prompts.layers:
        layer.update(torch.zeros(4, 2, 5, 4), torch.zeros(4, 2, 5, 4))
    cache.enter(prompts, [0, 1, 2, 3], [5, 5, 5, 5])
    before = cache.cache.layers[0].keys.data_ptr()
    for _ in range(ROOM):
        with cache.next_token() as taken:
            taken.layers[0].update(torch.ones(4, 2, 1, 4), torch.ones(4, 2, 1, 4))
    assert cache.leave([1]) == [0, 3, 2]
    assert cache.cache.layers[0].keys.data_ptr() == before


def test_layers_of_other_kinds_are_not_shared():
    config = Lfm2Config(num_hidden_layers=2, layer_types=["conv", "full_attention"], hidden_size=16)
    assert SlotCache(CONFIG).shared and not SlotCache(config).shared
    sliding = Qwen3Config(num_hidden_layers=1, layer_types=["sliding_attention"], use_sliding_window=True)
    assert SlotCache(sliding).shared


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bytes_of_a_token_are_those_of_the_cache(dtype, language_model):
    model = language_model.to(dtype)
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.tensor([[70, 71, 72]]), past_key_values=cache)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert bytes_per_token(model) * 3 == held
