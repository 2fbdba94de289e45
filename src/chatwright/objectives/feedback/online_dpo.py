"""Online DPO: preferences between responses of the policy as it is, by whoever scores them.

Guo et al. 2024, "Direct Language Model Alignment from Online AI Feedback", https://arxiv.org/abs/2402.04792,
algorithm 1; beta 0.1 as for DPO.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from chatwright.data.render import Renderer
from chatwright.objectives.feedback.policy_gradient import PolicyGradient
from chatwright.objectives.feedback.rollouts import Rollouts


class OnlineDPO(PolicyGradient):
    """DPO on the best and the worst of the responses to each prompt; where all are worth the same, nothing is learned.

    ``advantages`` are 1 for the better response and -1 for the worse. The responses to a prompt must not be split over
    micro-batches.

    Args:
        beta: as for DPO.
    """

    responses: ClassVar[int] = 2

    def __init__(
        self,
        policy: PreTrainedModel,
        renderer: Renderer,
        temperature: float,
        pretraining_coefficient: float,
        beta: float = 0.1,
    ) -> None:
        super().__init__(policy, renderer, temperature, pretraining_coefficient)
        self.beta = beta

    def credit(self, rollouts: Rollouts, scores: Tensor, kl: Tensor) -> Tensor:
        groups = scores.view(-1, rollouts.responses)
        signs = torch.zeros_like(groups)
        differ = (groups.amax(1) > groups.amin(1)).float()[:, None]
        signs.scatter_(1, groups.argmax(1, keepdim=True), differ)
        signs.scatter_(1, groups.argmin(1, keepdim=True), -differ)
        rollouts.advantages[:] = signs.view(-1, 1) * rollouts.mask
        return scores

    def weight(self, mask: Tensor) -> Tensor:
        """The number of responses: a prompt counts as often as it was answered, whether or not the answers differ."""
        return mask.new_ones(len(mask)).sum()

    def policy_loss(self, logprobs: Tensor, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        signs, groups = batch["rollout.advantages"], batch["rollout.groups"]
        per_row = torch.stack([(signs * (logprobs - batch["rollout.reference"])).sum(1), signs.abs().sum(1)], 1)
        margins, learned = torch.zeros(len(groups), 2, device=groups.device).index_add(0, groups, per_row).unbind(1)
        size = groups.bincount(minlength=len(groups))
        return (size * (learned > 0) * -F.logsigmoid(self.beta * margins)).sum(), groups.new_zeros(())
