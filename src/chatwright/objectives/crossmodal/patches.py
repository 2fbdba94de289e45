"""What a model sees in each patch of a picture, beside the words that it knows.

The language side stays as pretraining left it, as the image side does in LiT (Zhai et al., https://arxiv.org/abs/2111.07991):
words are the language model's own embeddings, so that patches come to lie where the model already looks for words.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import FastVlmForConditionalGeneration

from chatwright.data.render import Renderer
from chatwright.objectives.base import Objective


class PatchesAndWords(Objective):
    """What contrastive objectives share: patches and words as directions.

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

    def patches(self, pixels: Tensor) -> Tensor:
        """What the model sees in each patch, of length one: pictures [N, 3, H, W] to [N, P, D]."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return F.normalize((self.model.get_image_features(pixels).pooler_output - self.centre).float(), dim=-1)

    def words(self, present: Tensor) -> Tensor:
        """The embeddings of the tokens that are ``present``, bool [V], of length one: [W, D]."""
        return F.normalize((self.model.get_input_embeddings().weight[present] - self.centre).float(), dim=-1)

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.renderer.save(folder)


@torch.no_grad()
def speak_as_loud(model: FastVlmForConditionalGeneration, pixels: Tensor) -> None:
    """Scale the projector's output so that patches are as far from the words' centre as words, which angles leave open.

    Args:
        pixels: [N, 3, H, W], some pictures to measure the patches of.
    """
    embeddings = model.get_input_embeddings().weight
    centre = embeddings.mean(0)
    patches = model.get_image_features(pixels).pooler_output
    factor = (embeddings - centre).norm(dim=-1).mean() / (patches - centre).norm(dim=-1).mean()
    last = model.model.multi_modal_projector.linear_2
    last.weight.mul_(factor)
    last.bias.sub_(centre).mul_(factor).add_(centre)
