"""Reading hidden states, logits and log-probabilities off any causal or multimodal language model.

Logits are large: no function here that trains holds those of more than a few rows at once.
"""

import inspect
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from chatwright.data.rendered import TOKEN_TYPES
from chatwright.errors import ChatwrightError
from chatwright.models.attention import PACKED

LOGITS = 2**25  # numbers that are held at once
NEVER = -1e30  # the logit of a token that is given no probability; finite, as infinity times 0 is no number

_plain_heads: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def model_inputs(model: PreTrainedModel, batch: dict[str, Any]) -> dict[str, Any]:
    """What of a collated batch goes into the model."""
    inputs = {key: value for key, value in batch.items() if key not in ("loss_mask", "packing")}
    return {**inputs, "position_ids": positions(model, batch)}


def positions(model: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
    """The positions of a collated batch's tokens as the model counts them.

    Models whose rotary embedding has several axes (Wang et al. 2024, "Qwen2-VL", https://arxiv.org/abs/2409.12191)
    count a picture's tokens by rows and columns, and know how. A text that follows goes on behind the highest.

    Returns:
        ``batch["position_ids"]`` [B, T]; of batches with pictures and models that count so, [axes, B, T].
    """
    rope_index = getattr(model.base_model, "get_rope_index", None)
    if rope_index is None:
        return batch["position_ids"]
    known = {name: batch[name] for name in inspect.signature(rope_index).parameters if name in batch}
    if known.keys() <= {"input_ids", "attention_mask", *TOKEN_TYPES}:  # a text, on which all axes agree
        return batch["position_ids"]
    return rope_index(**known)[0]


def placed(batch: dict[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """A batch on the model's device, pixels in its dtype."""
    pixels = {name for name, value in batch.items() if isinstance(value, Tensor) and value.is_floating_point()}
    return {
        name: value.to(model.device, model.dtype) if name in pixels else value.to(model.device)
        for name, value in batch.items()
    }


def hidden_states(model: PreTrainedModel, batch: dict[str, Any], where: Tensor | None = None) -> Tensor:
    """Last hidden states [B, T, D] of the model without its head; without padding where model and batch allow it.

    Args:
        where: [B, T] (bool); if it is given, the states [N, D] of these tokens alone, in row-major order.

    Raises:
        ChatwrightError: the batch has more or fewer pictures than places for them.
    """
    packing = batch.get("packing") if model.get_decoder().config._attn_implementation == PACKED else None
    try:
        if packing is None:
            states = model.base_model(**model_inputs(model, batch), use_cache=False).last_hidden_state
            return states if where is None else states[where]
        # A mask of four dimensions keeps the model from making one; packed attention needs none.
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packing.index.device)
        inputs = {**packing.inputs(batch), "attention_mask": mask, "packing": packing}
        states = model.base_model(**inputs, use_cache=False).last_hidden_state[0]
    except ValueError as error:
        if "features" not in str(error) or "tokens" not in str(error):
            raise
        raise ChatwrightError(f"{error}; render text and pictures with the processor of this checkpoint") from error
    return states[packing.index if where is None else packing.index[where]]


def answer_logits(model: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
    """Logits [N, V] that predict the N tokens of ``batch["loss_mask"]``, in row-major order; no others are computed."""
    wanted = F.pad(batch["loss_mask"][:, 1:], (0, 1))
    if _has_plain_head(model):
        return model.get_output_embeddings()(hidden_states(model, batch, wanted))
    return model(**model_inputs(model, batch), use_cache=False).logits[wanted]


def cross_entropy(model: PreTrainedModel, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The summed cross-entropy of the N tokens of ``batch["loss_mask"]``, and how many of them were the likeliest."""
    targets = batch["input_ids"][:, 1:][batch["loss_mask"][:, 1:]]
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or not _has_plain_head(model):
        logits = answer_logits(model, batch).float()
        return F.cross_entropy(logits, targets, reduction="sum"), (logits.detach().argmax(-1) == targets).sum()
    states = hidden_states(model, batch, F.pad(batch["loss_mask"][:, 1:], (0, 1)))
    return _CrossEntropy.apply(states, head.weight, head.bias, targets, torch.is_grad_enabled())


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
    targets, head = batch["input_ids"][wanted], model.get_output_embeddings()
    # A soft prompt that is being learned has no rows in the head yet.
    ids = torch.tensor(sorted(i for i in excluded if i < len(head.weight)), dtype=torch.long, device=targets.device)
    if type(head) is nn.Linear and _has_plain_head(model):
        states = hidden_states(model, batch, F.pad(batch["loss_mask"][:, 1:], (0, 1)))
        chosen, entropy = _LogProbabilities.apply(states, head.weight, head.bias, targets, ids, temperature)
    else:
        logits = (answer_logits(model, batch).float() / temperature).index_fill(-1, ids, NEVER)
        everything = logits.log_softmax(-1)
        chosen = everything.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        with torch.no_grad():
            entropy = torch.special.entr(everything.exp()).sum(-1)
    shape = torch.zeros(wanted.shape, dtype=torch.float32, device=chosen.device)
    return shape.masked_scatter(wanted, chosen), shape.masked_scatter(wanted, entropy)


class _Head:
    """A linear map [N, D] -> [N, V] of states, some rows at a time, and the gradients of what was made of its logits.

    Under autocast it computes as autocast would.
    """

    def __init__(self, states: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        device = states.device.type
        self.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
        self.weight = weight.to(self.dtype)
        self.bias = None if bias is None else bias.to(self.dtype)
        self.states, self.inputs = states, (states, weight, bias)
        size = max(1, LOGITS // len(weight))
        self.parts = [slice(start, start + size) for start in range(0, len(states), size)]

    def logits(self, part: slice) -> Tensor:
        """[n, V] float32, to be changed by the caller as it likes."""
        with torch.autocast(self.states.device.type, enabled=False):
            return F.linear(self.states[part].to(self.dtype), self.weight, self.bias).float()

    def expect(self, needed: Sequence[bool]) -> None:
        """Begin to add up the gradients of those of (states, weight, bias) that need one."""
        self.gradients = [
            torch.zeros_like(one, dtype=torch.float32) if one is not None and need else None
            for one, need in zip(self.inputs, needed[:3], strict=True)
        ]

    def add(self, part: slice, gradient: Tensor) -> None:
        """Carry on the gradient [n, V] of a part's logits."""
        to_states, to_weight, to_bias = self.gradients
        if to_bias is not None:
            to_bias += gradient.sum(0)
        gradient = gradient.to(self.dtype)
        with torch.autocast(self.states.device.type, enabled=False):
            if to_states is not None:
                to_states[part] = gradient @ self.weight
            if to_weight is not None:
                to_weight += gradient.t() @ self.states[part].to(self.dtype)


class _CrossEntropy(torch.autograd.Function):
    """As the loss is a sum, its gradient is known up to a factor once the logits are: both are computed together, and
    the logits forgotten (Hsu et al. 2024, "Liger Kernel", https://arxiv.org/abs/2410.10989, section 3.2)."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, learning: bool
    ) -> tuple[Tensor, Tensor]:
        head = _Head(states, weight, bias)
        head.expect([learning and need for need in ctx.needs_input_grad])
        total = torch.zeros((), device=states.device)
        right = torch.zeros((), dtype=torch.long, device=states.device)
        for part in head.parts:
            logits, wanted = head.logits(part), targets[part].unsqueeze(-1)
            said, highest = logits.gather(-1, wanted), logits.amax(-1, keepdim=True)
            right += (said == highest).sum()
            exponentials = logits.sub_(highest).exp_()
            sums = exponentials.sum(-1, keepdim=True)
            total += (sums.log() + highest - said).sum()
            if any(one is not None for one in head.gradients):
                head.add(part, exponentials.div_(sums).scatter_add_(-1, wanted, -torch.ones_like(sums)))
        ctx.save_for_backward(*head.gradients)
        ctx.mark_non_differentiable(right)
        return total, right

    @staticmethod
    def backward(ctx: Any, factor: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if one is None else one.mul_(factor) for one in ctx.saved_tensors), None, None


class _LogProbabilities(torch.autograd.Function):
    """Log-probabilities and entropies, both [N]. What gradients come back is not known yet when they are computed, so
    the logits are computed once more then."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        excluded: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        head = _Head(states, weight, bias)
        chosen, entropies, normalisers = (torch.empty(len(states), device=states.device) for _ in range(3))
        for part in head.parts:
            logits = head.logits(part).div_(temperature).index_fill_(-1, excluded, NEVER)
            normaliser = normalisers[part] = logits.logsumexp(-1)
            chosen[part] = logits.gather(-1, targets[part].unsqueeze(-1)).squeeze(-1) - normaliser
            probabilities = (logits - normaliser.unsqueeze(-1)).exp_()
            entropies[part] = normaliser - probabilities.mul_(logits).sum(-1)
        ctx.head, ctx.temperature = head, temperature
        ctx.save_for_backward(targets, excluded, normalisers)
        ctx.mark_non_differentiable(entropies)
        return chosen, entropies

    @staticmethod
    def backward(ctx: Any, factors: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        targets, excluded, normalisers = ctx.saved_tensors
        head: _Head = ctx.head
        head.expect(ctx.needs_input_grad)
        for part in head.parts:
            logits = head.logits(part).div_(ctx.temperature).index_fill_(-1, excluded, NEVER)
            factor = factors[part].unsqueeze(-1) / ctx.temperature
            gradient = logits.sub_(normalisers[part].unsqueeze(-1)).exp_().mul_(-factor)
            head.add(part, gradient.scatter_add_(-1, targets[part].unsqueeze(-1), factor))
        return *head.gradients, None, None, None


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
