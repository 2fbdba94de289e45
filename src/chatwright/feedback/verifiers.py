"""Rewards that a plain Python function gives: it sees the prompt and the text of a response, and gives a number."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chatwright.data.records import Prompt
from chatwright.errors import ChatwrightError

Verifier = Callable[[Prompt, str], float]


def function_of(name: str) -> Callable[..., Any]:
    """The Python function that ``package.module:function`` or ``file.py:function`` names.

    Raises:
        ChatwrightError: there is no such file, module or function.
    """
    place, _, attribute = name.rpartition(":")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            if spec is None or spec.loader is None:
                raise ImportError(f"{place} is not a Python file")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except (ImportError, FileNotFoundError) as error:
        raise ChatwrightError(f"{name}: {error}; write package.module:function or file.py:function") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ChatwrightError(f"{name}: {place} has no function {attribute}; write package.module:function")
    return function
