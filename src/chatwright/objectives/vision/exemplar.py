"""Dosovitskiy et al., Discriminative Unsupervised Feature Learning with Exemplar CNNs, https://arxiv.org/abs/1406.6909."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from chatwright.objectives.base import Loss, Objective


class Exemplar(Objective):
    """Every picture is a class of its own, and the eye must tell from any random view which picture it shows.

    Views are laid out in mosaics, so that the eye learns to see each thing amid others, as it will in real pictures;
    the classifier reads the mean of the features under each tile.

    Args:
        eye: a convolutional backbone whose last hidden state is [B, C, H, W].
        pictures: how many there are to tell apart.
        tiles: views in a row and in a column of a mosaic.
    """

    def __init__(self, eye: PreTrainedModel, pictures: int, tiles: int) -> None:
        super().__init__()
        self.eye, self.tiles = eye, tiles
        self.classifier = nn.Linear(eye.config.hidden_size, pictures)

    def loss(self, batch: dict[str, Any]) -> Loss:
        """``batch``: ``views`` [N, 3, H, W], N a multiple of tiles², and ``picture`` [N], which picture each shows."""
        seen = self.eye(mosaic(batch["views"], self.tiles)).last_hidden_state
        features = F.adaptive_avg_pool2d(seen, self.tiles).permute(0, 2, 3, 1).flatten(0, 2)
        logits = self.classifier(features).float()
        total = F.cross_entropy(logits, batch["picture"], reduction="sum")
        weight = torch.tensor(float(len(logits)), device=total.device)
        return Loss(total, weight, {"accuracy": ((logits.argmax(-1) == batch["picture"]).sum(), weight)})

    def save(self, folder: Path) -> None:
        self.eye.save_pretrained(folder)


def mosaic(views: Tensor, tiles: int) -> Tensor:
    """Lay [N, C, H, W] out as [N / tiles², C, tiles H, tiles W], each picture's tiles row by row."""
    count, channels, height, width = views.shape
    rows = views.view(-1, tiles, tiles, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    whole = rows.reshape(count // tiles**2, channels, tiles * height, tiles * width)
    return whole.contiguous(memory_format=torch.channels_last)
