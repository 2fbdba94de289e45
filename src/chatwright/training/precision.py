"""In which numbers a model computes while it is trained: the products in bf16 where that is faster, what is learned in
fp32 (Micikevicius et al. 2018, "Mixed Precision Training", https://arxiv.org/abs/1710.03740)."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chatwright.errors import ChatwrightError
from chatwright.files import write
from chatwright.models.precision import multiplies_bf16
from chatwright.training import distributed
from chatwright.training.distributed import Spread


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """For the forward pass: products in bf16, if that is the ``precision``, whatever goes into them.

    Without a cache: the cast weights of a pass without gradients would get theirs after FSDP2 has added up the layer's,
    and a layer that is computed once more would find others than it had.
    """
    return torch.autocast(device.type, torch.bfloat16, precision == "bf16", cache_enabled=False)


@contextmanager
def lowered(module: nn.Module, precision: str) -> Iterator[None]:
    """Within it fp32 parameters are bf16, if that is the ``precision``: nothing is cast between two products, and most
    is half as large. Afterwards they are what they were, with gradients added up in fp32.

    In a world of several, where FSDP2 holds the parameters, they stay fp32. So do those of batch norms: PyTorch has
    none whose weights and statistics differ in kind.
    """
    if precision != "bf16" or distributed.size() > 1:
        yield
        return
    norms = (part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm))
    kept = {parameter for norm in norms for parameter in norm.parameters()}
    before = [(p, p.data) for p in module.parameters() if p.dtype == torch.float32 and p not in kept]
    gradients: dict[Tensor, Tensor] = {}

    def add(parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None:
            gradients[parameter] = gradients[parameter].add_(gradient) if parameter in gradients else gradient.float()

    hooks = [p.register_post_accumulate_grad_hook(add) for p, _ in before if p.requires_grad]
    for parameter, data in before:
        parameter.data = data.bfloat16()
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, data in before:
            parameter.data = data
    for parameter, _ in before:
        parameter.grad = gradients.get(parameter)


def choose(setting: str, state: Path, spread: Spread, batch: dict[str, Any], device: torch.device) -> str:
    """Settle "auto" once a run; remembered in ``state``, so that a resumed run computes the same.

    Raises:
        ChatwrightError: the setting is not known.
    """
    if setting not in ("auto", "fp32", "bf16"):
        raise ChatwrightError(f"precision {setting!r} is not known; use auto, fp32 or bf16")
    if setting != "auto":
        return setting
    if device.type != "cpu":
        return "bf16"
    memo = state / "precision"
    chosen = distributed.agreed(memo.read_text() if memo.exists() else "")
    if not chosen:
        faster = _faster(spread, batch, device) if multiplies_bf16(device) else "fp32"
        chosen = distributed.agreed(faster)
        if distributed.first():
            write(memo, chosen)
    return chosen


def _faster(spread: Spread, batch: dict[str, Any], device: torch.device) -> str:
    """Whichever computes a loss and its gradients faster; nothing of the trial stays."""
    batch = {name: value for name, value in batch.items() if name != "repeated"}
    buffers = {name: buffer.clone() for name, buffer in spread.named_buffers()}
    random = torch.get_rng_state()
    seconds = {"fp32": math.inf, "bf16": math.inf}
    for _ in range(3):
        for choice in seconds:
            begun = time.perf_counter()
            with lowered(spread, choice):
                with autocast(choice, device):
                    loss = spread(batch)
                loss.total.backward()
            seconds[choice] = min(seconds[choice], time.perf_counter() - begun)
            spread.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in spread.named_buffers():
            buffer.copy_(buffers[name])
    torch.set_rng_state(random)
    return "bf16" if seconds["bf16"] < 0.9 * seconds["fp32"] else "fp32"
