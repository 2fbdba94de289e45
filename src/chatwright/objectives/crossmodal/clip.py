"""Radford et al., Learning Transferable Visual Models From Natural Language Supervision, https://arxiv.org/abs/2103.00020.

The language side stays as pretraining left it, as the image side does in LiT (Zhai et al., https://arxiv.org/abs/2111.07991).
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import FastVlmForConditionalGeneration

from chatwright.data.render import Renderer
from chatwright.objectives.base import Loss, Objective


def clip_loss(pictures: Tensor, captions: Tensor, same: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric cross-entropy between N pictures and N captions.

    Args:
        pictures: [N, D]. captions: [N, D], row i describes picture i.
        same: bool [N, N], True where caption j is word for word that of picture i; such pairs are no negatives.
        scale: multiplies the cosine similarities.

    Returns:
        The loss summed over pictures (mean of both directions), and how many pictures find their caption.
    """
    similar = scale * F.normalize(pictures.float(), dim=-1) @ F.normalize(captions.float(), dim=-1).T
    others = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    similar = similar.masked_fill(others, -torch.inf)
    target = torch.arange(len(similar), device=similar.device)
    total = F.cross_entropy(similar, target, reduction="sum") + F.cross_entropy(similar.T, target, reduction="sum")
    return total / 2, (similar.argmax(-1) == target).sum()


class CLIP(Objective):
    """Pull each picture towards its caption, away from the other captions of the micro-batch, and the other way round.

    A picture's embedding is the mean over patches of what the projector makes of them, so the projector already speaks
    in terms of words when the language model first reads its patches.

    Args:
        model: the assistant; its eye and projector are trained.
        renderer: saved beside the model.
        width: of the space in which both meet.
    """

    def __init__(self, model: FastVlmForConditionalGeneration, renderer: Renderer, width: int = 256) -> None:
        super().__init__()
        self.model, self.renderer = model, renderer
        hidden = model.config.text_config.hidden_size
        self.picture_head, self.caption_head = nn.Linear(hidden, width), nn.Linear(hidden, width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def loss(self, batch: dict[str, Any]) -> Loss:
        """``batch``: ``pixel_values`` [N, 3, H, W], ``captions`` [N, hidden] from `caption_features`, ``text`` [N] ids
        that are equal where captions are.
        """
        pixels = batch["pixel_values"].contiguous(memory_format=torch.channels_last)
        patches = self.model.get_image_features(pixels).pooler_output
        same = batch["text"].unsqueeze(0) == batch["text"].unsqueeze(1)
        scale = self.log_scale.exp().clamp(max=100.0)
        total, right = clip_loss(self.picture_head(patches.mean(1)), self.caption_head(batch["captions"]), same, scale)
        weight = torch.tensor(float(len(pixels)), device=total.device)
        return Loss(total, weight, {"accuracy": (right, weight)})

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.renderer.save(folder)


@torch.inference_mode()
def caption_features(model: FastVlmForConditionalGeneration, ids: list[list[int]]) -> Tensor:
    """What the frozen language model makes of each caption: the mean of its word embeddings, [N, hidden]."""
    embedding = model.get_input_embeddings()
    return torch.stack([embedding(torch.tensor(row)).mean(0) for row in ids]).clone()
