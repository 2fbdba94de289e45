"""In which numbers a model computes fastest."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from chatwright.errors import ChatwrightError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16}  # int8: of what is between products
WIDTH = 1024  # of the trial's matrices


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware. A processor that does not takes tens to hundreds of times as long
    as for fp32, too long even for a trial."""
    if device.type != "cpu":
        return True
    known = torch.cpu.get_capabilities()
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def dtype_of(precision: str, device: torch.device, rows: int) -> torch.dtype:
    """The dtype for a model that writes so many answers together.

    Args:
        precision: fp32, bf16, int8 (linear layers of 8 bits, all else bf16), or auto: bf16 on a GPU, and on a CPU where
            it multiplies matrices faster.

    Raises:
        ChatwrightError: it is none of them.
    """
    if precision == "auto":
        return torch.bfloat16 if device.type != "cpu" or (multiplies_bf16(device) and _faster(rows)) else torch.float32
    if precision not in DTYPES:
        raise ChatwrightError(f"precision {precision!r} is not known; use auto, fp32, bf16 or int8")
    return DTYPES[precision]


@contextmanager
def cast(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within it the model's parameters are of another dtype; afterwards they are what they were, to the bit."""
    before = [(parameter, parameter.data) for parameter in model.parameters()]
    for parameter, data in before:
        parameter.data = data.to(dtype)
    try:
        yield
    finally:
        for parameter, data in before:
            parameter.data = data


@torch.inference_mode()
def _faster(rows: int) -> bool:
    """Whether bf16 multiplies a batch with a feed-forward layer faster; the best of several trials each, in turn."""
    seconds = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    weights = {dtype: torch.zeros(4 * WIDTH, WIDTH, dtype=dtype) for dtype in seconds}
    for _ in range(10):
        for dtype, weight in weights.items():
            batch = torch.zeros(rows, WIDTH, dtype=dtype)
            begun = time.perf_counter()
            torch.nn.functional.linear(batch, weight)
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - begun)
    return seconds[torch.bfloat16] < 0.9 * seconds[torch.float32]
