"""An eye and a language model become one assistant that can put pictures into words."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import ResNetModel

from chatwright.data.batches import Batches, lengths_of
from chatwright.data.documents import as_written
from chatwright.data.records import Document
from chatwright.data.render import Renderer
from chatwright.data.rendered import Rendered
from chatwright.data.store import load
from chatwright.models import build
from chatwright.models.eyes import freeze_eye, restore_eye
from chatwright.models.load import load_model
from chatwright.objectives.crossmodal.filip import FILIP, speak_as_loud
from chatwright.objectives.crossmodal.region import RegionFILIP
from chatwright.objectives.language.causal import CausalLanguageModel
from chatwright.stages.base import Stage
from chatwright.stages.workers import render_rows
from chatwright.training import distributed
from chatwright.training.loop import Training, fit


@dataclass
class Align(Stage):
    """Align an eye with a language model: contrastive learning, then the projector under the language model.

    First FILIP teaches eye and projector what the words of captions look like, and where things are if the captions
    tell (``meta["patches"]``: for every patch the names of what has its centre there); then, as in LLaVA, the projector
    alone learns to make the frozen language model write the captions.

    Args:
        eye: artifact of the vision stage.
        language: artifact of the pretrain stage.
        captions: documents of one picture followed by its caption.
        pixels: side of the pictures that the assistant reads.
        contrastive_batch: pictures in a step of contrastive learning.
        contrastive_steps: how many such steps.
        caption_batch: captions in a step of the projector's training.
        caption_steps: how many such steps.
        seed: of the first weights and the order.
        contrastive: settings of the loop for contrastive learning.
        projector: settings of the loop for the projector.
    """

    together: ClassVar[bool] = True

    eye: Path
    language: Path
    captions: Path
    pixels: int = 64
    contrastive_batch: int = 256
    contrastive_steps: int = 200
    caption_batch: int = 128
    caption_steps: int = 200
    seed: int = 0
    contrastive: Training = field(default_factory=lambda: Training(learning_rate=2e-3, precision="fp32"))
    projector: Training = field(default_factory=lambda: Training(learning_rate=3e-3))

    def run(self, out: Path) -> None:
        torch.manual_seed(self.seed)
        eye = ResNetModel.from_pretrained(self.eye / "model").to(memory_format=torch.channels_last)
        stride = 2 ** (1 + len(eye.config.hidden_sizes))
        language = load_model(self.language)
        renderer = Renderer(build.processor(Renderer.load(self.language / "model").tokenizer, self.pixels, stride))
        model = build.assistant(eye, language, renderer.processor)
        documents = load(self.captions, Document)
        rows = render_rows(renderer.document, documents)
        model.requires_grad_(False)
        model.model.vision_tower.requires_grad_(True)
        model.model.multi_modal_projector.requires_grad_(True)
        self._contrast(model, renderer, rows, documents, out)

        rows = freeze_eye(model, rows)
        loader = Batches(
            rows, renderer.collate, self.caption_batch, self.caption_steps, self.seed, lengths=lengths_of(rows)
        )
        objective = CausalLanguageModel(model, renderer)
        fit(objective, loader, self.projector, out, "projector")
        if not distributed.first():
            return
        restore_eye(model)
        objective.save(out / "model")

    def _contrast(
        self, model: Any, renderer: Renderer, rows: Sequence[Rendered], documents: Sequence[Document], out: Path
    ) -> None:
        tokenizer = renderer.tokenizer
        ids = tokenizer([document.text for document in documents], add_special_tokens=False)["input_ids"]
        placed: list[list[list[str]]] = [document.meta.get("patches") or [] for document in documents]
        words = {word for patches in placed for patch in patches for word in patch}
        tokens = {word: tokenizer(as_written(word), add_special_tokens=False)["input_ids"] for word in words}
        nothing = tokenizer(as_written("."), add_special_tokens=False)["input_ids"][0]

        def collate(some: list[int]) -> dict[str, Any]:
            captions = torch.zeros(len(some), len(tokenizer), dtype=torch.bool)
            for row, i in enumerate(some):
                captions[row, ids[i]] = True
            batch = {"pixel_values": torch.cat([rows[i].media["pixel_values"] for i in some]), "captions": captions}
            if all(placed):
                places = torch.zeros(len(some), len(placed[some[0]]), len(tokenizer), dtype=torch.bool)
                for row, i in enumerate(some):
                    for place, patch in enumerate(placed[i]):
                        places[row, place, [token for word in patch for token in tokens[word]] or nothing] = True
                batch |= {"places": places, "nothing": nothing}
            return batch

        objective = (RegionFILIP if all(placed) else FILIP)(model, renderer)
        # Every process computes all of a step: its captions are each other's negatives.
        size, steps = self.contrastive_batch, self.contrastive_steps
        loader = Batches(range(len(rows)), collate, size, steps, self.seed, size)
        fit(objective, loader, self.contrastive, out, "contrastive")
        speak_as_loud(model.eval(), collate(list(range(min(256, len(rows)))))["pixel_values"])
