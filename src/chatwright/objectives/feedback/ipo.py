"""Identity preference optimisation.

Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human Preferences",
https://arxiv.org/abs/2310.12036, equation 17; tau 0.1 as beta of DPO. Log-ratios are means over the tokens, which the
authors confirmed to be what they did (TRL's documentation of ``loss_type="ipo"``): sums would ask of long responses
the same margin as of short ones.
"""

from torch import Tensor
from transformers import PreTrainedModel

from chatwright.data.render import Renderer
from chatwright.objectives.feedback.preference import Preference, Responses


class IPO(Preference):
    """(margin - 1 / (2 tau))^2; the reward is the mean of log(p / p_reference) over the tokens.

    Args:
        tau: the larger, the nearer to the reference.
    """

    def __init__(self, policy: PreTrainedModel, renderer: Renderer, tau: float = 0.1) -> None:
        super().__init__(policy, renderer)
        self.tau = tau

    def rewards(self, said: Responses) -> Tensor:
        return (said.logprobs - said.reference) / said.lengths

    def pair_losses(self, margins: Tensor, said: Responses, better: Tensor) -> Tensor:
        return (margins - 1 / (2 * self.tau)) ** 2
