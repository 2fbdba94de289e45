"""Zhong et al., RegionCLIP: Region-based Language-Image Pretraining, https://arxiv.org/abs/2112.09106.

Where captions come with places, a patch is matched with the words for what has its centre there, and with no word (the
dot that stands for nothing) where nothing has: things are then not only named but can be counted and placed. Every
patch is also matched with the name of its own square, for a convolution does not tell where it looks.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from chatwright.objectives.base import Loss
from chatwright.objectives.crossmodal.filip import FILIP

EMPTY_WEIGHT = 0.2  # of a patch without a centre, as most are
SQUARE_WEIGHT = 0.3  # of knowing where a patch is


class RegionFILIP(FILIP):
    """FILIP on whole captions and, with the same weight, every patch against the words of all patches of the batch."""

    def loss(self, batch: dict[str, Any]) -> Loss:
        """``batch``: as for FILIP, and ``places`` bool [N, P, V], the tokens for each patch, where those of an empty
        patch are the token ``nothing``, an int; and ``squares`` [P, S], S tokens that say where each patch is."""
        patches = self.patches(batch["pixel_values"])
        whole = self.contrast(patches, batch["captions"])
        places = batch["places"].flatten(0, 1)
        present = places.any(0)
        logits = self.log_scale.exp().clamp(max=100) * patches.flatten(0, 1) @ self.words(present).T
        empty = places[:, batch["nothing"]]
        weights = torch.where(empty, EMPTY_WEIGHT, 1.0)
        regions = region_contrast(logits, places[:, present], weights)
        where, placed = self.where(patches, batch["squares"])
        named = ~empty
        right = places[:, present].gather(1, logits.argmax(-1, keepdim=True)).squeeze(1)
        return Loss(
            whole.total + (regions + SQUARE_WEIGHT * where) * whole.weight,
            whole.weight,
            {**whole.metrics, "regions": ((right & named).sum(), named.sum()), "squares": placed},
        )

    def where(self, patches: Tensor, squares: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Each patch [N, P, D] against the name of its own square, part by part among those of all squares.

        Returns:
            The mean cross-entropy, and (how many parts are recognised, of how many).
        """
        losses, right = [], []
        for part in squares.T:
            tokens, target = part.unique(return_inverse=True)
            logits = (self.log_scale.exp().clamp(max=100) * patches @ self.words(tokens).T).flatten(0, 1)
            target = target.repeat(len(patches))
            losses.append(F.cross_entropy(logits, target))
            right.append((logits.argmax(-1) == target).sum())
        return torch.stack(losses).mean(), (torch.stack(right).sum(), torch.tensor(len(patches) * squares.numel()))


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
