"""Everything a run needs to go on as if it had never stopped: tensors as safetensors, the rest as JSON, no pickle."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from chatwright.errors import ChatwrightError
from chatwright.files import digest, write
from chatwright.terminal import console

KEEP = 2


def save(folder: Path, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Write ``folder/step-<step>`` whole or not at all, and forget all but the newest two.

    Raises:
        ChatwrightError: the disk is full.
    """
    final, half = folder / f"step-{step:08d}", folder / "half"
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, half / "tensors")
        with (half / "tensors").open("rb") as file:
            os.fsync(file.fileno())
        write(half / "values.json", json.dumps({"sha256": digest(half / "tensors"), "values": values}))
    except (OSError, SafetensorError) as error:
        shutil.rmtree(half, ignore_errors=True)
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise ChatwrightError(
                f"{final}: the disk is full; free some space and run the same command again"
            ) from error
        raise
    if final.exists():
        shutil.rmtree(final)
    half.rename(final)
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old)


def load(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint that is whole: (step, tensors, values), or None where there is none."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            record = json.loads((path / "values.json").read_text())
            if digest(path / "tensors") != record["sha256"]:
                raise ValueError("its hash is not the one that was written")
            return int(path.name.removeprefix("step-")), load_file(path / "tensors"), record["values"]
        except (OSError, ValueError, KeyError) as error:
            console.print(f"{path}: damaged ({error}); going on from the checkpoint before it")
    return None


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The state of optimisers as flat names."""
    return {
        f"optimizer.{k}.{i}.{name}": value
        for k, optimizer in enumerate(optimizers)
        for i, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimizers(optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took."""
    for k, optimizer in enumerate(optimizers):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for path, value in tensors.items():
            if path.startswith(f"optimizer.{k}."):
                _, _, i, name = path.split(".")
                like = parameters[int(i)]
                if value.shape == like.shape:
                    # Fused kernels walk memory, so a moment must lie in memory as its parameter does (channels last).
                    value = torch.empty_like(like).copy_(value)
                state.setdefault(int(i), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
