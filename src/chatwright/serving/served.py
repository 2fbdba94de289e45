"""What is served: the model, the people's data, and what may be asked of them."""

import time
from dataclasses import dataclass, field

from chatwright.feedback.database import Database
from chatwright.generation.sampling import Sampling
from chatwright.generation.service import Service
from chatwright.serving.answers import Limits
from chatwright.serving.errors import ApiError


@dataclass
class Served:
    """What the routes need.

    Args:
        name: what clients call the model by.
        checkpoint: the SHA-256 of its weights, kept with every answer.
        limits: what one request may ask for.
        sampling: how the chat page's answers are drawn; each has a seed of its own.
        compare_every: the page shows two answers to every so many-th question of a person; 0 never.
        rate: requests that one account may make in a minute.
    """

    service: Service
    name: str
    database: Database
    checkpoint: str
    limits: Limits = field(default_factory=Limits)
    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=512, temperature=0.7))
    compare_every: int = 10
    rate: int = 1200
    since: int = field(default_factory=lambda: int(time.time()))

    def check(self, model: str) -> None:
        if model != self.name:
            raise ApiError(404, f"there is no model {model!r} here; use {self.name!r}", "model", "model_not_found")

    @property
    def pictures(self) -> bool:
        """Whether the model reads pictures."""
        return "image" in self.service.engine.renderer.placeholders
