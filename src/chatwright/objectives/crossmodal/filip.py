"""Yao et al., FILIP: Fine-grained Interactive Language-Image Pre-Training, https://arxiv.org/abs/2111.07783.

The language side stays as pretraining left it, as the image side does in LiT (Zhai et al., https://arxiv.org/abs/2111.07991):
words are the language model's own embeddings, so that patches come to lie where the model already looks for words.
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


class FILIP(Objective):
    """Pull each picture's patches towards the words of its caption, away from other captions of the micro-batch.

    Negatives are the other captions, so unlike other objectives this one does change when a batch is split; give it
    whole batches. Captions of the very same words are no negatives of each other.

    Args:
        model: the assistant; its eye and projector are trained.
        renderer: saved beside the model.
    """

    def __init__(self, model: FastVlmForConditionalGeneration, renderer: Renderer) -> None:
        super().__init__()
        self.model, self.renderer = model, renderer
        embeddings = model.get_input_embeddings().weight.detach()
        self.centre: Tensor
        self.register_buffer("centre", embeddings.mean(0), persistent=False)
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))

    def loss(self, batch: dict[str, Any]) -> Loss:
        """``batch``: ``pixel_values`` [N, 3, H, W] and ``captions`` bool [N, V], the tokens that each caption has."""
        return self.contrast(self.patches(batch["pixel_values"]), batch["captions"])

    def patches(self, pixels: Tensor) -> Tensor:
        """What the model sees in each patch, of length one: [N, P, D]."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return F.normalize((self.model.get_image_features(pixels).pooler_output - self.centre).float(), dim=-1)

    def words(self, present: Tensor) -> Tensor:
        """The embeddings of the tokens that are ``present``, bool [V], of length one: [W, D]."""
        return F.normalize((self.model.get_input_embeddings().weight[present] - self.centre).float(), dim=-1)

    def contrast(self, patches: Tensor, captions: Tensor) -> Loss:
        """Pictures against captions, both ways; ``patches`` as `patches` gives them."""
        present = captions.any(0)
        captions = captions[:, present]
        fit = late_interaction(patches, self.words(present), captions)
        same = (captions.unsqueeze(0) == captions.unsqueeze(1)).all(-1).fill_diagonal_(False)
        fit = (self.log_scale.exp().clamp(max=100) * fit).masked_fill(same, -torch.inf)
        target = torch.arange(len(fit), device=fit.device)
        total = F.cross_entropy(fit, target, reduction="sum") + F.cross_entropy(fit.T, target, reduction="sum")
        weight = torch.tensor(float(len(fit)), device=total.device)
        return Loss(total / 2, weight, {"accuracy": ((fit.argmax(-1) == target).sum(), weight)})

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.renderer.save(folder)


@torch.no_grad()
def speak_as_loud(model: FastVlmForConditionalGeneration, pixels: Tensor) -> None:
    """Scale the projector's output so that a patch is as long as a word, which the angles of FILIP leave open.

    Args:
        pixels: [N, 3, H, W], some pictures to measure the patches of.
    """
    patches = model.get_image_features(pixels).pooler_output
    factor = model.get_input_embeddings().weight.norm(dim=-1).mean() / patches.norm(dim=-1).mean()
    last = model.model.multi_modal_projector.linear_2
    last.weight.mul_(factor)
    last.bias.mul_(factor)
