"""Decoupled clip and dynamic sampling policy optimisation.

Yu et al. 2025, "DAPO: An Open-Source LLM Reinforcement Learning System at Scale", https://arxiv.org/abs/2503.14476,
section 3: a higher upper clip, prompts resampled until their responses differ, every token counting the same, and a
penalty that grows over the last part of the length allowed; all defaults are the paper's (the last fifth: 4,096 of
20,480 tokens). No KL.
"""

from typing import ClassVar

from torch import Tensor

from chatwright.objectives.feedback.grpo import GRPO
from chatwright.objectives.feedback.mathematics import group_advantages, overlong_penalty
from chatwright.objectives.feedback.rollouts import Rollouts

OVERLONG = 0.2  # part of the longest response over which the penalty grows from 0 to 1


class DAPO(GRPO):
    """GRPO's advantages, with the four changes of the paper."""

    punishes_length: ClassVar[bool] = True
    resamples: ClassVar[bool] = True
    default_clip_high: ClassVar[float] = 0.28
    default_kl: ClassVar[float] = 0.0

    def credit(self, rollouts: Rollouts, scores: Tensor, kl: Tensor) -> Tensor:
        earned = scores - overlong_penalty(rollouts.lengths, rollouts.tokens.shape[1], OVERLONG)
        rollouts.advantages[:] = group_advantages(earned, rollouts.responses)[:, None] * rollouts.mask
        return earned

    def weights(self, mask: Tensor, longest: Tensor) -> Tensor:
        return mask.float()

    def weight(self, mask: Tensor) -> Tensor:
        """The number of tokens."""
        return mask.sum()
