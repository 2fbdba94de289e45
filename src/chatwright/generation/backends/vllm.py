"""A vLLM server as backend: exact tokens go in and come back, with their log-probabilities, over its OpenAI API.

The server is started with ``VLLM_SERVER_DEV_MODE=1`` and ``--logprobs-mode processed_logprobs``; docs/scale.md gives
the whole command. What is used of its protocol: https://docs.vllm.ai/en/latest/serving/openai_compatible_server/.
"""

import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import httpx

from chatwright.data.records import Message
from chatwright.data.render import Renderer
from chatwright.data.rendered import Rendered
from chatwright.errors import ChatwrightError
from chatwright.generation.backend import Backend, Completion
from chatwright.generation.decoder import Request, Row
from chatwright.generation.sampling import Sampling, key_of

PAUSES = (0.2, 1.0, 3.0)  # seconds before a request that got no answer, or a passing error, is sent again
TIMEOUT = httpx.Timeout(3600, connect=10)  # seconds; a request may wait for all those before it
BIAS = -100  # the least that the protocol takes: e^-100 of a probability is none
CERTAIN = 1e-3  # nats
BUILT_IN = "leave server empty for the built-in engine"


class VLLM(Backend):
    """Lets a vLLM server answer.

    Every answer is a request of its own, with a seed that follows from the seed of the sampling, the prompt and the
    number of the answer. Whether the same seed gives the same answer in another batch is up to the server.

    Args:
        url: of the server, such as ``http://localhost:8000``.
        renderer: of the model that is served.
        batch_size: requests under way at once; the others wait here.

    Raises:
        ChatwrightError: no vLLM server answers there.
    """

    def __init__(self, url: str, renderer: Renderer, batch_size: int = 64) -> None:
        super().__init__(renderer, batch_size)
        self.url = url.rstrip("/").removesuffix("/v1")  # OpenAI's clients want it there
        self._threads = ThreadPoolExecutor(batch_size)
        self._client = httpx.Client(base_url=self.url, timeout=TIMEOUT, limits=httpx.Limits())  # the threads limit it
        self._processed = False  # whether log-probabilities are known to be those of what is sampled from
        models = self._call("GET", "/v1/models").get("data")
        if not models or not models[0].get("max_model_len"):
            raise ChatwrightError(f"{self.url}: it is no vLLM server, or serves no model; start one, or {BUILT_IN}")
        self.model, self._longest = models[0]["id"], models[0]["max_model_len"]

    @property
    def context(self) -> int:
        return self._longest - 1  # vLLM also counts the last token of an answer, which is not read

    def render(self, prompt: Sequence[Message] | Rendered) -> Rendered:
        rendered = super().render(prompt)
        if rendered.media:
            raise ChatwrightError(f"{self.url}: takes exact tokens with no pictures; {BUILT_IN}")
        return rendered

    def generate(
        self,
        prompts: Sequence[Sequence[Message] | Rendered],
        sampling: Sampling | Sequence[Sampling] | None = None,
        n: int = 1,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        requests, waiting = [], []
        for prompt, one, first in self._asked(prompts, sampling, n):
            request = Request(prompt, [Row(prompt, one, self._room(prompt, one), None) for _ in range(n)])
            requests.append(request)
            waiting += [(row, self._body(row, first + place)) for place, row in enumerate(request.rows)]
        self._check([row for row, _ in waiting])
        futures = [self._threads.submit(self._write, row, body) for row, body in waiting]
        answered = 0
        try:
            for future in as_completed(futures):
                future.result()
                before, answered = answered, sum(request.ended for request in requests)
                if answered > before and progress:
                    progress(answered)
        finally:
            for future in futures:
                future.cancel()
        return [[self.complete(row) for row in request.rows] for request in requests]

    def stream(
        self, messages: Sequence[Message] | Rendered, sampling: Sampling | None = None
    ) -> Generator[str, None, Completion]:
        prompt, sampling = self.render(messages), sampling or Sampling()
        row = Row(prompt, sampling, self._room(prompt, sampling), None)
        self._check([row])
        return (yield from self._spoken(row, self._grow(row, self._body(row, 0))))

    def load(self, folder: str | Path) -> None:
        """Let the server take the weights of a checkpoint, of the shapes that it serves, from a folder that it sees.

        Answers under way are written to their end before, and what it remembers of prompts is forgotten. This is the
        ``reload_weights`` of https://docs.vllm.ai/en/latest/training/layerwise/, called through its development
        endpoints.

        Raises:
            ChatwrightError: the server was started without them, or cannot read the folder.
        """
        self._call("POST", "/pause?mode=wait")
        try:
            kwargs = {"weights_path": str(Path(folder).resolve())}
            self._call("POST", "/collective_rpc", {"method": "reload_weights", "kwargs": kwargs})
            self._call("POST", "/reset_prefix_cache")
        finally:
            self._call("POST", "/resume")

    def _body(self, row: Row, number: int) -> dict[str, Any]:
        """What asks for a row. All settings are named, as the model's ``generation_config`` would fill the gaps."""
        sampling = row.sampling
        if sampling.form:
            raise ChatwrightError(f"{self.url}: answers are not held to a form there; {BUILT_IN}")
        return {
            "model": self.model,
            "prompt": row.prompt.input_ids,
            "max_tokens": row.room,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": 0.0,
            "repetition_penalty": sampling.repetition_penalty,
            "seed": key_of(sampling.seed, row.prompt.digest, number) % 2**63,
            "stop": list(sampling.stop),
            # Here is said what ends an answer: the server's own idea of it may differ.
            "stop_token_ids": sorted({*self.renderer.stop_ids, *sampling.stop_tokens}),
            "ignore_eos": True,
            "logit_bias": {str(token): BIAS for token in sorted(self.renderer.unsaid)},
            "logprobs": sampling.alternatives,
            "return_tokens_as_token_ids": True,
            "return_token_ids": True,
        }

    def _check(self, rows: Sequence[Row]) -> None:
        """Whether the server tells the log-probabilities of what it samples from, once it makes a difference.

        Where one token alone is allowed, it is certain; what the model itself thinks of it is another matter.
        """
        plain = {(0, 1.0, 0, 1.0), (1, 1.0, 0, 1.0)}
        asked = {
            (one.temperature, one.top_p, one.top_k, one.repetition_penalty) for one in (row.sampling for row in rows)
        }
        if self._processed or not rows or (asked <= plain and not self.renderer.unsaid):
            return
        probe = Row(rows[0].prompt, Sampling(1), 1, None)
        only = {"allowed_token_ids": [self.renderer.pad_id], "logit_bias": None}
        self._write(probe, {**self._body(probe, 0), **only})
        if abs(probe.logprobs[0]) > CERTAIN:
            raise ChatwrightError(
                f"{self.url}: its log-probabilities are not those of what it samples from; "
                "start it with --logprobs-mode processed_logprobs"
            )
        self._processed = True

    def _write(self, row: Row, body: dict[str, Any]) -> None:
        """Fill a row."""
        self._take(row, self._call("POST", "/v1/completions", body))
        self._ended(row)

    def _grow(self, row: Row, body: dict[str, Any]) -> Iterator[None]:
        """Fill a row, event by event."""
        try:
            with self._client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
                if response.is_error:
                    response.read()
                    raise self._error("/v1/completions", response)
                for line in response.iter_lines():
                    event = line.removeprefix("data: ")
                    if event != line and event != "[DONE]":
                        self._take(row, json.loads(event))
                        yield
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        self._ended(row)

    def _take(self, row: Row, said: dict[str, Any]) -> None:
        """What a response, or an event of one, adds to a row."""
        if "choices" not in said:
            raise ChatwrightError(f"{self.url}: it gave up an answer ({_reason(said)}); see its log and run again")
        for choice in said["choices"]:  # none in an event that tells of usage
            if choice.get("token_ids") is None:
                raise ChatwrightError(f"{self.url}: it returns no token ids; use a newer vLLM (return_token_ids)")
            logprobs = choice["logprobs"] or {"token_logprobs": [], "top_logprobs": []}
            row.tokens += choice["token_ids"]
            row.logprobs += logprobs["token_logprobs"]
            if count := row.sampling.alternatives:
                row.alternatives += [_most_likely(tokens, count) for tokens in logprobs["top_logprobs"]]
            row.finish = choice["finish_reason"]

    def _ended(self, row: Row) -> None:
        """Whether a row is whole."""
        if row.finish not in ("stop", "length") or not row.tokens or len(row.logprobs) != len(row.tokens):
            raise ChatwrightError(f"{self.url}: it gave up an answer ({row.finish}); see its log and run again")

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """What the server responds, or nothing; a passing fault gets it asked again.

        Raises:
            ChatwrightError: it is not there, or refuses.
        """
        for pause in (*PAUSES, None):
            try:
                response = self._client.request(method, path, json=body)
            except httpx.TransportError as error:
                failure = self._unreachable(error)
            else:
                if response.is_success:
                    return _json(response)
                failure = self._error(path, response)
                if response.status_code != httpx.codes.TOO_MANY_REQUESTS and not response.is_server_error:
                    break
            if pause is not None:
                time.sleep(pause)
        raise failure

    def _unreachable(self, error: httpx.TransportError) -> ChatwrightError:
        return ChatwrightError(
            f"{self.url}: no vLLM server answers ({error}); start it as docs/scale.md says, or {BUILT_IN}"
        )

    def _error(self, path: str, response: httpx.Response) -> ChatwrightError:
        if response.status_code == httpx.codes.NOT_FOUND and not path.startswith("/v1"):
            remedy = f"it has no {path.split('?')[0]}; start it with VLLM_SERVER_DEV_MODE=1, and use a newer vLLM"
        else:
            reason = _reason(_json(response)) or response.text.strip()[:200]
            remedy = f"{path} failed with {response.status_code} ({reason}); mend that, or {BUILT_IN}"
        return ChatwrightError(f"{self.url}: {remedy}")


def _json(response: httpx.Response) -> dict[str, Any]:
    """The object that a response holds; an empty one where it holds none."""
    try:
        found = response.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _reason(said: dict[str, Any]) -> str:
    """Why something failed, in the several forms in which the server may say it."""
    error = said.get("error") or said.get("detail") or said.get("message") or ""
    return str(error.get("message", error) if isinstance(error, dict) else error)[:200]


def _most_likely(logprobs: dict[str, float], count: int) -> list[tuple[int, float]]:
    """Tokens named ``token_id:<id>``, the likeliest first; a log-probability of -9999 stands for none at all."""
    found = [(int(name.rpartition(":")[2]), logprob) for name, logprob in logprobs.items() if logprob > -9999]
    return sorted(found, key=lambda one: -one[1])[:count]
