"""Direct preference optimisation.

Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
https://arxiv.org/abs/2305.18290, equation 7; beta 0.1 is the paper's.
"""

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from chatwright.data.render import Renderer
from chatwright.objectives.feedback.preference import Preference, Responses


class DPO(Preference):
    """-log sigmoid of the margin; the reward is beta log(p / p_reference).

    Args:
        beta: what a nat of distance from the reference costs.
    """

    def __init__(self, policy: PreTrainedModel, renderer: Renderer, beta: float = 0.1) -> None:
        super().__init__(policy, renderer)
        self.beta = beta

    def rewards(self, said: Responses) -> Tensor:
        return self.beta * (said.logprobs - said.reference)

    def pair_losses(self, margins: Tensor, said: Responses, better: Tensor) -> Tensor:
        return -F.logsigmoid(margins)
