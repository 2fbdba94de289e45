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
from chatwright.objectives.crossmodal.patches import PatchesAndWords

WORD_SCALE = 14.0  # fixed, or it grows, and patches need not come near their words to tell them apart
PLACE_WEIGHT = 0.5
PLACE_SCALE = 10.0  # fixed, and so low that the right row and column each take a fourth of a patch's length


class RegionCLIP(PatchesAndWords):
    """Pull every patch towards its own words, away from those of all other patches of the micro-batch.

    Captions as a whole are left out: their other words (of, two, picture) would have to be seen somewhere too.

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
        """``batch``: ``pixel_values`` [N, 3, H, W], ``places`` bool [N, P, V], the tokens for each patch, and
        ``nothing``, the one token of an empty patch."""
        patches = self.patches(batch["pixel_values"])
        places = batch["places"].flatten(0, 1)
        present = places.any(0)
        logits = WORD_SCALE * patches.flatten(0, 1) @ self.words(present).T
        named = ~places[:, batch["nothing"]]
        regions = region_contrast(logits, places[:, present])
        where = place_contrast(patches, self.directions)
        right = places[:, present].gather(1, logits.argmax(-1, keepdim=True)).squeeze(1)
        weight = torch.tensor(float(len(patches)), device=patches.device)
        total = (regions + PLACE_WEIGHT * where) * weight
        return Loss(total, weight, {"accuracy": ((right & named).sum(), named.sum())})


def region_contrast(logits: Tensor, places: Tensor) -> Tensor:
    """Cross-entropy between each patch and its words, every word of a patch weighing the same.

    Args:
        logits: [R, W], how well each of R patches fits each of W words.
        places: bool [R, W], the words of each patch, at least one.

    Returns:
        The mean over the patches, a scalar.
    """
    target = places.float() / places.sum(-1, keepdim=True)
    return F.cross_entropy(logits, target)


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
