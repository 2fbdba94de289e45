"""Weights laid out for decoding.

Decoding is bound by how fast weights come out of memory. A bfloat16 matrix product on a CPU rearranges them every time;
where there are few rows, as in decoding, that takes about as long as the product itself. Here it is done once. Weights
of 8 bits are read in half the time; what they cost in quality is in docs/performance.md.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

WORTH = 2**21  # weights; of smaller layers, turning the inputs into integers costs more than it saves
LARGEST = 127  # of a signed integer of 8 bits
ZERO = 128  # what stands for zero among the unsigned ones, which processors multiply with signed ones


@contextmanager
def prepared(model: nn.Module, rows: int, int8: bool = False) -> Iterator[None]:
    """Within it the linear layers of a bfloat16 model on a CPU compute from rearranged copies of their weights.

    Args:
        rows: that are decoded together, mostly.
        int8: copies of 8 bits of the large ones.
    """
    replaced = layers_of(model)
    for parent, name, child in replaced:
        small = not int8 or child.weight.numel() < WORTH
        setattr(parent, name, _Prepared(child, rows) if small else _Int8(child))
    try:
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)


def layers_of(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """The linear layers that can be prepared, with the modules that have them under a name."""
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return []
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and (child.weight.dtype, child.weight.device.type) == (torch.bfloat16, "cpu")
    ]


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

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        weight = linear.weight.detach().float()
        largest = _largest(weight)
        integers = (weight * (LARGEST / largest)).round_().to(torch.int8)
        self.arranged = torch.ops.onednn.qlinear_prepack(integers, None)
        self.scales = largest.squeeze(1) / LARGEST**2  # of the weights, and of rows whose largest number is 1
        self.offsets = torch.zeros(len(integers), dtype=torch.int32)
        self.zero = torch.tensor(ZERO + 0.5)  # what is behind the point is cut off

    def forward(self, inputs: Tensor) -> Tensor:
        largest = _largest(inputs)
        integers = torch.addcmul(self.zero, inputs, LARGEST / largest).to(torch.uint8)
        out = torch.ops.onednn.qlinear_pointwise(
            integers, 1.0, ZERO, self.arranged, self.scales, self.offsets, None, 1.0, 0, inputs.dtype, "none", [], ""
        )
        out = out.mul_(largest)
        return out if self.bias is None else out.add_(self.bias)


def _largest(rows: Tensor) -> Tensor:
    """[..., 1] float32: the largest magnitude of each row."""
    largest = torch.linalg.vector_norm(rows, torch.inf, dim=-1, keepdim=True, dtype=torch.float32)
    return largest.clamp_min_(torch.finfo(torch.float32).tiny)
