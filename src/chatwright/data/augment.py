"""Random views of pictures, made for a whole batch at once; transparent drawings are laid on random grounds."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from chatwright.data.records import Document
from chatwright.errors import ChatwrightError


def stack_pictures(documents: list[Document], side: int) -> Tensor:
    """The first picture of each document as uint8 [N, 4, side, side], red, green, blue and opacity."""
    rows = []
    for document in documents:
        picture = next((part for part in document.content if part.type == "image"), None)
        if picture is None:
            raise ChatwrightError("a document without a picture cannot teach an eye; remove it or add one")
        image = picture.image("RGBA").resize((side, side))
        rows.append(
            torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(side, side, 4).permute(2, 0, 1)
        )
    return torch.stack(rows)


def random_views(pictures: Tensor, pixels: int) -> Tensor:
    """One random view of every picture: moved, scaled, turned a little, mirrored, recoloured, on a random ground.

    Draws from torch's global random state, which checkpoints keep.

    Args:
        pictures: uint8 [N, 4, H, W], the last channel opacity.
        pixels: side of the views.

    Returns:
        float32 [N, 3, pixels, pixels] in -1..1.
    """
    count = len(pictures)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape) * (high - low) + low

    zoom = torch.exp(uniform(math.log(0.9), math.log(1.8)))  # of what is seen: above 1 the drawing is smaller
    angle = uniform(-0.2, 0.2)
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    free = (zoom - 1).abs() + 0.15
    shift = torch.stack([uniform(-1, 1) * free, uniform(-1, 1) * free], -1)
    rows = torch.stack(
        [
            torch.stack([mirror * zoom * angle.cos(), -zoom * angle.sin(), shift[:, 0]], -1),
            torch.stack([mirror * zoom * angle.sin(), zoom * angle.cos(), shift[:, 1]], -1),
        ],
        1,
    )
    grid = F.affine_grid(rows, [count, 4, pixels, pixels], align_corners=False)
    colours = pictures.float() / 255
    premultiplied = torch.cat([colours[:, :3] * colours[:, 3:], colours[:, 3:]], 1)
    seen = F.grid_sample(premultiplied, grid, align_corners=False)
    ramp = torch.linspace(0, 1, pixels).view(1, 1, pixels, 1)
    ramp = torch.where((torch.rand(count) < 0.5).view(-1, 1, 1, 1), ramp, ramp.transpose(2, 3))
    ground = torch.lerp(uniform(0.4, 1, 3, 1, 1), uniform(0.4, 1, 3, 1, 1), ramp)
    view = seen[:, :3] + (1 - seen[:, 3:]) * ground
    view = view * uniform(0.8, 1.2, 3, 1, 1) + uniform(-0.1, 0.1, 1, 1, 1)
    return view.clamp(0, 1) * 2 - 1
