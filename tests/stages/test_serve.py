"""`chatwright serve` as a process: it prints where it is, and ends open streams when it is told to end."""

import re
import signal
import socket
import subprocess
import sys

import openai
import pytest

from chatwright.errors import ChatwrightError
from chatwright.stages.serve import Serve


def test_it_prints_where_it_is_and_ends_streams_on_sigterm(checkpoint):
    command = [sys.executable, "-m", "chatwright.cli", "serve", "--model", str(checkpoint), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        url = re.fullmatch(r"assistant at (http://127\.0\.0\.1:\d+/v1)", process.stdout.readline().strip())[1]
        key = process.stdout.readline().removeprefix("API key:").strip()
        client = openai.OpenAI(base_url=url, api_key=key, max_retries=20)
        asked = {"model": "assistant", "messages": [{"role": "user", "content": "How many dogs?"}], "seed": 7}
        whole = client.chat.completions.create(**asked)
        stream = iter(client.chat.completions.create(**asked, stream=True))
        pieces = [next(stream), next(stream)]
        process.send_signal(signal.SIGTERM)
        pieces += stream
        said = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        assert said == whole.choices[0].message.content
        assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
        assert process.wait(30) in (0, -signal.SIGTERM)


def test_a_port_that_is_taken_is_named(checkpoint):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ChatwrightError, match=rf"127\.0\.0\.1:{port}: .*; choose another --host or --port"):
            Serve(str(checkpoint), port=port).run(checkpoint)
