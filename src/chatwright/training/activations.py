"""Activation checkpointing: what a layer computes is forgotten and computed once more when its gradient is
(Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", https://arxiv.org/abs/1604.06174).

Selective (Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models",
https://arxiv.org/abs/2205.05198) keeps what linear layers give, which is dear to compute, and forgets the rest: norms,
activation functions, and attention.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers.modeling_layers import GradientCheckpointingLayer

from chatwright.errors import ChatwrightError
from chatwright.objectives.base import Objective
from chatwright.training.distributed import repeated_layers

KEPT = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}  # what linear layers come down to


@contextmanager
def checkpointed(objective: Objective, setting: str) -> Iterator[None]:
    """Within it the decoder layers of the objective's models keep none of their activations, or few.

    Losses and gradients stay the same, to the bit.

    Args:
        setting: none, selective or full.

    Raises:
        ChatwrightError: the setting is not known, or a model's layers cannot be checkpointed.
    """
    if setting not in ("none", "selective", "full"):
        raise ChatwrightError(f"activation_checkpointing {setting!r} is not known; use none, selective or full")
    layers: list[Any] = list(repeated_layers(objective)) if setting != "none" else []
    for layer in layers:
        if not isinstance(layer, GradientCheckpointingLayer):
            raise ChatwrightError(
                f"{type(layer).__name__} layers cannot be checkpointed; set activation_checkpointing to none"
            )
    once_more = partial(checkpoint, use_reentrant=False)
    if setting == "selective":
        once_more = partial(once_more, context_fn=partial(create_selective_checkpoint_contexts, _policy))
    for layer in layers:
        layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, once_more
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = False
            del layer._gradient_checkpointing_func


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
