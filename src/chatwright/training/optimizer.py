"""Optimisers and the course of the learning rate."""

import math
from collections import defaultdict

import torch
from torch import nn

from chatwright.errors import ChatwrightError
from chatwright.objectives.base import Objective
from chatwright.training.muon import Muon


def make_optimizers(
    objective: Objective, name: str, learning_rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the hidden matrices and convolutions and AdamW for the rest.

    Groups of parameters carry a ``factor`` on the learning rate, which the objective decides.

    Args:
        objective: what is trained; parameters without ``requires_grad`` are left alone.
        name: "adamw" (Loshchilov and Hutter, https://arxiv.org/abs/1711.05101) or "muon" (`chatwright.training.muon`).
        learning_rate: at its peak.
        weight_decay: of matrices only; norms, biases and embeddings are not decayed.
    """
    if name not in ("adamw", "muon"):
        raise ChatwrightError(f"optimizer {name!r} is not known; use adamw or muon")
    embeddings = {id(m.weight) for m in objective.modules() if isinstance(m, nn.Embedding)}
    hidden: defaultdict[float, list[nn.Parameter]] = defaultdict(list)
    others: defaultdict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for path, parameter in objective.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = objective.factor(path)
        matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
        rows, columns = (len(parameter), parameter[0].numel()) if matrix else (1, 1)
        if name == "muon" and min(rows, columns) > 1 and not path.endswith("lm_head.weight"):
            hidden[factor].append(parameter)
        else:
            others[factor, weight_decay if matrix else 0.0].append(parameter)
    optimizers: list[torch.optim.Optimizer] = []
    if others:
        groups = [{"params": some, "factor": factor, "weight_decay": decay} for (factor, decay), some in others.items()]
        optimizers.append(torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True))
    if hidden:
        groups = [{"params": some, "factor": factor} for factor, some in hidden.items()]
        optimizers.append(Muon(groups, learning_rate, weight_decay))
    return optimizers


def schedule(step: int, steps: int, warmup: float, decay: str) -> float:
    """Factor on the learning rate at ``step`` of ``steps``: a linear rise over the ``warmup`` part, then the decay.

    Args:
        decay: "cosine" to zero, "linear" to zero, "constant", or "wsd" (constant, then linear to zero over the last
            fifth; Hu et al., https://arxiv.org/abs/2404.06395).
    """
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    part = (step - rise + 1) / max(1, steps - rise)
    factors = {
        "cosine": 0.5 * (1 + math.cos(math.pi * part)),
        "linear": 1 - part,
        "constant": 1.0,
        "wsd": min(1.0, (1 - part) / 0.2),
    }
    if decay not in factors:
        raise ChatwrightError(f"decay {decay!r} is not known; use one of {', '.join(factors)}")
    return max(factors[decay], 1e-3)
