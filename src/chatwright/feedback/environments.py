"""What answers a policy between its turns: any Python function of the conversation, and tools as one of them."""

import faulthandler
import inspect
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from transformers.utils.chat_template_utils import (
    DocstringParsingException,
    TypeHintParsingException,
    get_json_schema,
)

from chatwright.data.records import Message, Prompt
from chatwright.errors import ChatwrightError

# Gives what is said to the policy after its last turn, or None where the conversation is over. Sees the prompt and all
# messages since, the policy's and its own.
Environment = Callable[[Prompt, Sequence[Message]], Message | None]

SECONDS = 300.0  # that one reply may take
CALLS = re.compile(r"<tool_call>(.*?)(</tool_call>|\Z)", re.DOTALL)
UNENDED = "error: the call does not end with </tool_call>"


def reply_of(environment: Environment, prompt: Prompt, turns: Sequence[Message]) -> Message | None:
    """What the environment says next.

    One that takes longer than `SECONDS` ends the process, which tells on standard error in which line it stands: a time
    limit that let the run go on would make what is learned depend on the clock, and nothing else can stop code that
    never comes back to Python.

    Raises:
        ChatwrightError: it is neither None nor a text that a tool or a user says.
    """
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=2)
    try:
        reply = environment(prompt, turns)
    finally:
        faulthandler.cancel_dump_traceback_later()
    if reply is None:
        return None
    if not isinstance(reply, Message) or reply.role not in ("tool", "user"):
        raise ChatwrightError(
            f"the environment returned {reply!r:.60}; return None or a Message of the role tool or user"
        )
    if any(part.type != "text" for part in reply.content):
        raise ChatwrightError("the environment returned more than text; pictures can be part of the prompt only")
    return reply


class Tools:
    """An environment of Python functions that the policy calls.

    A call stands in the policy's turn as Hermes, Qwen and others write it:
    ``<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>``. The tool's message is what the function
    returns, as JSON unless it is a text; of several calls, one below the other. A call that fails is answered by what
    is wrong with it, in words that begin with "error". A turn without a call ends the conversation.

    Args:
        functions: with type hints and a docstring that explains every argument, for the policy reads it.

    Raises:
        ChatwrightError: a function without them, or two of the same name.
    """

    def __init__(self, functions: Sequence[Callable[..., Any]]) -> None:
        self.functions = {function.__name__: function for function in functions}
        if len(self.functions) < len(functions):
            raise ChatwrightError(f"tools {[function.__name__ for function in functions]}: give each its own name")
        self.schemas = [_schema(function) for function in functions]

    def __call__(self, prompt: Prompt, turns: Sequence[Message]) -> Message | None:
        calls = CALLS.findall(turns[-1].text)
        if not calls:
            return None
        return Message.of("tool", "\n".join(self._call(call) if end else UNENDED for call, end in calls))

    def _call(self, call: str) -> str:
        """What comes of the JSON of a call."""
        try:
            call = json.loads(call)
        except (ValueError, RecursionError) as error:
            return f"error: the call is not JSON: {error}"
        match call:
            case {"name": str(name), "arguments": dict(arguments)}:
                pass
            case _:
                return 'error: a call is {"name": ..., "arguments": {...}}'
        if name not in self.functions:
            return f"error: there is no tool {name}; there is {', '.join(self.functions)}"
        function = self.functions[name]
        try:
            inspect.signature(function).bind(**arguments)
        except TypeError as error:
            return f"error: {name}: {error}"
        try:
            found = function(**arguments)
            return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
        except (Exception, SystemExit) as error:  # whatever a tool raises is for the policy to read
            return f"error: {name}: {type(error).__name__}: {error}"


def _schema(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_json_schema(function)
    except (DocstringParsingException, TypeHintParsingException) as error:
        raise ChatwrightError(
            f"tool {function.__name__}: {str(error).splitlines()[0]}; give it type hints and a docstring with Args"
        ) from error
