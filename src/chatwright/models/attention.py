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
    states = [one[0].transpose(0, 1) for one in (query, key, value)]  # [S, H or G, D], as they lie in memory
    if packing.regular:
        (mask,) = packing.masks
        query, key, value = (one.unflatten(0, mask.shape[:2]) for one in states)
        return _attend(query, key, value, mask, scale, dropout).flatten(0, 1).unsqueeze(0), None
    asking = _at(states[0], packing.queries, packing.asking)
    asked, told = (_at(one, packing.keys, packing.asked) for one in states[1:])
    counts = [[mask.shape[0] * mask.shape[axis] for mask in packing.masks] for axis in (1, 2)]
    parts = zip(asking.split(counts[0]), asked.split(counts[1]), told.split(counts[1]), packing.masks, strict=True)
    out = []
    for query, key, value, mask in parts:
        query, key, value = (one.unflatten(0, (len(mask), -1)) for one in (query, key, value))
        out.append(_attend(query, key, value, mask, scale, dropout).flatten(0, 1))
    return torch.cat(out).index_select(0, packing.asking).unsqueeze(0), None


def _at(states: Tensor, places: Tensor, back: Tensor | None) -> Tensor:
    """[S, H, D] at places [M] -> [M, H, D]; ``back`` [S] is where each is used, if it is used only once."""
    return states.index_select(0, places) if back is None else _Rearranged.apply(states, places, back)


class _Rearranged(torch.autograd.Function):
    """States at places, with a gradient that is looked up where they are used: to add it up takes many times as long.

    What stands at other places than ``back`` is padding, whose gradient is zero.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, places: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return states.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].index_select(0, *ctx.saved_tensors), None, None


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, dropout: float) -> Tensor:
    """[N, Q, H, D] of queries [N, Q, H, D], keys and values [N, K, G, D], and a mask [N, Q, K]."""
    heads, groups = query.shape[2], key.shape[2]
    if query.device.type != "cpu" or key.shape[1] > SHORT:
        out = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            mask.unsqueeze(1),
            dropout,
            scale=scale,
            enable_gqa=heads > groups,
        )
        return out.transpose(1, 2)
    # The queries of all heads that share their keys stand one below the other: no key is copied.
    together = query.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    scores = (together * scale) @ key.permute(0, 2, 3, 1)
    scores.masked_fill_(~mask.repeat(1, heads // groups, 1).unsqueeze(1), float("-inf"))
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32), dropout).to(value.dtype)
    out = weights @ value.transpose(1, 2)
    return out.unflatten(2, (heads // groups, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
