"""Attention of packed rows (`chatwright.data.packing`), in the form in which `transformers` takes attention functions.

Where rows are short, plain matrix products are faster on a CPU than SDPA, whose backward pass is slow there.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from chatwright.data.packing import Packing

PACKED = "packed"
# Models whose attention is causal and nothing else, as tests show; others compute their padding along.
DECODERS = ("granite", "llama", "mistral", "olmo2", "qwen2", "qwen3", "smollm3")
CONTAINERS = ("fast_vlm", "llava", "llava_onevision")
SHORT = 256  # tokens


def packs(config: PreTrainedConfig) -> bool:
    """Whether a model of this configuration can compute packed rows."""
    text = config.get_text_config(decoder=True)
    if config is not text and config.model_type not in CONTAINERS:
        return False
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    return text.model_type in DECODERS and window is None and kinds == {"full_attention"}


def use_packing(model: PreTrainedModel) -> None:
    """Let a model compute packed rows, if it can."""
    if packs(model.config):
        # Of the language model alone: a convolutional eye knows no attention and would refuse it.
        model.get_decoder().set_attn_implementation(PACKED)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attention inside the rows of ``packing``; without one that of SDPA.

    Args:
        query: [1, H, S, D], key and value: [1, G, S, D] with G dividing H.

    Returns:
        [1, S, H, D].
    """
    if packing is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **rest
        )
        return out, None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if packing.regular:
        (block,) = packing.blocks
        rows = block.queries.shape
        query, key, value = (one[0].unflatten(1, rows) for one in (query, key, value))
        out = _attend(query, key, value, block.mask, scale, dropout).flatten(1, 2)
    else:
        parts = []
        for block in packing.blocks:
            asking, asked, told = _at(query, block.queries), _at(key, block.keys), _at(value, block.keys)
            parts.append(_attend(asking, asked, told, block.mask, scale, dropout).flatten(1, 2))
        out = torch.cat(parts, 1).index_select(1, packing.outputs)
    return out.transpose(0, 1).unsqueeze(0), None


def _at(states: Tensor, places: Tensor) -> Tensor:
    """[1, H, S, D] at places [N, T] -> [H, N, T, D]."""
    return states[0].index_select(1, places.flatten()).unflatten(1, places.shape)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, dropout: float) -> Tensor:
    """[H, N, Q, D] of queries [H, N, Q, D], keys and values [G, N, K, D], and a mask [N, Q, K]."""
    heads, groups = len(query), len(key)
    if query.device.type != "cpu" or key.shape[2] > SHORT:
        out = F.scaled_dot_product_attention(
            query.transpose(0, 1),
            key.transpose(0, 1),
            value.transpose(0, 1),
            mask.unsqueeze(1),
            dropout,
            scale=scale,
            enable_gqa=heads > groups,
        )
        return out.transpose(0, 1)
    # The queries of all heads that share their keys stand one below the other: no key is copied.
    together = query.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2, 3)
    scores = (together * scale) @ key.transpose(-1, -2)
    scores = scores.unflatten(2, (heads // groups, -1)).masked_fill(~mask.unsqueeze(1), float("-inf"))
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32), dropout).to(value.dtype)
    out = weights.flatten(2, 3) @ value
    return out.unflatten(2, (heads // groups, -1)).transpose(1, 2).flatten(0, 1)


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
