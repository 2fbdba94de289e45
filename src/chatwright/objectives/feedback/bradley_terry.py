"""The reward model of InstructGPT: ranked responses, all pairs of a prompt at once.

Ouyang et al. 2022, "Training language models to follow instructions with human feedback", section 3.5; the pairwise
model is Bradley & Terry 1952.
"""

from pathlib import Path
from typing import Any, Self

from chatwright.data.render import Renderer
from chatwright.models.heads import RewardModel
from chatwright.objectives.base import Loss, Objective
from chatwright.objectives.feedback.mathematics import bradley_terry
from chatwright.objectives.feedback.rollouts import rendered


class BradleyTerry(Objective):
    """Teach a reward model to score the response that was preferred above the other.

    A batch is what the renderer's ``collate`` made of N prompts with their responses and, beside it,
    ``comparison.ranks`` [N], or [N, J] where J judged (0 the best; equal is a tie and makes no pair), and
    ``comparison.groups`` [N] (one number for the responses that were ranked together, which must not be split over
    micro-batches). The weight is the number of pairs.

    Args:
        model: the reward model; parameters without ``requires_grad`` stay as they are.
        renderer: saved beside the model.
    """

    def __init__(self, model: RewardModel, renderer: Renderer) -> None:
        super().__init__()
        self.model, self.renderer = model, renderer
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Dropout and batch statistics stay off: the pairs of a prompt are to differ by their responses alone."""
        super().train(False)
        return self

    def loss(self, batch: dict[str, Any]) -> Loss:
        scores = self.model.scores(rendered(batch))
        total, pairs, correct = bradley_terry(scores, batch["comparison.ranks"], batch["comparison.groups"])
        return Loss(total, pairs, {"accuracy": (correct, pairs)})

    def save(self, folder: Path) -> None:
        self.model.save(folder)
        self.renderer.save(folder)
