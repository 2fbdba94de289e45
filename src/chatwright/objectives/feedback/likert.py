"""A reward model that predicts the numbers judges gave.

Regression with a squared error as in HelpSteer2 (Wang et al. 2024, section 4.1), on one number for each response.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from chatwright.data.render import Renderer
from chatwright.errors import ChatwrightError
from chatwright.models.heads import RewardModel
from chatwright.objectives.base import Loss
from chatwright.objectives.feedback.bradley_terry import BradleyTerry
from chatwright.objectives.feedback.mathematics import bradley_terry, squared_error
from chatwright.objectives.feedback.rollouts import rendered


class Likert(BradleyTerry):
    """Teach a reward model the ratings of responses, which need not be compared with each other.

    A batch has ``comparison.ratings`` [N, J] beside what `BradleyTerry` reads: the number that each judge gave to each
    response, nan where there is none. Ratings are learned in standard deviations from their mean, so that scores have
    the scale of other reward models' whatever that of the ratings is: rating = mean + deviation * score. The weight is
    the number of ratings.

    Args:
        ratings: all those to learn from.

    Raises:
        ChatwrightError: all ratings are the same, so that there is nothing to learn.
    """

    def __init__(self, model: RewardModel, renderer: Renderer, ratings: Sequence[float]) -> None:
        super().__init__(model, renderer)
        self.mean, self.deviation = float(np.mean(ratings)), float(np.std(ratings))
        if not self.deviation:
            raise ChatwrightError(f"all {len(ratings)} ratings are {self.mean:g}; collect some that differ")

    def loss(self, batch: dict[str, Any]) -> Loss:
        scores = self.model.scores(rendered(batch))
        total, count = squared_error(scores, (batch["comparison.ratings"] - self.mean) / self.deviation)
        _, pairs, correct = bradley_terry(scores.detach(), batch["comparison.ranks"], batch["comparison.groups"])
        return Loss(total, count, {"accuracy": (correct, pairs)})
