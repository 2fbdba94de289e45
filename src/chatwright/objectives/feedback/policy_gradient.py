"""What the online methods have in common: the policy answers, its answers are scored, and it learns from them.

The clipped ratio is of Schulman et al. 2017, "Proximal Policy Optimization Algorithms"; the mix with pretraining, which
any of the methods can have, of Ouyang et al. 2022 (InstructGPT, section 3.5, equation 2).
"""

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from chatwright.data.render import Renderer
from chatwright.models.outputs import token_logprobs
from chatwright.objectives.base import Loss, Objective
from chatwright.objectives.feedback.mathematics import clipped_policy_loss, kl_k3
from chatwright.objectives.feedback.rollouts import Rollouts, rendered


class PolicyGradient(Objective):
    """One clipped step of a policy on what it has said before.

    A micro-batch is one of two, told apart by their keys:

    * rollouts, as `Rollouts.attach` gives them. Every ``metrics.<name>`` [B] (score, KL to the reference, length ...)
      is reported as its mean over the rows.
    * pretraining material, collated the same way, with ``pretraining.scale`` (scalar).

    What the loss is divided by, the method decides (`weight`). The pretraining term has to be a mean over its own
    tokens. So its micro-batches weigh nothing, and their sum is multiplied by ``pretraining.scale`` = weight of the
    step / pretraining tokens of the step, known to whoever made the step: however it is split, the step minimises

        mean(policy) + pretraining_coefficient mean(cross-entropy).

    Args:
        policy: the model being trained.
        renderer: saved beside the policy; its ``unsaid`` tokens are never said.
        temperature: of the sampling; logits are divided by it here as well.
        pretraining_coefficient: of the pretraining term.
        clip, clip_high: how far the ratio may fall below and rise above one; beyond, nothing is learned.
        kl_coefficient: what a nat of KL from the reference costs; where it is paid, the method decides. None takes the
            method's default, here and above.
    """

    responses: ClassVar[int] = 8  # to a prompt, unless the settings say otherwise
    grouped: ClassVar[bool] = True  # whether responses are compared with others to the same prompt
    has_critic: ClassVar[bool] = False
    resamples: ClassVar[bool] = False  # prompts whose responses are all worth the same are replaced by others
    punishes_length: ClassVar[bool] = False  # in the place of the penalty for unfinished responses
    default_clip: ClassVar[float] = 0.2
    default_clip_high: ClassVar[float] = 0.2
    default_kl: ClassVar[float] = 0.0

    def __init__(
        self,
        policy: PreTrainedModel,
        renderer: Renderer,
        temperature: float,
        pretraining_coefficient: float,
        clip: float | None = None,
        clip_high: float | None = None,
        kl_coefficient: float | None = None,
    ) -> None:
        super().__init__()
        self.policy, self.renderer = policy, renderer
        self.temperature, self.pretraining_coefficient = temperature, pretraining_coefficient
        self.clip = self.default_clip if clip is None else clip
        self.clip_high = self.default_clip_high if clip_high is None else clip_high
        self.kl_coefficient = self.default_kl if kl_coefficient is None else kl_coefficient
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Dropout and batch statistics stay off: the first ratio has to be one."""
        super().train(False)
        return self

    def credit(self, rollouts: Rollouts, scores: Tensor, kl: Tensor) -> Tensor:
        """Fill in the ``advantages`` of the rollouts (and ``returns``, where there is a critic).

        Args:
            scores: [N], of the responses; those to one prompt stand together. kl: [N, R], log(p / p_reference) of
                every token, 0 behind the end.

        Returns:
            [N]: what each response earned, all in all.
        """
        raise NotImplementedError

    def weights(self, mask: Tensor, longest: Tensor) -> Tensor:
        """[B, T]: what every token's loss is multiplied by; here 1, so that every token counts the same."""
        return mask.float()

    def weight(self, mask: Tensor) -> Tensor:
        """What the loss of responses with tokens ``mask`` [B, T] is divided by: here the number of tokens."""
        return mask.sum()

    def policy_loss(self, logprobs: Tensor, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Scalars: the summed loss, the number of tokens (or responses) whose gradient the clip took away."""
        weights = self.weights(batch["loss_mask"], batch["rollout.longest"])
        old, advantages = batch["rollout.logprobs"], batch["rollout.advantages"]
        return clipped_policy_loss(logprobs, old, advantages, weights, self.clip, self.clip_high)

    def loss(self, batch: dict[str, Any]) -> Loss:
        return self._rollouts(batch) if "rollout.advantages" in batch else self._pretraining(batch)

    def _rollouts(self, batch: dict[str, Any]) -> Loss:
        mask, old = batch["loss_mask"], batch["rollout.logprobs"]
        logprobs, entropy = token_logprobs(self.policy, rendered(batch), self.temperature, self.renderer.unsaid)
        total, clipped = self.policy_loss(logprobs, batch)
        tokens, weight = mask.sum(), self.weight(mask)
        fresh = batch["rollout.fresh"]
        largest = (logprobs.detach() - old)[mask].abs().max()
        metrics = {
            "policy_loss": (total.detach(), weight),
            "clip_fraction": (clipped, tokens),
            "entropy": (entropy[mask].sum(), tokens),
            "kl_from_rollout": (kl_k3(old, logprobs.detach())[mask].sum(), tokens),
            "fresh_log_ratio": (largest * fresh, fresh),
        }
        rows = tokens.new_tensor(len(mask))
        metrics |= {
            name.removeprefix("metrics."): (value.sum(), rows) for name, value in batch.items() if "metrics." in name
        }
        return Loss(total, weight, metrics)

    def _pretraining(self, batch: dict[str, Any]) -> Loss:
        logprobs, _ = token_logprobs(self.policy, rendered(batch))
        cross_entropy = -logprobs.sum()  # zero where nothing is predicted
        total = self.pretraining_coefficient * batch["pretraining.scale"] * cross_entropy
        metrics = {"pretraining_loss": (cross_entropy.detach(), batch["loss_mask"][:, 1:].sum())}
        return Loss(total, torch.zeros((), device=total.device), metrics)

    def save(self, folder: Path) -> None:
        self.policy.save_pretrained(folder)
        self.renderer.save(folder)
