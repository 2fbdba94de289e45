"""Odds ratio preference optimisation: fine-tuning and preferences in one, without a reference.

Hong et al. 2024, "ORPO: Monolithic Preference Optimization without Reference Model",
https://arxiv.org/abs/2403.07691, equations 6 and 7; weight 0.1 is TRL's. The likelihood of a response is the
geometric mean over its tokens, for both terms; the prompt is not learned.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from chatwright.data.render import Renderer
from chatwright.objectives.feedback.preference import Preference, Responses


class ORPO(Preference):
    """-log p(better) - weight log sigmoid(margin); the reward is log(p / (1 - p)).

    Args:
        weight: of the odds ratio beside the likelihood (lambda in the paper).
    """

    has_reference: ClassVar[bool] = False

    def __init__(self, policy: PreTrainedModel, renderer: Renderer, weight: float = 0.1) -> None:
        super().__init__(policy, renderer)
        self.weight = weight

    def rewards(self, said: Responses) -> Tensor:
        likelihood = (said.logprobs / said.lengths).clamp(max=-1e-6)  # the odds of certainty are infinite
        return likelihood - torch.log(-torch.expm1(likelihood))

    def pair_losses(self, margins: Tensor, said: Responses, better: Tensor) -> Tensor:
        return -(said.logprobs / said.lengths)[better] - self.weight * F.logsigmoid(margins)
