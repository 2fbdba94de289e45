"""Opening checkpoints, and reading hidden states and log-probabilities off any of them."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

from chatwright.errors import ChatwrightError
from chatwright.files import digest
from chatwright.models import registry

_plain_heads: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


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


def load_model(name: str | Path, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> PreTrainedModel:
    """Open a causal or multimodal language model, in evaluation mode.

    Args:
        name: a checkpoint folder, an artifact folder or the name of a model that can be fetched.
        dtype: of the weights.
        attention: "sdpa", or "eager" (plain matrix products, faster to train on a CPU at short lengths).

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
        # Of the language model alone: a convolutional eye knows no attention and would refuse it.
        model.get_decoder().set_attn_implementation(attention)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        line = str(error).strip().split("\n")[0][:200]
        raise ChatwrightError(f"{folder}: damaged or not a checkpoint ({line}); copy it again") from error
    missing = sorted(notes["missing_keys"])
    if missing:
        raise ChatwrightError(f"{folder}: {len(missing)} weights are missing, {missing[0]} the first; copy it again")
    return model.eval()


def attention_for(lengths: list[int]) -> str:
    """The attention that trains fastest at these lengths: on a CPU, plain matrix products where rows are short."""
    return "eager" if not torch.cuda.is_available() and sorted(lengths)[len(lengths) // 2] <= 256 else "sdpa"


def model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """What of a collated batch goes into the model."""
    return {key: value for key, value in batch.items() if key != "loss_mask"}


def hidden_states(model: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
    """Last hidden states [B, T, D] of the model without its head.

    Raises:
        ChatwrightError: the batch has more or fewer pictures than places for them.
    """
    try:
        return model.base_model(**model_inputs(batch), use_cache=False).last_hidden_state
    except ValueError as error:
        if "features" not in str(error) or "tokens" not in str(error):
            raise
        raise ChatwrightError(f"{error}; render text and pictures with the processor of this checkpoint") from error


def answer_logits(model: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
    """Logits [N, V] that predict the N tokens of ``batch["loss_mask"]``, in row-major order; no others are computed."""
    wanted = batch["loss_mask"][:, 1:]
    if _has_plain_head(model):
        return model.get_output_embeddings()(hidden_states(model, batch)[:, :-1][wanted])
    return model(**model_inputs(batch), use_cache=False).logits[:, :-1][wanted]


def token_logprobs(
    model: PreTrainedModel, batch: dict[str, Any], temperature: float = 1.0, excluded: Iterable[int] = ()
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of the supervised tokens.

    Args:
        batch: as `Renderer.collate` gives it.
        temperature: logits are divided by it first.
        excluded: tokens that are given no probability, as `Engine` gives none to the renderer's ``unsaid``.

    Returns:
        Two [B, T] float32 tensors, zero where ``loss_mask`` is False: log p(token t | tokens < t), and the entropy of
        that distribution in nats (detached).
    """
    wanted = batch["loss_mask"].clone()
    wanted[:, 0] = False
    logits = answer_logits(model, batch).float() / temperature
    # A soft prompt that is being learned has no rows in the head yet.
    if ids := sorted(i for i in excluded if i < logits.shape[-1]):
        logits = logits.index_fill(-1, torch.tensor(ids, device=logits.device), float("-inf"))
    everything = logits.log_softmax(-1)
    chosen = everything.gather(-1, batch["input_ids"][wanted].unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():
        entropy = torch.special.entr(everything.exp()).sum(-1)
    shape = torch.zeros(wanted.shape, dtype=torch.float32, device=chosen.device)
    return shape.masked_scatter(wanted, chosen), shape.masked_scatter(wanted, entropy)


def _has_plain_head(model: PreTrainedModel) -> bool:
    """Whether the logits are the output embedding of the hidden state and nothing else (no cap, no scale)."""
    if model not in _plain_heads:
        head = model.get_output_embeddings()
        ids = torch.arange(4, device=head.weight.device).unsqueeze(0)
        training = [module for module in model.modules() if module.training]
        model.eval()  # dropout would differ between the two, and use up random numbers that a resumed run has not
        with torch.no_grad():
            whole = model(input_ids=ids, use_cache=False).logits
            ours = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
        for module in training:
            module.training = True
        _plain_heads[model] = torch.allclose(whole.float(), ours.float(), rtol=1e-3, atol=1e-3)
    return _plain_heads[model]
