"""Next-token prediction on the supervised tokens: pretraining, captioning and supervised fine-tuning alike.

Radford et al., Improving Language Understanding by Generative Pre-Training, 2018; for instructions Wei et al.,
Finetuned Language Models Are Zero-Shot Learners, https://arxiv.org/abs/2109.01652; for pictures Liu et al., Visual
Instruction Tuning, https://arxiv.org/abs/2304.08485.
"""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from chatwright.data.render import Renderer
from chatwright.errors import ChatwrightError
from chatwright.models.eyes import PROJECTORS, TOWERS
from chatwright.models.outputs import cross_entropy
from chatwright.objectives.base import Loss, Objective


class CausalLanguageModel(Objective):
    """Cross-entropy of every supervised token; the weight is how many there are.

    Args:
        model: any causal or multimodal language model; parameters without ``requires_grad`` stay as they are.
        renderer: saved beside the model.
        eye_rate: part of the learning rate that the model's eye gets, where it is trained along.
        projector_rate: the same for the projector between eye and decoder; 0 leaves it as it is.

    Raises:
        ChatwrightError: there is no projector whose rate could be another.
    """

    def __init__(
        self, model: PreTrainedModel, renderer: Renderer, eye_rate: float = 1.0, projector_rate: float = 1.0
    ) -> None:
        super().__init__()
        self.model, self.renderer, self.eye_rate, self.projector_rate = model, renderer, eye_rate, projector_rate
        if projector_rate != 1:
            found = [getattr(model.base_model, name) for name in PROJECTORS if hasattr(model.base_model, name)]
            if not found:
                raise ChatwrightError("this model has no projector between eye and decoder; leave projector_rate at 1")
            if not projector_rate:
                for projector in found:
                    projector.requires_grad_(False)

    def train(self, mode: bool = True) -> "CausalLanguageModel":
        """As for any objective, but batch statistics stay: those of the few pictures of a micro-batch say little."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def factor(self, name: str) -> float:
        if any(f".{tower}." in name for tower in TOWERS):
            return self.eye_rate
        return self.projector_rate if any(f".{projector}." in name for projector in PROJECTORS) else 1.0

    def loss(self, batch: dict[str, Any]) -> Loss:
        """``batch`` as `Renderer.collate` gives it; logits are computed only where ``loss_mask`` is True."""
        total, right = cross_entropy(self.model, batch)
        weight = batch["loss_mask"][:, 1:].sum().float()
        return Loss(total, weight, {"accuracy": (right, weight)})

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.renderer.save(folder)
