"""Tools that a policy calls, rightly and wrongly, and what an environment may return."""

import json
import subprocess
import sys

import pytest

from chatwright.data.records import Message, Prompt
from chatwright.errors import ChatwrightError
from chatwright.feedback import environments
from chatwright.feedback.environments import Tools, reply_of

PROMPT = Prompt((Message.of("user", "How much?"),))


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first.
        b: the second.
    """
    return a + b


def lookup(word: str) -> str:
    """Look a word up.

    Args:
        word: any.
    """
    return {"dog": "狗"}[word]


def leave() -> object:
    """End the program."""
    sys.exit(3)


def strange() -> object:
    """Return what no JSON can hold."""
    return object()


def replied(text):
    reply = reply_of(Tools([add, lookup, leave, strange]), PROMPT, [Message.of("assistant", text)])
    assert reply is None or reply.role == "tool"
    return reply.text if reply else None


def call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def test_a_tool_is_called_and_answers():
    assert replied(call("add", a=1, b=2)) == "3"
    assert replied(f"I will look. {call('lookup', word='dog')}") == "狗"
    assert replied(f"{call('add', a=1, b=2)} and {call('add', a=3, b=4)}") == "3\n7"
    assert replied("It is 3.") is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (call("subtract", a=1, b=2), "there is no tool subtract; there is add, lookup"),
        ("<tool_call>add(1, 2)</tool_call>", "not JSON"),
        ("<tool_call></tool_call>", "not JSON"),
        (f"<tool_call>{'[' * 100_000}</tool_call>", "not JSON"),
        ("<tool_call>[1, 2]</tool_call>", "a call is"),
        ('<tool_call>{"name": "add"}</tool_call>', "a call is"),
        ('<tool_call>{"name": ["add"], "arguments": {}}</tool_call>', "a call is"),
        ('<tool_call>{"name": "add", "arguments": [1, 2]}</tool_call>', "a call is"),
        ('<tool_call>{"name": "add", "arguments": {"a": 1', "does not end"),
        (call("add", a=1), "add: missing a required argument: 'b'"),
        (call("add", a=1, b=2, c=3), "add: got an unexpected keyword argument 'c'"),
        (call("add", a=1, b="2"), "add: TypeError"),
        (call("lookup", word="cat"), "lookup: KeyError: 'cat'"),
        (call("leave"), "leave: SystemExit"),
        (call("strange"), "strange: TypeError"),
    ],
)
def test_a_wrong_call_is_answered_by_what_is_wrong(text, problem):
    assert replied(text).startswith("error: ") and problem in replied(text)


def test_the_policy_is_told_what_the_functions_say():
    (schema,) = Tools([add]).schemas
    assert schema["function"]["name"] == "add" and schema["function"]["description"] == "Add two numbers."
    assert schema["function"]["parameters"]["properties"]["a"] == {"type": "integer", "description": "the first."}


def test_functions_that_cannot_be_told_are_refused():
    def bare(a):
        return a

    with pytest.raises(ChatwrightError, match=r"bare.*docstring"):
        Tools([bare])
    with pytest.raises(ChatwrightError, match="own name"):
        Tools([add, add])


@pytest.mark.parametrize("returned", ["a text", Message.of("assistant", "I"), Message.of("system", "You")])
def test_an_environment_speaks_as_tool_or_user(returned):
    with pytest.raises(ChatwrightError, match="role tool or user"):
        reply_of(lambda prompt, turns: returned, PROMPT, [])


def test_an_environment_that_hangs_ends_the_process_and_says_where(tmp_path):
    """Even inside of C code that holds the interpreter."""
    script = tmp_path / "hang.py"
    script.write_text(
        "from chatwright.feedback import environments\n"
        "def power(prompt, turns):\n"
        "    return 9 ** 9 ** 9\n"
        "environments.SECONDS = 0.3\n"
        "environments.reply_of(power, None, [])\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Timeout" in done.stderr and "line 3 in power" in done.stderr
    assert environments.SECONDS >= 60
