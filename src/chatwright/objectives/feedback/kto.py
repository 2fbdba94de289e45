"""Kahneman-Tversky optimisation: it takes only to know which responses are good and which are bad.

Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", https://arxiv.org/abs/2402.01306;
beta as for DPO, and both weights 1, as TRL has them.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from chatwright.data.render import Renderer
from chatwright.objectives.base import Loss
from chatwright.objectives.feedback.preference import Preference, Responses


class KTO(Preference):
    """Raise good responses above, and sink bad ones below, how far the policy has moved in general.

    A response is good for a judge who ranks it better than the middle of its prompt's responses, bad if worse; one that
    stands alone is good at rank 0. How far the policy has moved is estimated on rows of the batch whose
    ``comparison.groups`` is -1: prompts with the responses to other prompts. That estimate is of the micro-batch, so
    unlike other objectives this one does change a little when a batch is split.

    The weight is the number of judgements.

    Args:
        beta: as for DPO. good, bad: weights of the two kinds; the paper wants good x (number of good) within 1 to 4/3
            of bad x (number of bad).
    """

    def __init__(
        self, policy: PreTrainedModel, renderer: Renderer, beta: float = 0.1, good: float = 1.0, bad: float = 1.0
    ) -> None:
        super().__init__(policy, renderer)
        self.beta, self.good, self.bad = beta, good, bad

    def rewards(self, said: Responses) -> Tensor:
        return self.beta * (said.logprobs - said.reference)

    def loss(self, batch: dict[str, Any]) -> Loss:
        said, groups = self.responses(batch), batch["comparison.groups"]
        rewards, elsewhere = self.rewards(said), groups == -1
        moved = rewards.detach()[elsewhere].mean().clamp(min=0) if elsewhere.any() else rewards.new_zeros(())
        good, bad = good_and_bad(batch["comparison.ranks"], groups)
        losses = self.good * good * torch.sigmoid(moved - rewards) + self.bad * bad * torch.sigmoid(rewards - moved)
        judgements = (good + bad).sum()
        right = good * (rewards > moved) + bad * (rewards < moved)
        metrics = {
            "accuracy": (right.sum(), judgements),
            "reward_better": ((good * rewards.detach()).sum(), good.sum()),
            "reward_worse": ((bad * rewards.detach()).sum(), bad.sum()),
            "kl": (moved / self.beta, torch.ones_like(moved)),
        }
        return Loss(losses.sum(), judgements, metrics)


def good_and_bad(ranks: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """How many judges find each response good, and how many bad.

    Args:
        ranks: [N] or [N, J], 0 the best. groups: [N], the same number for the same prompt, -1 for rows without a
            judgement.

    Returns:
        Two [N]: a response better than the mean rank of its prompt is good, one worse is bad; one that is alone with
        its prompt is good at rank 0 and bad behind it.
    """
    ranks = ranks.reshape(len(ranks), -1).double()
    same = (groups[:, None] == groups[None, :]).double()
    middle = same @ ranks / same.sum(1, keepdim=True)
    middle = torch.where(same.sum(1, keepdim=True) == 1, 0.5, middle)
    judged = (groups != -1)[:, None]
    return ((ranks < middle) & judged).sum(1), ((ranks > middle) & judged).sum(1)
