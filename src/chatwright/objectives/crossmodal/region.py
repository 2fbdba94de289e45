"""Zhong et al., RegionCLIP: Region-based Language-Image Pretraining, https://arxiv.org/abs/2112.09106.

Where captions come with places, a patch is matched with the words for what has its centre there, and with no word (the
dot that stands for nothing) where nothing has: things are then not only named but can be counted.

A patch also tells its row and its column, each by a direction of its own, so that things can be placed. A Transformer
learns such vectors for its patches (Dosovitskiy et al., https://arxiv.org/abs/2010.11929); a convolutional eye knows
where it looks from its padding (Islam et al., https://arxiv.org/abs/2001.08248), and here learns to say it.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import FastVlmForConditionalGeneration

from chatwright.data.render import Renderer
from chatwright.objectives.base import Loss
from chatwright.objectives.crossmodal.filip import FILIP

EMPTY_WEIGHT = 0.2  # of a patch without a centre, as most are
PLACE_WEIGHT = 0.5
PLACE_SCALE = 10.0  # fixed, and so low that the right row and column each take a fourth of a patch's length


class RegionFILIP(FILIP):
    """FILIP on whole captions and, with the same weight, every patch against the words of all patches of the batch.

    Args:
        model: the assistant; its eye and projector are trained. It reads square pictures.
        renderer: saved beside the model.
    """

    def __init__(self, model: FastVlmForConditionalGeneration, renderer: Renderer) -> None:
        super().__init__(model, renderer)
        side, width = math.isqrt(model.config.image_seq_length), model.config.text_config.hidden_size
        directions = torch.randn(2 * side, width, generator=torch.Generator().manual_seed(0))
        self.directions: Tensor
        self.register_buffer("directions", F.normalize(directions, dim=-1), persistent=False)

    def loss(self, batch: dict[str, Any]) -> Loss:
        """``batch``: as for FILIP, and ``places`` bool [N, P, V], the tokens for each patch; those of an empty patch
        are the token ``nothing``, an int."""
        patches = self.patches(batch["pixel_values"])
        whole = self.contrast(patches, batch["captions"])
        places = batch["places"].flatten(0, 1)
        present = places.any(0)
        logits = self.log_scale.exp().clamp(max=100) * patches.flatten(0, 1) @ self.words(present).T
        empty = places[:, batch["nothing"]]
        weights = torch.where(empty, EMPTY_WEIGHT, 1.0)
        regions = region_contrast(logits, places[:, present], weights)
        where = place_contrast(patches, self.directions)
        named = ~empty
        right = places[:, present].gather(1, logits.argmax(-1, keepdim=True)).squeeze(1)
        return Loss(
            whole.total + (regions + PLACE_WEIGHT * where) * whole.weight,
            whole.weight,
            {**whole.metrics, "regions": ((right & named).sum(), named.sum())},
        )


def region_contrast(logits: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy between each patch and its words, every word of a patch weighing the same.

    Args:
        logits: [R, W], how well each of R patches fits each of W words.
        places: bool [R, W], the words of each patch, at least one.
        weights: [R], of the patches.

    Returns:
        The weighted mean over the patches, a scalar.
    """
    target = places.float() / places.sum(-1, keepdim=True)
    losses = -(target * logits.log_softmax(-1)).sum(-1)
    return (weights * losses).sum() / weights.sum()


def place_contrast(patches: Tensor, directions: Tensor) -> Tensor:
    """Cross-entropy of each patch's row and of its column.

    Args:
        patches: [N, P, D], of length one, of P = S x S patches row by row.
        directions: [2 S, D], of length one, of the rows and then of the columns.

    Returns:
        The mean over the patches, a scalar.
    """
    side = len(directions) // 2
    rows, columns = (PLACE_SCALE * patches.flatten(0, 1) @ directions.T).chunk(2, dim=-1)
    place = torch.arange(side * side, device=patches.device).repeat(len(patches))
    return F.cross_entropy(rows, place // side) + F.cross_entropy(columns, place % side)
