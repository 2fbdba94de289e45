"""Zhong et al., RegionCLIP: Region-based Language-Image Pretraining, https://arxiv.org/abs/2112.09106.

Where captions come with places, a patch is matched with the words for what has its centre there, and with no word (the
dot that stands for nothing) where nothing has: things are then not only named but can be counted and placed.
"""

from typing import Any

import torch
from torch import Tensor

from chatwright.objectives.base import Loss
from chatwright.objectives.crossmodal.filip import FILIP

EMPTY_WEIGHT = 0.2  # of a patch without a centre, as most are


class RegionFILIP(FILIP):
    """FILIP on whole captions and, with the same weight, every patch against the words of all patches of the batch."""

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
        named = ~empty
        right = places[:, present].gather(1, logits.argmax(-1, keepdim=True)).squeeze(1)
        return Loss(
            whole.total + regions * whole.weight,
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
