"""Proximal policy optimisation of a policy and a critic, and PPO-ptx.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms", https://arxiv.org/abs/1707.06347; for language models
Ziegler et al. 2019 and Ouyang et al. 2022 (InstructGPT, section 3.5, equation 2: PPO-ptx mixes the gradient of
pretraining into the gradient of PPO so that the policy forgets less of it). Details and defaults as in Huang et al.
2023, "The N Implementation Details of RLHF with PPO".
"""

from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from chatwright.data.render import Renderer
from chatwright.models.heads import RewardModel
from chatwright.objectives.base import Loss
from chatwright.objectives.feedback.mathematics import (
    clipped_value_loss,
    gae,
    token_rewards,
    whiten,
)
from chatwright.objectives.feedback.policy_gradient import PolicyGradient
from chatwright.objectives.feedback.rollouts import Rollouts, rendered


class PPO(PolicyGradient):
    """The score is paid on the last token, the KL on every token, and a critic says what was to be expected.

    Policy and value terms are both sums over the response tokens: a step minimises

        mean(policy) + value_coefficient mean(value) + pretraining_coefficient mean(cross-entropy).

    Args:
        critic: the value model, made from the reward model.
        value_clip: how far the values may move within one rollout. value_coefficient: of the critic's loss.
        discount, gae_lambda: of the advantages.
        whiten_rewards: 1 scales them to variance one, over all tokens of a round; 0 does not.
    """

    responses: ClassVar[int] = 1
    grouped: ClassVar[bool] = False
    has_critic: ClassVar[bool] = True
    default_kl: ClassVar[float] = 0.05

    def __init__(
        self,
        policy: PreTrainedModel,
        renderer: Renderer,
        temperature: float,
        pretraining_coefficient: float,
        critic: RewardModel,
        clip: float | None = None,
        clip_high: float | None = None,
        kl_coefficient: float | None = None,
        value_clip: float = 0.2,
        value_coefficient: float = 0.1,
        discount: float = 1.0,
        gae_lambda: float = 0.95,
        whiten_rewards: float = 1,
    ) -> None:
        super().__init__(policy, renderer, temperature, pretraining_coefficient, clip, clip_high, kl_coefficient)
        self.critic, self.value_clip, self.value_coefficient = critic, value_clip, value_coefficient
        self.discount, self.gae_lambda, self.whiten_rewards = discount, gae_lambda, whiten_rewards
        self.train()

    def credit(self, rollouts: Rollouts, scores: Tensor, kl: Tensor) -> Tensor:
        rewards = token_rewards(scores, kl, rollouts.mask, self.kl_coefficient)
        total = rewards.sum(1)
        if self.whiten_rewards:
            rewards = whiten(rewards, rollouts.mask, shift_mean=False)
        advantages, rollouts.returns[:] = gae(rewards, rollouts.values, rollouts.mask, self.discount, self.gae_lambda)
        rollouts.advantages[:] = whiten(advantages, rollouts.mask)
        return total

    def _rollouts(self, batch: dict[str, Any]) -> Loss:
        loss, mask = super()._rollouts(batch), batch["loss_mask"]
        returns = batch["rollout.returns"]
        values = self.critic.values(rendered(batch))
        value, clipped = clipped_value_loss(values, batch["rollout.values"], returns, mask, self.value_clip)
        metrics = {"value_loss": (value.detach(), loss.weight), "value_clip_fraction": (clipped, loss.weight)}
        return Loss(loss.total + self.value_coefficient * value, loss.weight, {**loss.metrics, **metrics})
