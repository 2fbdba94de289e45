"""What every way of learning has in common: a loss that is a sum, and the weight it has to be divided by."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn


class Loss(NamedTuple):
    """A loss that nobody has divided yet.

    total: scalar, the SUM over the items of the micro-batch; its gradient is what the loop accumulates.
    weight: scalar, how many items (valid tokens, pairs, images) the sum runs over.
    metrics: name -> (sum, weight), reported as sum / weight over the whole step; detached.

    The loop divides once, by the weight of all micro-batches of all processes, so that how a batch is split changes
    nothing.
    """

    total: Tensor
    weight: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]]


class Objective(nn.Module):
    """A method of the literature: it owns its modules, says its loss, and saves what it made.

    whole: within it the modules have their weights. While the loop trains in several processes (`Spread`) they have
    none otherwise, and whoever lets them answer or judge between two steps needs it.
    """

    whole: Callable[[], AbstractContextManager[None]] = nullcontext

    def loss(self, batch: dict[str, Any]) -> Loss:
        """The summed loss of one micro-batch, as `chatwright.data.render.Renderer.collate` or the stage made it."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "Objective":
        """As for any module, but what is frozen stays in evaluation mode: no dropout, no moving batch statistics."""
        super().train(mode)
        for module in self.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self

    def factor(self, name: str) -> float:
        """Part of the learning rate that the parameter ``name`` gets."""
        return 1.0

    def save(self, folder: Path) -> None:
        """Write what training made into ``folder``, a checkpoint that ``from_pretrained`` opens."""
        raise NotImplementedError
