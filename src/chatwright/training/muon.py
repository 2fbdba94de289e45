"""Muon: momentum that is made orthogonal before it is taken; the kernels of a convolution as one matrix.

Jordan et al., https://kellerjordan.github.io/posts/muon; scaled so that AdamW's learning rates carry over (Liu et al.,
https://arxiv.org/abs/2502.16982).
"""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from chatwright.models.precision import multiplies_bf16
from chatwright.training import distributed

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
TOGETHER = 2**22  # elements; larger matrices fill the machine one by one


class Muon(torch.optim.Optimizer):
    """What `torch.optim.Muon` with ``adjust_lr_fn="match_rms_adamw"`` does, matrices of one shape at once: to the bit
    on devices that multiply bf16, in which it computes; on others in fp32.

    Args:
        groups: of matrices [M, N] or kernels [M, ...]; those of several processes are orthogonalised whole, by each.
        lr: at its peak. weight_decay: of all of them. momentum: part of it that stays from one step to the next.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, weight_decay: float = 0.1, momentum: float = 0.95
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            alike: defaultdict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for shape, parameters in alike.items():
                count = max(1, TOGETHER // shape.numel())
                for start in range(0, len(parameters), count):
                    self._step(parameters[start : start + count], group)

    def _step(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        grads = [distributed.local(p.grad) for p in parameters if p.grad is not None]
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        buffers = [distributed.local(momentum) for momentum in momenta]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, buffers, group["momentum"])
        whole = torch.stack([_whole(update, like) for update, like in zip(updates, momenta, strict=True)])
        flat = orthogonal(whole.flatten(2)).to(whole.dtype)
        steps = [_part(step, like) for step, like in zip(flat.reshape(whole.shape), momenta, strict=True)]
        weights = [distributed.local(parameter) for parameter in parameters]
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, steps, alpha=-group["lr"] * 0.2 * math.sqrt(max(flat.shape[1:])))


def orthogonal(matrices: Tensor) -> Tensor:
    """[B, M, N] with their singular values brought near 1 by Newton-Schulz iterations; in bf16 if the device has it."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    states = matrices.bfloat16() if multiplies_bf16(matrices.device) else matrices.float()
    states = states.mT if tall else states
    lengths = torch.stack([one.norm() for one in states])
    states = states / lengths.clamp(min=1e-7)[:, None, None]
    for _ in range(ITERATIONS):
        gram = states @ states.mT
        states = torch.baddbmm(states, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), states, beta=a)
    return states.mT if tall else states


def _whole(part: Tensor, like: Tensor) -> Tensor:
    """This process' part of a matrix that is spread as ``like``, or the matrix, in full."""
    if not isinstance(like, DTensor):
        return part
    spread = DTensor.from_local(part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
    return spread.full_tensor()


def _part(whole: Tensor, like: Tensor) -> Tensor:
    """What of a matrix, which all processes have, belongs to this one."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.contiguous(), like.device_mesh, like.placements, src_data_rank=None).to_local()
