"""An eye that learns from pictures alone."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from chatwright.data.augment import random_views, stack_pictures
from chatwright.data.batches import Batches
from chatwright.data.records import Document
from chatwright.data.store import load
from chatwright.models import build
from chatwright.objectives.vision.exemplar import Exemplar
from chatwright.stages.base import Stage
from chatwright.training import distributed
from chatwright.training.loop import Training, fit

TILES = 2  # views in a row and in a column of a mosaic


@dataclass
class Vision(Stage):
    """Train a small residual network by self-supervised learning (Exemplar-CNN), without any label.

    Args:
        drawings: documents with one picture each; transparent parts get random grounds.
        widths: channels of each stage of the network; every stage halves the picture after the stem's quarter.
        pixels: side of the views it learns from; a convolutional eye carries over to larger pictures.
        batch_size: views in a step, a multiple of 4.
        steps: optimiser steps.
        seed: of the first weights, the order and the views.
        training: settings of the loop.
    """

    together: ClassVar[bool] = True

    drawings: Path
    widths: list[int] = field(default_factory=lambda: [32, 64, 128])
    pixels: int = 32
    batch_size: int = 256
    steps: int = 1000
    seed: int = 0
    training: Training = field(default_factory=lambda: Training(learning_rate=3e-3, decay="linear", precision="fp32"))

    def run(self, out: Path) -> None:
        torch.manual_seed(self.seed)
        pictures = stack_pictures(list(load(self.drawings, Document)), round(1.5 * self.pixels))

        def views(some: list[int]) -> dict[str, Any]:
            return {"views": random_views(pictures[some], self.pixels), "picture": torch.tensor(some)}

        eye = build.eye(self.widths).to(memory_format=torch.channels_last)
        objective = Exemplar(eye, len(pictures), TILES)
        size = min(self.batch_size, len(pictures)) // TILES**2 * TILES**2
        # Every process computes all of a step: batch statistics are of all its views.
        loader = Batches(range(len(pictures)), views, size, self.steps, self.seed, size)
        fit(objective, loader, self.training, out, "vision")
        if not distributed.first():
            return
        objective.save(out / "model")
