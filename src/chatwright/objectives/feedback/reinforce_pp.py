"""REINFORCE++: PPO's details without its critic.

Hu et al. 2025, "REINFORCE++: An Efficient RLHF Algorithm with Robustness to Both Prompt and Reward Models",
https://arxiv.org/abs/2501.03262: the KL is paid on every token, what a token is worth is all that comes after it, and
that is normalised over the whole round and not within a prompt, so one response to a prompt is enough. KL coefficient
0.01 is that of the authors' code (OpenRLHF).
"""

from typing import ClassVar

from torch import Tensor

from chatwright.objectives.feedback.mathematics import token_rewards, whiten
from chatwright.objectives.feedback.policy_gradient import PolicyGradient
from chatwright.objectives.feedback.rollouts import Rollouts


class ReinforcePP(PolicyGradient):
    """Rewards to come, whitened over the round, with PPO's clipped ratio."""

    responses: ClassVar[int] = 1
    grouped: ClassVar[bool] = False
    default_kl: ClassVar[float] = 0.01

    def credit(self, rollouts: Rollouts, scores: Tensor, kl: Tensor) -> Tensor:
        rewards = token_rewards(scores, kl, rollouts.mask, self.kl_coefficient)
        to_come = rewards.flip(1).cumsum(1).flip(1)
        rollouts.advantages[:] = whiten(to_come, rollouts.mask)
        return rewards.sum(1)
