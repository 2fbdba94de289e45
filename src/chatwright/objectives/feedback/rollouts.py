"""What PPO learns from: responses of the policy, with everything that was known about them when they were said."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass
class Rollouts:
    """N responses of at most R tokens, of fixed shape so that a checkpoint of one run fits into another.

    prompts: [N] numbers of the prompts. tokens: [N, R]. lengths: [N].
    logprobs, values, advantages, returns: [N, R], entry r about the r-th token of the response, 0 behind its end.
    metrics: [N, M], what is reported about each response; the names belong to whoever fills it.
    """

    prompts: Tensor
    tokens: Tensor
    lengths: Tensor
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    metrics: Tensor

    @classmethod
    def empty(cls, rows: int, length: int, metrics: int) -> "Rollouts":
        whole = {name: torch.zeros(rows, dtype=torch.long) for name in ("prompts", "lengths")}
        real = {name: torch.zeros(rows, length) for name in ("logprobs", "values", "advantages", "returns")}
        return cls(
            tokens=torch.zeros(rows, length, dtype=torch.long), metrics=torch.zeros(rows, metrics), **whole, **real
        )

    @property
    def mask(self) -> Tensor:
        """[N, R]: True at the tokens that were said."""
        return torch.arange(self.tokens.shape[1]) < self.lengths[:, None]

    def state_dict(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, tensor in state.items():
            getattr(self, name).copy_(tensor)

    def attach(
        self, batch: dict[str, Any], rows: Sequence[int], names: Sequence[str], fresh: bool = False
    ) -> dict[str, Any]:
        """Add to a collated batch of the responses ``rows`` what `PPO.loss` reads beside it.

        Args:
            names: of the metrics. fresh: the policy has not been changed since it said them.
        """
        batch["rollout.fresh"] = torch.tensor(float(fresh))
        chosen = torch.as_tensor(rows)
        for name in ("logprobs", "values", "advantages", "returns"):
            batch[f"rollout.{name}"] = spread(getattr(self, name)[chosen], self.mask[chosen], batch["loss_mask"])
        for column, name in enumerate(names):
            batch[f"metrics.{name}"] = self.metrics[chosen, column]
        return batch


def spread(compact: Tensor, said: Tensor, loss_mask: Tensor) -> Tensor:
    """[B, R] about the tokens of the responses -> [B, T] about those of the rendered rows, zero elsewhere."""
    return torch.zeros(loss_mask.shape, dtype=compact.dtype).masked_scatter(loss_mask, compact[said])


def gather(wide: Tensor, loss_mask: Tensor, said: Tensor) -> Tensor:
    """The way back: [B, T] -> [B, R]."""
    return torch.zeros(said.shape, dtype=wide.dtype).masked_scatter(said, wide[loss_mask])


def rendered(batch: dict[str, Any]) -> dict[str, Any]:
    """What the renderer made of a batch; names with a dot are the objective's."""
    return {name: value for name, value in batch.items() if "." not in name}
