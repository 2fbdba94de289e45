"""An eye that learns from pictures alone."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chatwright.data.augment import random_views, stack_pictures
from chatwright.data.batches import Batches
from chatwright.data.records import Document
from chatwright.data.store import load
from chatwright.models import build
from chatwright.objectives.vision.simclr import SimCLR
from chatwright.stages.base import Stage
from chatwright.training.loop import Training, fit


@dataclass
class Vision(Stage):
    """Train a small residual network by self-supervised learning (SimCLR), without any label.

    Args:
        drawings: documents with one picture each; transparent parts get random grounds.
        widths: channels of each stage of the network; every stage halves the picture after the stem's quarter.
        pixels: side of the views it learns from; a convolutional eye carries over to larger pictures.
        batch_size: pictures in a step, two views of each.
        steps: optimiser steps.
        temperature: of the similarities.
        seed: of the first weights, the order and the views.
        training: settings of the loop.
    """

    drawings: Path
    widths: list[int] = field(default_factory=lambda: [32, 64, 128])
    pixels: int = 32
    batch_size: int = 256
    steps: int = 400
    temperature: float = 0.1
    seed: int = 0
    training: Training = field(default_factory=lambda: Training(learning_rate=3e-3, precision="fp32"))

    def run(self, out: Path) -> None:
        torch.manual_seed(self.seed)
        pictures = list(stack_pictures(list(load(self.drawings, Document)), round(1.5 * self.pixels)))

        def two_views(rows: list[Tensor]) -> dict[str, Any]:
            batch = torch.stack(rows)
            return {"first": random_views(batch, self.pixels), "second": random_views(batch, self.pixels)}

        eye = build.eye(self.widths).to(memory_format=torch.channels_last)
        objective = SimCLR(eye, self.temperature)
        loader = Batches(pictures, two_views, min(self.batch_size, len(pictures)), self.steps, self.seed)
        fit(objective, loader, self.training, out, "vision")
        objective.save(out / "model")
