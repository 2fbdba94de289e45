"""Proximal policy optimisation of a policy and a critic, and PPO-ptx.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms"; for language models Ziegler et al. 2019 and Ouyang et
al. 2022 (InstructGPT, section 3.5, equation 2: PPO-ptx mixes the gradient of pretraining into the gradient of PPO so
that the policy forgets less of it). Details as in Huang et al. 2023, "The N Implementation Details of RLHF with PPO".
"""

from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from chatwright.data.render import Renderer
from chatwright.models.heads import RewardModel
from chatwright.models.load import token_logprobs
from chatwright.objectives.base import Loss, Objective
from chatwright.objectives.feedback.mathematics import clipped_policy_loss, clipped_value_loss, kl_k3
from chatwright.objectives.feedback.rollouts import rendered


class PPO(Objective):
    """One clipped step of policy and critic on what the policy has said before.

    A micro-batch is one of two, told apart by their keys:

    * rollouts, as the renderer's ``collate`` made them (``loss_mask`` [B, T] at the response's tokens) with
      ``rollout.logprobs``, ``rollout.values``, ``rollout.advantages`` and ``rollout.returns`` [B, T], and
      ``rollout.fresh``, 1 if the policy is still the one that said them (its ratio has to be one), else 0. Every
      ``metrics.<name>`` [B] (score, KL to the reference, length ...) is reported as its mean over the rows.
    * pretraining material, collated the same way, with ``pretraining.scale`` (scalar).

    The weight is the number of response tokens; policy and value terms are both sums over them. The pretraining term
    has to be a mean over its own tokens, while the loop divides everything by the response tokens of the whole step.
    So its micro-batches weigh nothing, and their sum is multiplied by ``pretraining.scale`` = response tokens of the
    step / pretraining tokens of the step, known to whoever made the step: however it is split, the step minimises

        mean(policy) + value_coefficient mean(value) + pretraining_coefficient mean(cross-entropy).

    Args:
        policy: the model being trained. critic: its value model, made from the reward model.
        renderer: saved beside the policy; its ``unsaid`` tokens are never said.
        temperature: of the sampling; logits are divided by it here as well.
        clip, value_clip: how far the ratio and the values may move within one rollout.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        critic: RewardModel,
        renderer: Renderer,
        temperature: float = 1.0,
        clip: float = 0.2,
        value_clip: float = 0.2,
        value_coefficient: float = 0.1,
        pretraining_coefficient: float = 0.0,
    ) -> None:
        super().__init__()
        self.policy, self.critic, self.renderer, self.temperature = policy, critic, renderer, temperature
        self.clip, self.value_clip = clip, value_clip
        self.value_coefficient, self.pretraining_coefficient = value_coefficient, pretraining_coefficient
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Dropout and batch statistics stay off: the first ratio has to be one."""
        super().train(False)
        return self

    def loss(self, batch: dict[str, Any]) -> Loss:
        return self._rollouts(batch) if "rollout.advantages" in batch else self._pretraining(batch)

    def _rollouts(self, batch: dict[str, Any]) -> Loss:
        inputs, mask, old = rendered(batch), batch["loss_mask"], batch["rollout.logprobs"]
        logprobs, entropy = token_logprobs(self.policy, inputs, self.temperature, self.renderer.unsaid)
        policy, clipped = clipped_policy_loss(logprobs, old, batch["rollout.advantages"], mask, self.clip)
        value, value_clipped = clipped_value_loss(
            self.critic.values(inputs), batch["rollout.values"], batch["rollout.returns"], mask, self.value_clip
        )
        tokens = mask.sum()
        moved = kl_k3(old, logprobs.detach())[mask].sum()
        fresh = batch["rollout.fresh"]
        largest = (logprobs.detach() - old)[mask].abs().max()
        metrics = {
            "policy_loss": (policy.detach(), tokens),
            "value_loss": (value.detach(), tokens),
            "clip_fraction": (clipped, tokens),
            "value_clip_fraction": (value_clipped, tokens),
            "entropy": (entropy[mask].sum(), tokens),
            "kl_from_rollout": (moved, tokens),
            "fresh_log_ratio": (largest * fresh, fresh),
        }
        rows = tokens.new_tensor(len(mask))
        metrics |= {
            name.removeprefix("metrics."): (value.sum(), rows) for name, value in batch.items() if "metrics." in name
        }
        return Loss(policy + self.value_coefficient * value, tokens, metrics)

    def _pretraining(self, batch: dict[str, Any]) -> Loss:
        logprobs, _ = token_logprobs(self.policy, rendered(batch))
        cross_entropy = -logprobs.sum()  # zero where nothing is predicted
        total = self.pretraining_coefficient * batch["pretraining.scale"] * cross_entropy
        metrics = {"pretraining_loss": (cross_entropy.detach(), batch["loss_mask"][:, 1:].sum())}
        return Loss(total, torch.zeros((), device=total.device), metrics)

    def save(self, folder: Path) -> None:
        self.policy.save_pretrained(folder)
        self.renderer.save(folder)
