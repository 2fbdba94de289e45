"""What a policy learns from: responses of the policy, with everything that was known about them when they were said."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

PER_TOKEN = ("logprobs", "reference", "values", "advantages", "returns")


@dataclass
class Rollouts:
    """N responses of at most R tokens, of fixed shape so that a checkpoint of one run fits into another.

    A response is all that follows the prompt: the policy's turns, and between them what an environment said.

    prompts: [N] numbers of the prompts. tokens: [N, R]. lengths: [N]. mask: [N, R] (bool), True at the tokens that the
    policy said; it has said at least one of every response.
    logprobs, reference, values, advantages, returns: [N, R], entry r about the r-th token of the response, 0 where the
    mask is False; ``logprobs`` are of the policy that said it, ``reference`` of the model that it is kept near to.
    metrics: [N, M], what is reported about each response; the names belong to whoever fills it.
    responses: how many to a prompt; they stand together.
    """

    prompts: Tensor
    tokens: Tensor
    lengths: Tensor
    mask: Tensor
    logprobs: Tensor
    reference: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    metrics: Tensor
    responses: int = 1

    @classmethod
    def empty(cls, rows: int, length: int, metrics: int, responses: int = 1) -> "Rollouts":
        whole = {name: torch.zeros(rows, dtype=torch.long) for name in ("prompts", "lengths")}
        real = {name: torch.zeros(rows, length) for name in PER_TOKEN}
        tokens, mask = (torch.zeros(rows, length, dtype=kind) for kind in (torch.long, torch.bool))
        reported = torch.zeros(rows, metrics)
        return cls(tokens=tokens, mask=mask, metrics=reported, responses=responses, **whole, **real)

    def put(self, row: int, tokens: Sequence[int], said: Sequence[bool], logprobs: Sequence[float]) -> None:
        """A response in place of the former one; all three are as long as it is."""
        length = len(tokens)
        for name, values in {"tokens": tokens, "mask": said, "logprobs": logprobs}.items():
            kept = getattr(self, name)
            kept[row] = 0
            kept[row, :length] = torch.tensor(values, dtype=kept.dtype)
        self.lengths[row] = length

    def said(self) -> tuple[Tensor, ...]:
        """What `put` fills in."""
        return self.tokens, self.mask, self.logprobs, self.lengths

    def state_dict(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "responses"}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, tensor in state.items():
            getattr(self, name).copy_(tensor)

    def attach(
        self, batch: dict[str, Any], rows: Sequence[int], names: Sequence[str], fresh: bool = False
    ) -> dict[str, Any]:
        """Add to a collated batch of the responses ``rows`` what objectives read beside it.

        That is ``rollout.<name>`` [B, T] of everything per token; ``rollout.groups`` [B], the same number for the same
        prompt; ``rollout.longest``, the length allowed; ``rollout.fresh``, 1 if the policy is still the one that said
        them (its ratio has to be one), else 0; ``metrics.<name>`` [B].

        Args:
            names: of the metrics, "" for one that is not reported.
            fresh: the policy has not been changed since it said them.
        """
        chosen = torch.as_tensor(rows)
        batch["rollout.fresh"] = torch.tensor(float(fresh))
        batch["rollout.longest"] = torch.tensor(float(self.tokens.shape[1]))
        batch["rollout.groups"] = (chosen // self.responses).unique(return_inverse=True)[1]
        for name in PER_TOKEN:
            batch[f"rollout.{name}"] = spread(getattr(self, name)[chosen], self.mask[chosen], batch["loss_mask"])
        for column, name in enumerate(names):
            if name:
                batch[f"metrics.{name}"] = self.metrics[chosen, column]
        return batch


def spread(compact: Tensor, said: Tensor, loss_mask: Tensor) -> Tensor:
    """[B, R] about the tokens that were said -> [B, T] about those of the rendered rows, zero elsewhere."""
    return torch.zeros(loss_mask.shape, dtype=compact.dtype).masked_scatter(loss_mask, compact[said])


def gather(wide: Tensor, loss_mask: Tensor, said: Tensor) -> Tensor:
    """The way back: [B, T] -> [B, R]."""
    return torch.zeros(said.shape, dtype=wide.dtype).masked_scatter(said, wide[loss_mask])


def rendered(batch: dict[str, Any]) -> dict[str, Any]:
    """What the renderer made of a batch; names with a dot are the objective's."""
    return {name: value for name, value in batch.items() if "." not in name}
