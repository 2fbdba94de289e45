"""Answers that keep to a form: before every token, what the form does not admit is excluded.

The automaton is that of `llguidance` (https://github.com/guidance-ai/llguidance).
"""

import json
from collections.abc import Callable, Sequence
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
COMPACT = {"whitespace_flexible": False}


def json_form(schema: dict[str, Any]) -> str:
    """The form of JSON that a JSON schema admits.

    Raises:
        ChatwrightError: it is no schema, or uses what cannot be enforced.
    """
    return _checked(lambda: LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=COMPACT))


def call_form(schemas: Sequence[dict[str, Any]]) -> str:
    """The form of a call of one of the functions, ``{"name", "parameters"}`` each, as `feedback.environments` has it.

    Raises:
        ChatwrightError: as `json_form`.
    """
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": schema["name"]}, "arguments": schema.get("parameters") or ANY_OBJECT},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for schema in schemas
    ]
    call = json.dumps({"anyOf": calls, "x-guidance": COMPACT})
    return _checked(lambda: LLMatcher.grammar_from_lark(f'start: "<tool_call>" %json {call} "</tool_call>"'))


def _checked(grammar: Callable[[], str]) -> str:
    try:
        made = grammar()
        problem = LLMatcher.validate_grammar(made)
    except ValueError as error:
        problem = str(error)
    if problem:
        raise ChatwrightError(f"the JSON schema cannot be used: {problem.strip().splitlines()[0]}")
    return made


class Constraint:
    """The state of one answer that keeps to a form.

    Args:
        words: the size of the model's vocabulary, which may be larger than the tokenizer's.
        form: what `json_form` or `call_form` gives.
    """

    def __init__(self, renderer: Renderer, words: int, form: str):
        self._end = renderer.end_id
        self._matcher = LLMatcher(_tokenizer(renderer.tokenizer, words, self._end), form)

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
def _tokenizer(tokenizer: Any, words: int, end: int) -> LLTokenizer:
    return from_tokenizer(tokenizer, n_vocab=words, eos_token=end)
