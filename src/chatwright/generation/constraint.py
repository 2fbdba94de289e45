"""Answers that keep to a form: before every token, what the form does not admit is excluded.

The automaton is that of `llguidance` (https://github.com/guidance-ai/llguidance).
"""

import json
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor

from chatwright.data.render import Renderer
from chatwright.errors import ChatwrightError

ANY_OBJECT: dict[str, Any] = {"type": "object"}


class Constraint:
    """The state of one answer that has to be JSON of a schema.

    Args:
        words: the size of the model's vocabulary, which may be larger than the tokenizer's.

    Raises:
        ChatwrightError: the schema is not one, or uses what cannot be enforced.
    """

    def __init__(self, renderer: Renderer, words: int, schema: dict[str, Any]):
        self._end = renderer.end_id
        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_flexible": False})
        except ValueError as error:
            raise ChatwrightError(f"the JSON schema cannot be used: {error}") from error
        self._matcher = LLMatcher(_tokenizer(renderer, words), grammar)
        if problem := self._matcher.get_error():
            raise ChatwrightError(f"the JSON schema cannot be used: {problem.strip().splitlines()[0]}")

    def exclude(self, logits: Tensor) -> None:
        """Set the logits [V] of tokens that cannot come next to minus infinity; the end comes when nothing else can."""
        allowed = np.frombuffer(self._matcher.compute_logit_bias(), dtype=np.uint8) > 0
        if self._matcher.is_stopped() or not allowed.any():
            allowed = np.zeros(len(allowed), dtype=bool)
            allowed[self._end] = True
        logits[~torch.from_numpy(allowed[: len(logits)]).to(logits.device)] = float("-inf")

    def accept(self, token: int) -> None:
        """This token has been written."""
        self._matcher.consume_token(token)


@lru_cache(maxsize=2)
def _tokenizer(renderer: Renderer, words: int) -> LLTokenizer:
    return from_tokenizer(renderer.tokenizer, n_vocab=words, eos_token=renderer.end_id)
