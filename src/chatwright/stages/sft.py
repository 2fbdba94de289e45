"""Supervised fine-tuning on demonstrations: the survey's instruction tuning, for text and pictures alike."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch

from chatwright.data.batches import Batches, lengths_of
from chatwright.data.records import Demonstration
from chatwright.data.render import Renderer
from chatwright.data.rendered import Rendered
from chatwright.data.store import load
from chatwright.errors import ChatwrightError
from chatwright.models.adapters import Adapter, adapt
from chatwright.models.eyes import freeze_eye, restore_eye
from chatwright.models.load import checkpoint_of, load_model
from chatwright.objectives.language.causal import CausalLanguageModel
from chatwright.stages.base import Stage
from chatwright.stages.workers import render_rows
from chatwright.terminal import console
from chatwright.training import distributed
from chatwright.training.loop import Training, fit


@dataclass
class SFT(Stage):
    """Fine-tune a model on demonstrations; every assistant turn is learned, or the last where a demonstration says so.

    Args:
        model: a checkpoint, an artifact, or the name of a pretrained model.
        demonstrations: records, or a file in one of the usual chat formats.
        batch_size: conversations in a step.
        micro_batch: conversations computed at once; 0 for the whole step.
        epochs: passes over the demonstrations.
        max_length: longer conversations, in tokens, are left out and counted.
        eye_rate: part of the learning rate that the eye gets; 0 leaves it as it is, and lets it look at every picture
            only once.
        projector_rate: part of the learning rate that the projector between eye and decoder gets; 0 leaves it as it is.
        limit: use only the first so many demonstrations; 0 for all.
        seed: of the order, and of an adapter's first weights.
        adapter: learn that alone instead of the whole model; saved for `peft` in ``adapter/``, and in ``model/``.
        training: settings of the loop.
    """

    together: ClassVar[bool] = True

    model: str
    demonstrations: Path
    batch_size: int = 64
    micro_batch: int = 0
    epochs: float = 2.0
    max_length: int = 512
    eye_rate: float = 0.0
    projector_rate: float = 1.0
    limit: int = 0
    seed: int = 0
    adapter: Adapter = field(default_factory=Adapter)
    training: Training = field(default_factory=lambda: Training(learning_rate=2e-3))

    def run(self, out: Path) -> None:
        if self.adapter.method and self.eye_rate:
            raise ChatwrightError("an adapter leaves the eye as it is; set eye_rate to 0, or adapter.method to nothing")
        torch.manual_seed(self.seed)
        folder = checkpoint_of(self.model)
        renderer = self.adapter.prepare(Renderer.load(folder))
        demonstrations = load(self.demonstrations, Demonstration)
        some = demonstrations[: self.limit] if self.limit else demonstrations
        rows = render_rows(partial(_learned, renderer), some)
        kept = [row for row in rows if len(row) <= self.max_length]
        if len(kept) < len(rows):
            console.print(
                f"sft: {len(rows) - len(kept)} of {len(rows)} rows exceed max_length={self.max_length} tokens"
            )
        if not kept:
            raise ChatwrightError(f"{self.demonstrations}: no row within max_length={self.max_length}; raise it")
        lengths = lengths_of(kept)
        model = load_model(folder)
        if self.eye_rate:
            for weight in model.parameters():
                if weight.ndim == 4:  # faster for the convolutions of an eye; those over time have another format
                    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        else:
            kept = freeze_eye(model, kept)
        adapted = adapt(model, renderer, self.adapter) if self.adapter.method else None
        steps = max(1, round(self.epochs * len(kept) / self.batch_size))
        loader = Batches(kept, renderer.collate, self.batch_size, steps, self.seed, self.micro_batch, lengths)
        objective = CausalLanguageModel(model, renderer, self.eye_rate, self.projector_rate)
        fit(objective, loader, self.training, out, "sft")
        if not distributed.first():
            return
        restore_eye(model)
        if adapted:
            adapted.finish(out / "adapter")
        objective.save(out / "model")


def _learned(renderer: Renderer, one: Demonstration) -> Rendered:
    return renderer.demonstration(one.messages, last=one.meta.get("learn") == "last")
