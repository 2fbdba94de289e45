"""Everything a run needs to go on as if it had never stopped: tensors as safetensors, the rest as JSON, no pickle.

`torch.distributed.checkpoint` writes the tensors, each process its own parts, and reads them into any other number of
processes. Its usual storage keeps a pickle; this is the one of Hugging Face, where a file's header says which part of
which tensor it holds.
"""

import json
import os
import shutil
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from chatwright.errors import ChatwrightError
from chatwright.files import digest, write
from chatwright.terminal import console
from chatwright.training.distributed import agreed, first, gathered, rank, size

KEEP = 2
FILE_BYTES = 256 * 2**20  # in memory while they are written

# Of a world of one, which is meant.
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning, "torch.distributed.checkpoint")


class Checkpoints:
    """The checkpoints of one run: ``folder/step-<step>``, each whole or not there at all, the newest two.

    A checkpoint is its safetensors, ``values.json``, and ``hashes.json`` with the SHA-256 of each of them. Saving
    copies the tensors; a thread writes them while training goes on. A context, which waits for the thread.

    Raises:
        ChatwrightError: from `save` and `wait`, the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Of its own, since the thread's messages must not come between those of training.
        self.group = dist.new_group(backend="gloo") if size() > 1 else None
        self.thread = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.thread.shutdown()
        if self.group:
            dist.destroy_process_group(self.group)

    def save(self, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Copy a checkpoint and begin to write it, after the one before.

        Args:
            tensors: parts of what is spread over the processes, and the same of everything else in all of them.
            values: what JSON can hold; the first process' are written.
        """
        self.wait()
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        self.writing = self.thread.submit(self._write, step, copies, json.dumps(values))

    def finish(self, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Write the last checkpoint: nothing changes the tensors any more, so that they need no copy."""
        self.wait()
        self._write(step, tensors, json.dumps(values))

    @property
    def busy(self) -> bool:
        """Whether one is still being written."""
        return self.writing is not None and not self.writing.done()

    def wait(self) -> None:
        """Until what is being written is on disk."""
        if self.writing:
            self.writing.result()
        self.writing = None

    def load(self, parameters: dict[str, Tensor]) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint that is whole: (step, tensors, values), or None where there is none.

        Args:
            parameters: by beginnings of names; a tensor of that name and shape is spread over the processes as the
                parameter is, whatever it was when it was saved.
        """
        if first():
            shutil.rmtree(self.folder / "half", ignore_errors=True)
        for name in agreed(sorted((path.name for path in self.folder.glob("step-*")), reverse=True)):
            path = self.folder / name
            if not (damage := next(filter(None, gathered(_damage(path))), "")):
                return int(name.removeprefix("step-")), *self._read(path, parameters)
            console.print(f"{path}: damaged ({damage}); going on from the checkpoint before it")
        return None

    def _write(self, step: int, tensors: dict[str, Tensor], values: str) -> None:
        final, half = self.folder / f"step-{step:08d}", self.folder / "half"
        try:
            tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
            if self.group:
                storage = HuggingFaceStorageWriter(str(half), _files(tensors), save_distributed=True)
                dcp.save(tensors, storage_writer=storage, process_group=self.group)
            else:  # the same in half the time, and without a copy of the tensors in memory
                half.mkdir(parents=True, exist_ok=True)
                save_file(tensors, half / "shard-00001-model.safetensors")
                with (half / "shard-00001-model.safetensors").open("rb") as file:
                    os.fsync(file.fileno())
            hashes = {file.name: digest(file) for file in half.glob(f"shard-{rank() + 1:05d}-*")}
            everyone: list[dict[str, str]] = [hashes] * size()
            if self.group:
                dist.all_gather_object(everyone, hashes, self.group)
            if first():
                write(half / "values.json", values)
                hashes = {name: value for one in everyone for name, value in one.items()}
                hashes["values.json"] = digest(half / "values.json")
                write(half / "hashes.json", json.dumps(hashes, indent=1))
                if final.exists():
                    shutil.rmtree(final)
                half.rename(final)
                for old in sorted(self.folder.glob("step-*"))[:-KEEP]:
                    shutil.rmtree(old)
        except (CheckpointException, OSError, SafetensorError) as error:
            causes = [cause for cause, _ in error.failures.values()] if isinstance(error, CheckpointException) else []
            if any("No space left" in str(cause) for cause in [error, *causes]):
                raise ChatwrightError(
                    f"{final}: the disk is full; free some space and run the same command again"
                ) from error
            raise

    def _read(self, path: Path, parameters: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        metadata = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
        for name, kept in cast(dict[str, TensorStorageMetadata], metadata).items():
            like = parameters.get(name) if name in parameters else parameters.get(name.rpartition(".")[0])
            if like is None or like.shape != kept.size:
                like = torch.empty(kept.size, dtype=kept.properties.dtype)
            tensors[name] = torch.zeros_like(like)
        storage = HuggingFaceStorageReader(str(path))
        dcp.load(tensors, storage_reader=storage, process_group=self.group, no_dist=self.group is None)
        return tensors, json.loads((path / "values.json").read_text())


def _files(tensors: dict[str, Tensor]) -> dict[str, int]:
    """The number of the file that each tensor goes to."""
    found, size = {}, 0
    for name, tensor in tensors.items():
        found[name] = 1 + size // FILE_BYTES
        size += tensor.numel() * tensor.element_size()
    return found


def _damage(path: Path) -> str:
    """What is wrong with a checkpoint, as far as this process looks: at its share of the files."""
    try:
        hashes = json.loads((path / "hashes.json").read_text())
        if "values.json" not in hashes:
            return "hashes.json is not what was written"
        for file in sorted(hashes)[rank() :: size()]:
            if digest(path / file) != hashes[file]:
                return f"{file} is not what was written"
    except (OSError, ValueError, TypeError) as error:
        return str(error)
    return ""


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The state of optimisers as flat names: ``optimizer.<number>.<number of the parameter>.<name>``."""
    return {
        f"optimizer.{k}.{i}.{name}": value
        for k, optimizer in enumerate(optimizers)
        for i, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimizers(optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took."""
    for k, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for path, value in tensors.items():
            if path.startswith(f"optimizer.{k}."):
                _, _, i, name = path.split(".")
                state.setdefault(int(i), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def optimized(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The parameters by the names that `optimizer_tensors` begins theirs with."""
    return {
        f"optimizer.{k}.{i}": parameter
        for k, optimizer in enumerate(optimizers)
        for i, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"])
    }
