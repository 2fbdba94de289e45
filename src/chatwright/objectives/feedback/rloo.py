"""REINFORCE leave-one-out: the mean of the other responses to the prompt is the baseline.

Ahmadian et al. 2024, "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in
LLMs", https://arxiv.org/abs/2402.14740, equation 8. A response as a whole is one action, so the KL is paid from its
score; coefficient 0.05 as for PPO. The ratio is that of the whole response and clipped, for steps after the first on
the same responses; on the first it is one, which is REINFORCE.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from chatwright.objectives.feedback.mathematics import clipped_policy_loss, leave_one_out
from chatwright.objectives.feedback.policy_gradient import PolicyGradient
from chatwright.objectives.feedback.rollouts import Rollouts


class RLOO(PolicyGradient):
    """A response is worth its score less its KL, beside the mean worth of the others to the same prompt."""

    default_kl: ClassVar[float] = 0.05

    def credit(self, rollouts: Rollouts, scores: Tensor, kl: Tensor) -> Tensor:
        earned = scores - self.kl_coefficient * kl.sum(1)
        rollouts.advantages[:] = leave_one_out(earned, rollouts.responses)[:, None] * rollouts.mask
        return earned

    def weight(self, mask: Tensor) -> Tensor:
        """The number of responses."""
        return mask.new_ones(len(mask)).sum()

    def policy_loss(self, logprobs: Tensor, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        mask = batch["loss_mask"]
        whole, old = ((values * mask).sum(1, keepdim=True) for values in (logprobs, batch["rollout.logprobs"]))
        advantages = batch["rollout.advantages"].gather(1, mask.int().argmax(1, keepdim=True))
        total, clipped = clipped_policy_loss(whole, old, advantages, torch.ones_like(whole), self.clip, self.clip_high)
        return total, clipped
