"""Opening checkpoints."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

from chatwright.errors import ChatwrightError
from chatwright.files import digest
from chatwright.models import registry
from chatwright.models.attention import use_packing


def checkpoint_of(name: str | Path) -> Path:
    """The folder that ``from_pretrained`` opens: ``name`` itself, ``name/model`` of an artifact, or a fetched model.

    Raises:
        ChatwrightError: there is no such checkpoint, or files of it are missing.
    """
    folder = Path(name)
    if not folder.exists():
        if str(name).count("/") == 1 and not folder.parent.exists():
            return registry.fetch(str(name))
        raise ChatwrightError(f"{name}: no such folder; name a checkpoint, or run the stage that makes it")
    if (folder / "model").is_dir():
        folder = folder / "model"
    if not (folder / "config.json").exists():
        raise ChatwrightError(f"{folder}: config.json is missing; name a checkpoint folder or run its stage again")
    for file in _weights(folder):
        if not file.exists():
            raise ChatwrightError(f"{file}: missing; copy the checkpoint again or run its stage again")
    return folder


def _weights(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's weights."""
    index = folder / "model.safetensors.index.json"
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    return [folder / name for name in sorted(names)]


def fingerprint(folder: Path) -> str:
    """What identifies a checkpoint's weights: the SHA-256 of their file, or of the SHA-256s of several."""
    hashes = [digest(file) for file in _weights(folder)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def load_model(name: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Open a causal or multimodal language model, in evaluation mode; it computes packed rows where it can.

    Args:
        name: a checkpoint folder, an artifact folder or the name of a model that can be fetched.
        dtype: of the weights.

    Raises:
        ChatwrightError: the checkpoint is missing or damaged.
    """
    folder = checkpoint_of(name)
    try:
        config = AutoConfig.from_pretrained(folder)
        auto = (
            AutoModelForMultimodalLM
            if config.model_type in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
            else AutoModelForCausalLM
        )
        model, notes = auto.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        line = str(error).strip().split("\n")[0][:200]
        raise ChatwrightError(f"{folder}: damaged or not a checkpoint ({line}); copy it again") from error
    missing = sorted(notes["missing_keys"])
    if missing:
        raise ChatwrightError(f"{folder}: {len(missing)} weights are missing, {missing[0]} the first; copy it again")
    use_packing(model)
    return model.eval()
