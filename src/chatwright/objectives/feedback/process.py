"""The process reward model: every step of an answer is judged, not its end alone.

Lightman et al. 2023, "Let's Verify Step by Step" (PRM800K), section 2.6.
"""

from pathlib import Path
from typing import Any

from chatwright.data.render import Renderer
from chatwright.models.heads import ProcessRewardModel
from chatwright.objectives.base import Loss, Objective
from chatwright.objectives.feedback.mathematics import step_cross_entropy
from chatwright.objectives.feedback.rollouts import rendered


class Process(Objective):
    """Teach a reward model whether a step is right, read at the token that ends it, by binary cross-entropy.

    Lightman et al. let a language model say the label at that token; a scalar head gives the same log-odds without
    words of the vocabulary set aside for it. A batch has ``steps.ends`` and ``steps.right``, both [B, T] (bool), beside
    what the renderer's ``collate`` made: where a step with a label ends, and whether it is right. The weight is the
    number of steps.
    """

    def __init__(self, model: ProcessRewardModel, renderer: Renderer) -> None:
        super().__init__()
        self.model, self.renderer = model, renderer
        self.train()

    def train(self, mode: bool = True) -> "Process":
        """Dropout and batch statistics stay off, as in every reward model here."""
        super().train(False)
        return self

    def loss(self, batch: dict[str, Any]) -> Loss:
        ends = batch["steps.ends"]
        total, correct = step_cross_entropy(self.model.logits(rendered(batch)), ends, batch["steps.right"])
        return Loss(total, ends.sum(), {"accuracy": (correct, ends.sum())})

    def save(self, folder: Path) -> None:
        self.model.save(folder)
        self.renderer.save(folder)
