"""A language model from raw text."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

from chatwright.data.batches import Batches, lengths_of
from chatwright.data.records import Document
from chatwright.data.render import Renderer
from chatwright.data.store import load
from chatwright.models import build
from chatwright.objectives.language.causal import CausalLanguageModel
from chatwright.stages.base import Stage
from chatwright.stages.workers import render_rows
from chatwright.training import distributed
from chatwright.training.loop import Training, fit


@dataclass
class Pretrain(Stage):
    """Pretrain a small Qwen3 decoder on documents by next-token prediction.

    Args:
        tokenizer: artifact of the tokenizer stage.
        documents: records to learn from.
        width: hidden size.
        depth: layers.
        heads: attention heads.
        length: the longest sequence of the model, in tokens; longer documents are left out.
        batch_size: documents in a step.
        micro_batch: documents computed at once; 0 for the whole step.
        epochs: passes over the documents.
        seed: of the first weights and the order.
        training: settings of the loop.
    """

    together: ClassVar[bool] = True

    tokenizer: Path
    documents: Path
    width: int = 192
    depth: int = 4
    heads: int = 4
    length: int = 512
    batch_size: int = 256
    micro_batch: int = 64
    epochs: float = 2.0
    seed: int = 0
    training: Training = field(default_factory=lambda: Training(learning_rate=3e-3))

    def run(self, out: Path) -> None:
        torch.manual_seed(self.seed)
        renderer = Renderer.load(self.tokenizer / "model")
        rows = render_rows(renderer.document, load(self.documents, Document))
        rows = [row for row in rows if len(row) <= self.length]
        model = build.decoder(renderer.tokenizer, self.width, self.depth, self.heads, self.length)
        steps = max(1, round(self.epochs * len(rows) / self.batch_size))
        loader = Batches(rows, renderer.collate, self.batch_size, steps, self.seed, self.micro_batch, lengths_of(rows))
        objective = CausalLanguageModel(model, renderer)
        fit(objective, loader, self.training, out, "pretrain")
        if not distributed.first():
            return
        objective.save(out / "model")
