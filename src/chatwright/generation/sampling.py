"""How the next token is chosen: the distribution that a sampler draws from, and the draw itself."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chatwright.errors import ChatwrightError


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    Attributes:
        max_new_tokens: the longest answer, in tokens.
        temperature: what logits are divided by; 0 takes the most likely token (greedy).
        top_p: nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751): the smallest set of most likely tokens whose
            probability is at least this; 1 keeps all.
        top_k: only so many of the most likely tokens; 0 keeps all.
        repetition_penalty: what the logits of tokens that stand in the prompt or the answer are divided by, those below
            zero multiplied (Keskar et al. 2019, "CTRL", arXiv:1909.05858); 1 changes nothing.
        seed: the same seed, prompt and model give the same answer, whatever else is in the batch.
        stop: an answer ends before the first of these texts.
        stop_tokens: an answer ends with one of these, as with the stop tokens of the model.
        form: what the answer has to keep to (`chatwright.generation.constraint`), unless its tokens run out before.
        alternatives: how many of the most likely tokens are told at every place.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    form: str = ""
    alternatives: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ChatwrightError(f"max_new_tokens is {self.max_new_tokens}; give at least 1")
        if not self.temperature >= 0:
            raise ChatwrightError(f"temperature is {self.temperature}; give 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ChatwrightError(f"top_p is {self.top_p}; give a number above 0 and at most 1")
        if self.top_k < 0:
            raise ChatwrightError(f"top_k is {self.top_k}; give 0 (all tokens) or more")
        if not self.repetition_penalty > 0:
            raise ChatwrightError(f"repetition_penalty is {self.repetition_penalty}; give a number above 0")

    @property
    def shape(self) -> tuple[float, ...]:
        """What decides the distribution; rows that agree in it are drawn together."""
        return self.temperature, self.top_p, self.top_k, self.repetition_penalty, self.alternatives


def distribution(logits: Tensor, sampling: Sampling, seen: Sequence[Sequence[int]] = ()) -> Tensor:
    """The logits of the distribution that is sampled from.

    Args:
        logits: [B, V], any floating type.
        seen: for every row the tokens that the penalty is for; read where there is one.

    Returns:
        [B, V] float32, divided by the temperature (not for greedy), excluded tokens at minus infinity; not normalised.
    """
    logits = logits.float()
    if sampling.repetition_penalty != 1:
        mask = torch.zeros_like(logits, dtype=torch.bool)
        for row, tokens in enumerate(seen):
            mask[row, torch.tensor(tokens, device=logits.device)] = True
        penalised = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = torch.where(mask, penalised, logits)
    if sampling.temperature > 0 and sampling.temperature != 1:
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if sampling.top_p < 1:
        ordered, order = logits.sort(descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        # A token stays while those before it hold less than top_p, so the one that crosses the line stays too.
        excluded = probabilities.cumsum(-1) - probabilities >= sampling.top_p
        logits = logits.masked_fill(torch.zeros_like(excluded).scatter(1, order, excluded), float("-inf"))
    return logits


def draw(logits: Tensor, uniforms: Tensor | None) -> tuple[Tensor, Tensor]:
    """Draw one token a row by inverting the cumulative distribution.

    One number a row decides, so a row's answer depends on its own stream of numbers and on nothing else in the batch.

    Args:
        logits: [B, V] float32, what `distribution` gives.
        uniforms: [B] float32 in [0, 1); None takes the most likely token.

    Returns:
        tokens [B] int64, and [B] float32 their log-probabilities under the softmax of the logits.
    """
    normaliser = logits.logsumexp(-1)
    if not normaliser.isfinite().all():
        raise ChatwrightError("the model's logits are not finite; its weights are damaged or its training diverged")
    if uniforms is None:
        tokens = logits.argmax(-1)
    else:
        cumulative = (logits - normaliser[:, None]).exp_().cumsum(-1)
        total = cumulative[:, -1]
        # Strictly below the total, so that rounding never lands behind the last token that has a probability.
        target = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
        tokens = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
    return tokens, logits.gather(1, tokens[:, None])[:, 0] - normaliser


def most_likely(logits: Tensor, count: int) -> list[list[tuple[int, float]]]:
    """For every row of [B, V] the most likely tokens, those excluded left out, and their log-probabilities in nats."""
    logprobs, tokens = logits.log_softmax(-1).topk(min(count, logits.shape[-1]))
    rows = zip(tokens.tolist(), logprobs.tolist(), strict=True)
    return [[pair for pair in zip(*row, strict=True) if pair[1] > float("-inf")] for row in rows]


def stream_of_uniforms(seed: int, prompt: bytes, sample: int, count: int) -> np.ndarray:
    """[count] float32 in [0, 1): the random numbers of one sample of one prompt.

    A counter-based generator (Philox, Salmon et al. 2011) with the sample's key: the same in every batch, call and
    process.
    """
    generator = np.random.Generator(np.random.Philox(key=key_of(seed, prompt, sample)))
    return generator.random(count, dtype=np.float32)


def key_of(seed: int, prompt: bytes, sample: int) -> int:
    """128 bits that a sample has to itself: of the seed, the digest of the prompt's content and its own number."""
    key = hashlib.blake2b(f"{seed} {sample} ".encode() + prompt, digest_size=16).digest()
    return int.from_bytes(key, "little")
