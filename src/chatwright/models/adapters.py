"""Adapters: a few new parameters learn while the model itself stays as it is.

Low rank (LoRA, Hu et al., https://arxiv.org/abs/2106.09685) adds the product of two thin matrices to a linear layer;
DoRA (Liu et al., https://arxiv.org/abs/2402.09353) lets the length of its columns learn apart from their direction;
prompt tuning (Lester et al., https://arxiv.org/abs/2104.08691) learns nothing but the vectors of a few tokens in front
of the conversation.

`adapt` changes a model in place, so that it stays the plain `transformers` model which everything else knows. When it
has learned, ``finish`` saves the adapter alone, for `peft`, and makes what was learned part of the model's own weights:
low-rank updates are added to the matrices, and a prompt becomes rows of the embedding, new special tokens that the chat
template puts in front of every conversation.
"""

import copy
import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PromptTuningConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from chatwright.data.render import Renderer
from chatwright.errors import ChatwrightError
from chatwright.models.outputs import positions

METHODS = ("lora", "dora", "prompt")


@dataclass
class Adapter:
    """Settings of an adapter.

    method: lora, dora, prompt, or empty to train the model itself. rank, alpha, dropout: of lora and dora; updates are
    scaled by alpha / rank, and all linear layers of the language model get one, which Dettmers et al.
    (https://arxiv.org/abs/2305.14314) found to be what matters, while DoRA's experiments gave the numbers. tokens: of
    prompt; beyond 20 Lester et al. gained little.
    """

    method: str = ""
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    tokens: int = 20

    def __post_init__(self) -> None:
        if self.method and self.method not in METHODS:
            raise ChatwrightError(f"adapter method {self.method!r} is not known; use one of {', '.join(METHODS)}")
        if min(self.rank, self.tokens) < 1:
            raise ChatwrightError(f"an adapter of rank {self.rank} and {self.tokens} tokens; both have to be 1 or more")

    def prepare(self, renderer: Renderer) -> Renderer:
        """The renderer of what the adapted model is to read: for prompt tuning one with new tokens."""
        return renderer.with_soft_prompt(self.tokens) if self.method == "prompt" else renderer


def adapt(model: PreTrainedModel, renderer: Renderer, settings: Adapter) -> "LowRank | SoftPrompt":
    """Put an adapter into a model; from now on nothing else of the model learns.

    Args:
        model: as `load_model` opens it; of a multimodal one only the language model is adapted.
        renderer: what `Adapter.prepare` gave.
        settings: with a method.
    """
    return SoftPrompt(model, renderer, settings) if settings.method == "prompt" else LowRank(model, settings)


class LowRank:
    """LoRA or DoRA on every linear layer of the language model; neither head nor embedding, eye nor projector.

    Raises:
        ChatwrightError: the language model has no linear layers.
    """

    def __init__(self, model: PreTrainedModel, settings: Adapter) -> None:
        decoder = model.get_decoder()
        path = next(name for name, module in model.named_modules() if module is decoder)
        linear = {
            name.split(".")[-1] for name, module in decoder.named_modules() if isinstance(module, nn.Linear | Conv1D)
        }
        if not linear:
            raise ChatwrightError(f"{type(decoder).__name__} has no linear layers for {settings.method}; use prompt")
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            use_dora=settings.method == "dora",
            # A pattern, for a list of names would be saved in another order every time.
            target_modules=rf"{re.escape(path)}\.(.*\.)?({'|'.join(sorted(linear))})",
        )
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of transformers, about peft itself
            self.wrapped = get_peft_model(model, config)

    def disabled(self) -> AbstractContextManager[None]:
        """Within it the model computes exactly what it did before it was adapted."""
        return self.wrapped.disable_adapter()

    def merged(self) -> PreTrainedModel:
        """A plain model that computes what the adapted one does now."""
        return copy.deepcopy(self.wrapped).merge_and_unload()

    def finish(self, folder: Path) -> None:
        """Save the adapter into ``folder``, then add it to the model's own weights; the model is a plain one again."""
        tensors = get_peft_model_state_dict(self.wrapped, save_embedding_layers=False)
        _save(folder, self.wrapped.peft_config["default"], tensors)
        self.wrapped.merge_and_unload()


class SoftPrompt:
    """The vectors of the newest tokens of ``renderer.soft_prompt``, at first those of random common words."""

    def __init__(self, model: PreTrainedModel, renderer: Renderer, settings: Adapter) -> None:
        self.model, self.ids = model, renderer.soft_prompt[-settings.tokens :]
        model.requires_grad_(False)
        self.embedding = _Prompted(model.get_input_embeddings(), self.ids)
        model.set_input_embeddings(self.embedding)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it the prompt is padding: the model computes, up to rounding, what it would without it.

        For whole rows, not for cached generation.
        """

        def hide(module: nn.Module, args: tuple, inputs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            if inputs.get("past_key_values") is not None:
                raise ChatwrightError("a disabled prompt is for whole rows; generate with the renderer of the base")
            ids, mask = inputs["input_ids"], inputs.get("attention_mask")
            mask = (torch.ones_like(ids) if mask is None else mask).masked_fill(ids >= self.ids[0], 0)
            inputs = {**inputs, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}
            return args, {**inputs, "position_ids": positions(self.model, inputs)}

        hook = self.model.base_model.register_forward_pre_hook(hide, with_kwargs=True)
        decoder = self.model.get_decoder()
        attention = decoder.config._attn_implementation
        decoder.set_attn_implementation("sdpa")  # for packed rows no mask could hide anything
        try:
            yield
        finally:
            decoder.set_attn_implementation(attention)
            hook.remove()

    @torch.no_grad()
    def finish(self, folder: Path) -> None:
        """Save the adapter into ``folder``, then make its vectors rows of the model's embedding."""
        words, vectors = self.embedding.words, self.embedding.prompt.weight
        text = self.model.config.get_text_config()
        config = PromptTuningConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path=self.model.name_or_path,
            num_virtual_tokens=len(vectors),
            token_dim=vectors.shape[1],
            num_transformer_submodules=1,
            num_attention_heads=text.num_attention_heads,
            num_layers=text.num_hidden_layers,
        )
        _save(folder, config, {"prompt_embeddings": vectors})
        self.model.set_input_embeddings(words)
        if self.ids[-1] >= words.num_embeddings:  # some models keep spare rows
            self.model.resize_token_embeddings(self.ids[-1] + 1, mean_resizing=False)
        # The head gets the rows too: mostly it is the embedding, and where it is not they must not be random.
        for table in (self.model.get_input_embeddings(), self.model.get_output_embeddings()):
            table.weight[self.ids] = vectors / getattr(words, "embed_scale", 1.0)
        generation = self.model.generation_config
        generation.suppress_tokens = [*(generation.suppress_tokens or []), *self.ids]  # others are not to say them too


class _Prompted(nn.Module):
    """An embedding whose ids from ``ids[0]`` on are looked up in vectors of their own, ``prompt`` [P, D]."""

    def __init__(self, words: nn.Embedding, ids: list[int]) -> None:
        super().__init__()
        self.words, self.first = words, ids[0]
        # Lester et al. draw from the 5,000 most common words; vocabularies are sorted by how common they are.
        common = torch.randint(min(5000, self.first), (len(ids),))
        self.prompt = nn.Embedding.from_pretrained(words(common.to(words.weight.device)).detach(), freeze=False)

    def forward(self, ids: Tensor) -> Tensor:
        new = ids >= self.first
        prompt = self.prompt((ids - self.first).clamp_min(0))
        return torch.where(new.unsqueeze(-1), prompt, self.words(ids.masked_fill(new, 0)))


def _save(folder: Path, config: PeftConfig, tensors: dict[str, Tensor]) -> None:
    """Write what ``PeftModel.from_pretrained`` opens, without the blank model card that `peft` would add."""
    config.inference_mode = True
    config.save_pretrained(folder)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
    )
