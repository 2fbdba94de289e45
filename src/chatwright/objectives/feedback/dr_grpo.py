"""GRPO done right: without its two biases.

Liu et al. 2025, "Understanding R1-Zero-Like Training: A Critical Perspective", https://arxiv.org/abs/2503.20783,
section 3.2: dividing by the length of a response favours long wrong ones, dividing by the deviation of the scores
favours prompts that are too easy or too hard. No KL, as in the paper.
"""

from typing import ClassVar

from torch import Tensor

from chatwright.objectives.feedback.grpo import GRPO


class DrGRPO(GRPO):
    """Scores are centred only, and every response is divided by the same length: the longest there may be."""

    default_kl: ClassVar[float] = 0.0
    scaled: ClassVar[bool] = False

    def weights(self, mask: Tensor, longest: Tensor) -> Tensor:
        return mask / longest
