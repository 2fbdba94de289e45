"""Heads on top of any transformers model: one number for a whole answer, or one for every token."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from chatwright.data.render import Rendered, Renderer
from chatwright.errors import ChatwrightError
from chatwright.models.load import checkpoint_of, hidden_states, load_model

HEAD = "score_head.safetensors"


class ScalarHead(nn.Linear):
    """[..., D] -> [...]: a linear map to one number, std 1 / sqrt(D + 1), bias 0 (Stiennon et al. 2020, appendix B)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)
        nn.init.normal_(self.weight, std=1 / math.sqrt(width + 1))
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden.to(self.weight.dtype)).squeeze(-1)


class RewardModel(nn.Module):
    """A transformers model with a scalar head on its last hidden state: a reward model, or the critic of PPO.

    On disk it is the model's own checkpoint, which ``from_pretrained`` opens, with the head beside it in
    ``score_head.safetensors``.
    """

    def __init__(self, backbone: PreTrainedModel, head: ScalarHead | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head or ScalarHead(backbone.config.get_text_config().hidden_size)

    def scores(self, inputs: dict[str, Any]) -> Tensor:
        """[B]: the score of every row, read at its last real token, wherever the padding is."""
        hidden = hidden_states(self.backbone, inputs)
        mask = inputs["attention_mask"]
        last = mask.shape[1] - 1 - mask.int().flip(1).argmax(1)
        return self.head(hidden[torch.arange(len(mask), device=hidden.device), last])

    def values(self, inputs: dict[str, Any]) -> Tensor:
        """[B, T]: entry t is the value of the state before token t; entry 0 is 0."""
        values = self.head(hidden_states(self.backbone, inputs)[:, :-1])
        return torch.cat([torch.zeros_like(values[:, :1]), values], 1)

    def save(self, folder: Path) -> None:
        self.backbone.save_pretrained(folder)
        save_file({name: tensor.contiguous() for name, tensor in self.head.state_dict().items()}, folder / HEAD)

    @classmethod
    def load(cls, name: str | Path, attention: str = "sdpa") -> "RewardModel":
        """Read what `save` wrote; ``name`` is a folder of it or an artifact.

        Raises:
            ChatwrightError: the folder holds a model without a score head.
        """
        folder = checkpoint_of(name)
        if not (folder / HEAD).exists():
            raise ChatwrightError(f"{folder}: no {HEAD}, so no reward model; make one with `chatwright reward`")
        backbone = load_model(folder, attention=attention)
        head = ScalarHead(backbone.config.get_text_config().hidden_size)
        head.load_state_dict(load_file(folder / HEAD))
        return cls(backbone, head)


@torch.no_grad()
def score_all(model: RewardModel, renderer: Renderer, rows: Sequence[Rendered], batch_size: int = 64) -> Tensor:
    """[N] scores of rendered answers, rows of like length computed together."""
    scores = torch.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    device = model.head.weight.device
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = renderer.collate([rows[i] for i in chosen])
        scores[chosen] = model.scores({name: value.to(device) for name, value in batch.items()}).cpu()
    return scores
