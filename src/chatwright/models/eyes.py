"""The vision tower inside a multimodal model: frozen, it looks at every picture only once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import FastVlmForConditionalGeneration, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from chatwright.data.rendered import Rendered

TOWERS = ("vision_tower", "vision_model", "visual")
PROJECTORS = ("multi_modal_projector", "connector")


class Remembered(nn.Module):
    """Stands in for a frozen eye: what it is given as pixels are already the features that the eye would give."""

    def __init__(self, eye: PreTrainedModel) -> None:
        super().__init__()
        self.eye = [eye]  # in a list, so that it is no part of what is trained and saved

    def forward(self, pixel_values: Tensor, **_: object) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=pixel_values)


def freeze_eye(model: PreTrainedModel, rows: Sequence[Rendered], batch: int = 256) -> list[Rendered]:
    """Freeze a model's eye; where that is possible let it look at every picture once and for all.

    That is where the eye gives one feature map for one picture (FastVlm): the rows come back with features [pictures,
    C, H, W] in the place of their pixels, and `Remembered` takes the eye's place until `restore_eye`. Rows that share a
    tensor of pixels share its features. Other models get their rows back as they are.
    """
    for name in TOWERS:
        if hasattr(model.base_model, name):
            getattr(model.base_model, name).requires_grad_(False)
    if not isinstance(model, FastVlmForConditionalGeneration):
        return list(rows)
    eye = model.model.vision_tower.eval()
    pictures = {id(row.media["pixel_values"]): row.media["pixel_values"] for row in rows if row.media}
    pending, features = list(pictures.items()), dict[int, Tensor]()
    with torch.no_grad():
        for i in range(0, len(pending), batch):
            part = pending[i : i + batch]
            pixels = torch.cat([pixels for _, pixels in part])
            maps = eye(pixels.to(model.device, model.dtype)).last_hidden_state.cpu()
            for (key, _), feature in zip(part, maps.split([len(pixels) for _, pixels in part]), strict=True):
                features[key] = feature.contiguous()
    model.model.vision_tower = Remembered(eye)
    return [
        replace(row, media={"pixel_values": features[id(row.media["pixel_values"])]}) if row.media else row
        for row in rows
    ]


def restore_eye(model: PreTrainedModel) -> None:
    """Put the eye back that `freeze_eye` took out."""
    if isinstance(model, FastVlmForConditionalGeneration) and isinstance(model.model.vision_tower, Remembered):
        model.model.vision_tower = model.model.vision_tower.eye[0]


@contextmanager
def seeing(model: PreTrainedModel) -> Iterator[None]:
    """Within it the model has its own eye, as it is saved; afterwards it is as it was."""
    before = getattr(model.base_model, "vision_tower", None)
    restore_eye(model)
    try:
        yield
    finally:
        if isinstance(before, Remembered):
            model.base_model.vision_tower = before


def share_eye(models: Sequence[PreTrainedModel], rows: Sequence[Rendered]) -> list[Rendered]:
    """Freeze the eyes of all models; where they are one and the same, let it look at every picture only once."""
    eyes = [getattr(model.base_model, name) for model in models for name in TOWERS if hasattr(model.base_model, name)]
    for eye in eyes:
        eye.requires_grad_(False)
    weights = [eye.state_dict() for eye in eyes]
    same = all(torch.equal(weights[0][name], other[name]) for other in weights[1:] for name in weights[0])
    if len(eyes) < len(models) or not same:
        return list(rows)
    for model in models[1:]:
        freeze_eye(model, [])
    return freeze_eye(models[0], rows)
