"""Group relative policy optimisation: the other responses to the prompt say what was to be expected, not a critic.

Shao et al. 2024, "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
https://arxiv.org/abs/2402.03300, section 4.1; KL coefficient 0.04 and clip 0.2 are the paper's, which takes 64
responses to a prompt; 8 are what fits a small machine. The KL term is multiplied by the ratio, without which its
gradient is not that of the KL (DeepSeek-AI 2025, "DeepSeek-V3.2", https://arxiv.org/abs/2512.02556).
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from chatwright.objectives.feedback.mathematics import group_advantages, kl_k3
from chatwright.objectives.feedback.policy_gradient import PolicyGradient
from chatwright.objectives.feedback.rollouts import Rollouts


class GRPO(PolicyGradient):
    """Scores are centred and scaled within the responses to a prompt; every response counts the same, and the KL from
    the reference is a term of the loss."""

    default_kl: ClassVar[float] = 0.04
    scaled: ClassVar[bool] = True  # by the deviation of the scores

    def credit(self, rollouts: Rollouts, scores: Tensor, kl: Tensor) -> Tensor:
        advantages = group_advantages(scores, rollouts.responses, self.scaled)
        rollouts.advantages[:] = advantages[:, None] * rollouts.mask
        return scores

    def weights(self, mask: Tensor, longest: Tensor) -> Tensor:
        return mask / mask.sum(1, keepdim=True).clamp(min=1)

    def weight(self, mask: Tensor) -> Tensor:
        """The number of responses."""
        return mask.new_ones(len(mask)).sum()

    def policy_loss(self, logprobs: Tensor, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        total, clipped = super().policy_loss(logprobs, batch)
        if self.kl_coefficient:
            weights = self.weights(batch["loss_mask"], batch["rollout.longest"])
            ratio = torch.exp(torch.where(weights > 0, logprobs - batch["rollout.logprobs"], 0.0))
            total = total + self.kl_coefficient * (weights * ratio * kl_k3(logprobs, batch["rollout.reference"])).sum()
        return total, clipped
