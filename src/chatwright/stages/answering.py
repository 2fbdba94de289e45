"""Who answers prompts in a stage: the built-in engine, or a vLLM server."""

import shutil
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel

from chatwright.data.render import Renderer
from chatwright.generation.backend import Backend
from chatwright.generation.backends.vllm import VLLM
from chatwright.generation.engine import Engine
from chatwright.models.eyes import seeing
from chatwright.models.load import load_model
from chatwright.training import distributed
from chatwright.training.loop import best_device


def backend_of(folder: Path, batch_size: int, server: str = "") -> Backend:
    """What answers as the model of a checkpoint does.

    Args:
        folder: as `checkpoint_of` gives it.
        batch_size: answers written together.
        server: URL of a vLLM server, which takes the weights from the folder; empty for the built-in engine.

    Raises:
        ChatwrightError: the checkpoint is damaged, or as `VLLM` and `VLLM.load`.
    """
    renderer = Renderer.load(folder)
    if not server:
        return Engine(load_model(folder).to(best_device()), renderer, batch_size)
    backend = VLLM(server, renderer, batch_size)
    backend.load(folder)
    return backend


class Published:
    """A policy for which a server answers; it gets the weights by way of a folder that both see.

    Args:
        model: gives the policy as it is now, without an adapter.
        folder: of the copies; only the last is kept.
    """

    def __init__(self, server: VLLM, model: Callable[[], PreTrainedModel], folder: Path) -> None:
        self.server, self.model, self.folder = server, model, folder

    def update(self, number: int) -> None:
        """Let the server answer as the policy does now, in round ``number``; every process of a world calls it.

        Raises:
            ChatwrightError: as `VLLM.load`.
        """
        if distributed.first():
            shutil.rmtree(self.folder, ignore_errors=True)
            # A name of its own, so that nothing a server has kept of the last one can stand for it.
            new = self.folder / f"{number:05d}"
            model = self.model()
            with seeing(model):
                model.save_pretrained(new)
            self.server.renderer.save(new)
            self.server.load(new)
        distributed.barrier()
