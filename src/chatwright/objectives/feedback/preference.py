"""What learning directly from preferences has in common: no reward model, no sampling, only what was judged.

Every response is computed once, however many pairs it is in: K ranked responses make up to K(K-1)/2 pairs (as for
reward models, Ouyang et al. 2022, section 3.5), and the judgements of several people add up.
"""

from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from chatwright.data.render import Renderer
from chatwright.models.outputs import token_logprobs
from chatwright.objectives.base import Loss, Objective
from chatwright.objectives.feedback.mathematics import preferring
from chatwright.objectives.feedback.rollouts import rendered


class Responses(NamedTuple):
    """What is known of N responses, each [N].

    logprobs: of the whole response under the policy. reference: the same under the model that it began as, zeros where
    the method needs none. lengths: tokens, at least 1.
    """

    logprobs: Tensor
    reference: Tensor
    lengths: Tensor


class Preference(Objective):
    """Make the response that was preferred likelier than the other.

    A batch is what the renderer's ``collate`` made of N responses with their prompts and, beside it,
    ``comparison.ranks`` and ``comparison.groups`` as for `BradleyTerry`, and ``reference.logprobs`` [N] where the
    method has a reference. The weight is the number of pairs.

    Args:
        policy: any causal or multimodal model. renderer: saved beside it; its ``unsaid`` tokens are never said.
    """

    has_reference: ClassVar[bool] = True

    def __init__(self, policy: PreTrainedModel, renderer: Renderer) -> None:
        super().__init__()
        self.policy, self.renderer = policy, renderer
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Dropout and batch statistics stay off: the pairs of a prompt are to differ by their responses alone."""
        super().train(False)
        return self

    def rewards(self, said: Responses) -> Tensor:
        """[N]: the reward that the policy implies for each response."""
        raise NotImplementedError

    def pair_losses(self, margins: Tensor, said: Responses, better: Tensor) -> Tensor:
        """[P]: the loss of P pairs.

        Args:
            margins: [P], by how much the reward of the better response is the larger. better: [P], its number.
        """
        raise NotImplementedError

    def loss(self, batch: dict[str, Any]) -> Loss:
        said = self.responses(batch)
        rewards = self.rewards(said)
        judges = preferring(batch["comparison.ranks"], batch["comparison.groups"])
        better, worse = judges.nonzero(as_tuple=True)
        times = judges[better, worse]
        margins = rewards[better] - rewards[worse]
        pairs = times.sum()
        shown = {"accuracy": (margins > 0) + 0.5 * (margins == 0), "margin": margins}
        shown |= {"reward_better": rewards[better], "reward_worse": rewards[worse]}
        shown |= {"logprob_better": said.logprobs[better], "logprob_worse": said.logprobs[worse]}
        metrics = {name: ((times * values.detach()).sum(), pairs) for name, values in shown.items()}
        return Loss((times * self.pair_losses(margins, said, better)).sum(), pairs, metrics)

    def responses(self, batch: dict[str, Any]) -> Responses:
        logprobs = response_logprobs(self.policy, self.renderer, rendered(batch))
        reference = batch["reference.logprobs"] if self.has_reference else torch.zeros_like(logprobs)
        return Responses(logprobs, reference, batch["loss_mask"][:, 1:].sum(1))

    def save(self, folder: Path) -> None:
        self.policy.save_pretrained(folder)
        self.renderer.save(folder)


def response_logprobs(policy: PreTrainedModel, renderer: Renderer, batch: dict[str, Any]) -> Tensor:
    """[N]: the log-probability of every response as a whole."""
    return token_logprobs(policy, batch, excluded=renderer.unsaid)[0].sum(1)
