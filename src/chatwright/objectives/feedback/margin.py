"""The reward model of Llama 2: the further apart two responses were judged, the further apart are their scores.

Touvron et al. 2023, "Llama 2: Open Foundation and Fine-Tuned Chat Models", section 3.2.2.
"""

from typing import Any

from chatwright.data.render import Renderer
from chatwright.models.heads import RewardModel
from chatwright.objectives.base import Loss
from chatwright.objectives.feedback.bradley_terry import BradleyTerry
from chatwright.objectives.feedback.mathematics import bradley_terry, bradley_terry_with_margin
from chatwright.objectives.feedback.rollouts import rendered


class Margin(BradleyTerry):
    """`BradleyTerry` with a margin in the score that the better response has to be ahead by.

    A batch has ``comparison.ratings`` [N, J] beside what `BradleyTerry` reads: the number that each judge gave to each
    response, nan where there is none.

    Args:
        scale: the margin of a rating one higher. 1/3 is the small margin of Llama 2 (table 27: 1, 2/3, 1/3 and 0 for
            "significantly better" down to "negligibly better"), 1 the large one.
    """

    def __init__(self, model: RewardModel, renderer: Renderer, scale: float = 1 / 3) -> None:
        super().__init__(model, renderer)
        self.scale = scale

    def loss(self, batch: dict[str, Any]) -> Loss:
        scores = self.model.scores(rendered(batch))
        ranks, groups = batch["comparison.ranks"], batch["comparison.groups"]
        total = bradley_terry_with_margin(scores, ranks, groups, batch["comparison.ratings"], self.scale)
        _, pairs, correct = bradley_terry(scores.detach(), ranks, groups)
        return Loss(total, pairs, {"accuracy": (correct, pairs)})
