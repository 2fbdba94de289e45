"""What is served: a model, the people's data, and what may be asked of them."""

import time
from dataclasses import dataclass, field

from chatwright.feedback.conversations import QUOTA
from chatwright.feedback.database import Database
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.generation.service import Service
from chatwright.serving.answers import Limits
from chatwright.serving.errors import ApiError


@dataclass(frozen=True)
class Model:
    """What answers.

    name: what clients call it by. checkpoint: the SHA-256 of its weights; both are kept with every answer.
    """

    engine: Engine
    name: str
    checkpoint: str
    since: int = field(default_factory=lambda: int(time.time()))

    @property
    def pictures(self) -> bool:
        """Whether it reads pictures."""
        return "image" in self.engine.renderer.placeholders


@dataclass
class Served:
    """What the routes need. A request asks for the ``model`` once: another one may take over meanwhile.

    Args:
        queue: requests that may wait.
        limits: what one request may ask for.
        sampling: how the chat page's answers are drawn; each has a seed of its own.
        compare_every: the page shows two answers to every so many-th question of a person; 0 never.
        rate: requests that one account may make in a minute.
        quota: bytes of files that one account may keep.
    """

    model: Model
    database: Database
    queue: int = 128
    limits: Limits = field(default_factory=Limits)
    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=512, temperature=0.7))
    compare_every: int = 10
    rate: int = 1200
    quota: int = QUOTA
    service: Service = field(init=False)

    def __post_init__(self) -> None:
        self.service = Service(self.model.engine, self.queue)

    def swap(self, model: Model) -> None:
        """Let another model answer from now on; what was begun is ended, and recorded, by the one that began it."""
        self.service.swap(model.engine)
        self.model = model

    def called(self, name: str) -> Model:
        """The model, by the name that a client calls it.

        Raises:
            ApiError: that is not its name.
        """
        model = self.model
        if name != model.name:
            raise ApiError(404, f"there is no model {name!r} here; use {model.name!r}", "model", "model_not_found")
        return model
