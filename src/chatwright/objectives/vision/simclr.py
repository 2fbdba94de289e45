"""Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, https://arxiv.org/abs/2002.05709."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from chatwright.objectives.base import Loss, Objective


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Normalised temperature-scaled cross-entropy between two views of the same N pictures.

    Args:
        first: [N, D] embeddings of one view. second: [N, D] of the other; row i of both shows picture i.
        temperature: divides the cosine similarities.

    Returns:
        The loss summed over all 2N views, and how many of them are nearest to their partner.
    """
    views = F.normalize(torch.cat([first, second]).float(), dim=-1)
    similar = (views @ views.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(len(views), device=views.device).roll(len(first))
    return F.cross_entropy(similar, partner, reduction="sum"), (similar.argmax(-1) == partner).sum()


class SimCLRProjectionHead(nn.Sequential):
    """The two-layer head on top of the pooled features; thrown away after training."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out))


class SimCLR(Objective):
    """Two views of one picture attract each other, views of different pictures repel.

    Negatives are the other pictures of the micro-batch, so unlike other objectives this one does change when a batch is
    split; give it whole batches.

    Args:
        eye: a backbone whose last hidden state is [B, C, H, W] or [B, N, C].
        temperature: of the similarities.
    """

    def __init__(self, eye: PreTrainedModel, temperature: float) -> None:
        super().__init__()
        self.eye, self.temperature = eye, temperature
        width = eye.config.hidden_size
        self.head = SimCLRProjectionHead(width, 2 * width, 128)

    def loss(self, batch: dict[str, Any]) -> Loss:
        """``batch``: ``first`` and ``second``, each [N, 3, H, W], two views of the same N pictures."""
        pixels = torch.cat([batch["first"], batch["second"]]).contiguous(memory_format=torch.channels_last)
        first, second = self.head(pooled(self.eye(pixels).last_hidden_state)).chunk(2)
        total, right = nt_xent(first, second, self.temperature)
        weight = torch.tensor(2.0 * len(first), device=total.device)
        return Loss(total, weight, {"accuracy": (right, weight)})

    def save(self, folder: Path) -> None:
        self.eye.save_pretrained(folder)


def pooled(features: Tensor) -> Tensor:
    """The mean over places of a feature map [B, C, H, W] or token sequence [B, N, C]: [B, C]."""
    return features.mean((-2, -1)) if features.ndim == 4 else features.mean(1)
