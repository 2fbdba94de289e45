"""Yao et al., FILIP: Fine-grained Interactive Language-Image Pre-Training, https://arxiv.org/abs/2111.07783."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import FastVlmForConditionalGeneration

from chatwright.data.render import Renderer
from chatwright.objectives.base import Loss
from chatwright.objectives.crossmodal.patches import PatchesAndWords


def late_interaction(patches: Tensor, words: Tensor, captions: Tensor) -> Tensor:
    """How well each of N captions fits each of N pictures: the mean over its words of the patch that shows it best.

    Args:
        patches: [N, P, D], of length one. words: [W, D], of length one, every word that occurs.
        captions: bool [N, W], which words each caption has.

    Returns:
        [N, N]: pictures down, captions across.
    """
    best = (patches.flatten(0, 1) @ words.T).view(*patches.shape[:2], -1).amax(1)
    weights = captions.to(best.dtype)
    return best @ (weights / weights.sum(1, keepdim=True)).T


class FILIP(PatchesAndWords):
    """Pull each picture's patches towards the words of its caption, away from other captions of the micro-batch.

    Negatives are the other captions, so unlike other objectives this one does change when a batch is split; give it
    whole batches. Captions of the very same words are no negatives of each other.

    Args:
        model: the assistant; its eye and projector are trained.
        renderer: saved beside the model.
    """

    def __init__(self, model: FastVlmForConditionalGeneration, renderer: Renderer) -> None:
        super().__init__(model, renderer)
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))

    def loss(self, batch: dict[str, Any]) -> Loss:
        """``batch``: ``pixel_values`` [N, 3, H, W] and ``captions`` bool [N, V], the tokens that each caption has."""
        present = batch["captions"].any(0)
        captions = batch["captions"][:, present]
        fit = late_interaction(self.patches(batch["pixel_values"]), self.words(present), captions)
        same = (captions.unsqueeze(0) == captions.unsqueeze(1)).all(-1).fill_diagonal_(False)
        fit = (self.log_scale.exp().clamp(max=100) * fit).masked_fill(same, -torch.inf)
        target = torch.arange(len(fit), device=fit.device)
        total = F.cross_entropy(fit, target, reduction="sum") + F.cross_entropy(fit.T, target, reduction="sum")
        weight = torch.tensor(float(len(fit)), device=total.device)
        return Loss(total / 2, weight, {"accuracy": ((fit.argmax(-1) == target).sum(), weight)})
