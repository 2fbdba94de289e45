"""Weights laid out for decoding.

Decoding is bound by how fast weights come out of memory. A bfloat16 matrix product on a CPU rearranges them every time;
where there are few rows, as in decoding, that takes about as long as the product itself. Here it is done once. Weights
of 8 bits are half as long to read, and multiplied faster; what they cost in quality is in docs/performance.md.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from chatwright.errors import ChatwrightError

LARGEST = 127  # of a signed integer of 8 bits


@contextmanager
def prepared(model: nn.Module, rows: int, int8: bool = False) -> Iterator[None]:
    """Within it the linear layers of a bfloat16 model on a CPU compute from rearranged copies of their weights.

    Args:
        rows: that are decoded together, mostly.
        int8: copies of 8 bits.

    Raises:
        ChatwrightError: ``int8`` for a model that is elsewhere or computes in other numbers.
    """
    linear = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and (child.weight.dtype, child.weight.device.type) == (torch.bfloat16, "cpu")
    ]
    replaced: list[tuple[nn.Module, str, nn.Linear]] = []
    kind: Callable[[nn.Linear, int], nn.Module] = _Int8 if int8 else _Prepared
    if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        replaced = linear
    if int8 and not replaced:
        raise ChatwrightError("8-bit weights need a CPU that multiplies bfloat16 (AVX-512); use precision fp32 or bf16")
    for parent, name, child in replaced:
        setattr(parent, name, kind(child, rows))
    try:
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)


class _Prepared(nn.Module):
    """Stands in for a linear layer; for inference alone."""

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.arranged = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(inputs, self.arranged, self.bias, "none", [], "")


class _Int8(nn.Module):
    """Stands in for a linear layer: integers of 8 bits times a scale for every output, and inputs so too, with a scale
    for every row (vector-wise quantization; Dettmers et al. 2022, "LLM.int8()", https://arxiv.org/abs/2208.07339,
    section 2.1). A row's result depends on no other row."""

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        weight = linear.weight.detach().float()
        self.scales = _scales(weight).squeeze(1)
        integers = (weight / self.scales.unsqueeze(1)).round_().to(torch.int8)
        self.arranged = torch.ops.onednn.qlinear_prepack(integers, None)
        self.offsets = torch.zeros(len(integers), dtype=torch.int32)

    def forward(self, inputs: Tensor) -> Tensor:
        scales = _scales(inputs)
        integers = (inputs / scales).round_().to(torch.int8)
        out = torch.ops.onednn.qlinear_pointwise(
            integers, 1.0, 0, self.arranged, self.scales, self.offsets, None, 1.0, 0, torch.float32, "none", [], ""
        )
        out = out.mul_(scales)
        return (out if self.bias is None else out.add_(self.bias)).to(inputs.dtype)


def _scales(rows: Tensor) -> Tensor:
    """[..., 1] float32: what the integers of each row are multiplied by."""
    largest = torch.linalg.vector_norm(rows, torch.inf, dim=-1, keepdim=True, dtype=torch.float32)
    return largest.div_(LARGEST).clamp_min_(torch.finfo(torch.float32).tiny)
