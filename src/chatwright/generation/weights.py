"""Weights laid out for decoding.

Decoding is bound by how fast weights come out of memory. A bfloat16 matrix product on a CPU rearranges them every time;
where there are few rows, as in decoding, that takes about as long as the product itself. Here it is done once.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def prepared(model: nn.Module, rows: int) -> Iterator[None]:
    """Within it the linear layers of a bfloat16 model on a CPU compute from rearranged copies of their weights.

    Args:
        rows: that are decoded together, mostly.
    """
    replaced: list[tuple[nn.Module, str, nn.Linear]] = []
    if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        replaced = [
            (parent, name, child)
            for parent in model.modules()
            for name, child in parent.named_children()
            if type(child) is nn.Linear and (child.weight.dtype, child.weight.device.type) == (torch.bfloat16, "cpu")
        ]
    for parent, name, child in replaced:
        setattr(parent, name, _Prepared(child, rows))
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
