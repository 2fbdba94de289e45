"""Simple preference optimisation: no reference, and no reward for length.

Meng et al. 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward",
https://arxiv.org/abs/2405.14734; the paper tunes both numbers to model and data, and 2 and 1 are only a start.
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from chatwright.data.render import Renderer
from chatwright.objectives.feedback.preference import Preference, Responses


class SimPO(Preference):
    """-log sigmoid(margin - gamma); the reward is beta times the mean log-probability of a token.

    Args:
        beta: of the reward. gamma: the margin that is asked for.
    """

    has_reference: ClassVar[bool] = False

    def __init__(self, policy: PreTrainedModel, renderer: Renderer, beta: float = 2.0, gamma: float = 1.0) -> None:
        super().__init__(policy, renderer)
        self.beta, self.gamma = beta, gamma

    def rewards(self, said: Responses) -> Tensor:
        return self.beta * said.logprobs / said.lengths

    def pair_losses(self, margins: Tensor, said: Responses, better: Tensor) -> Tensor:
        return -F.logsigmoid(margins - self.gamma)
