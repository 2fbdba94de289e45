"""The vision tower inside a multimodal model: finding it, freezing it, looking at every picture only once."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import FastVlmForConditionalGeneration, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from chatwright.data.render import Rendered

TOWERS = ("vision_tower", "vision_model", "visual")


def vision_tower(model: PreTrainedModel) -> nn.Module | None:
    """The part of a model that looks at pictures, None where it reads text only."""
    return next((getattr(model.base_model, name) for name in TOWERS if hasattr(model.base_model, name)), None)


class Remembered(nn.Module):
    """Stands in for a frozen eye: what it is given as pixels are already the features that the eye would give."""

    def forward(self, pixel_values: Tensor, **_: object) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=pixel_values)


def look_once(model: PreTrainedModel, rows: Sequence[Rendered], batch: int = 256) -> list[Rendered]:
    """Put the frozen eye's features [pictures, C, H, W] in the place of the pixels of every row.

    Only for models whose eye gives one feature map for one picture (FastVlm); others get their rows back unchanged.
    The model must then be trained with `Remembered` as its vision tower.
    """
    if not isinstance(model, FastVlmForConditionalGeneration):
        return list(rows)
    seen: dict[int, Tensor] = {}
    pending = list({id(row.media["pixel_values"]): row.media["pixel_values"] for row in rows if row.media}.items())
    with torch.inference_mode():
        for i in range(0, len(pending), batch):
            part = pending[i : i + batch]
            pixels = torch.cat([pictures for _, pictures in part])
            features = model.model.vision_tower(pixels.to(model.device, model.dtype)).last_hidden_state.cpu()
            for (key, _), feature in zip(part, features.split([len(p) for _, p in part]), strict=True):
                seen[key] = feature.clone()
    return [
        Rendered(row.input_ids, row.loss_mask, {**row.media, "pixel_values": seen[id(row.media["pixel_values"])]})
        if row.media
        else row
        for row in rows
    ]
