"""A server that speaks vLLM's protocol, as far as `VLLM` uses it, around our engine and a tiny model."""

import asyncio
import copy
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from transformers import PreTrainedModel

from chatwright.data.render import Renderer
from chatwright.data.rendered import Rendered
from chatwright.generation.engine import Completion, Engine
from chatwright.generation.sampling import Sampling
from chatwright.models.load import load_model
from chatwright.models.outputs import token_logprobs

LONGEST = 100


class Speaker:
    """What vLLM does, one request after the other.

    Prefixes are remembered so well that a prompt is answered as before even by other weights, until that is reset.

    Args:
        mode: of the log-probabilities. dev: whether there are the endpoints for development.
        failures: how many requests fail before any succeeds.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        renderer: Renderer,
        mode: str = "processed_logprobs",
        dev: bool = True,
        failures: int = 0,
    ) -> None:
        self.model, self.renderer, self.mode = model, renderer, mode
        self.failures, self.paused = failures, False
        self.asked: list[dict[str, Any]] = []
        self.loaded: list[Path] = []
        self.remembered: dict[str, dict[str, Any]] = {}
        self.breaks_after = -1  # tokens of a stream
        self.gate: Callable[[dict[str, Any]], None] = lambda body: None  # what a request waits for
        self.lock = threading.Lock()
        self.app = FastAPI()
        self.app.get("/v1/models")(self.models)
        self.app.post("/v1/completions")(self.completions)
        if dev:
            self.app.post("/pause")(self.pause)
            self.app.post("/resume")(self.resume)
            self.app.post("/collective_rpc")(self.rpc)
            self.app.post("/reset_prefix_cache")(self.reset)

    def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "tiny", "object": "model", "max_model_len": LONGEST}]}

    def pause(self, mode: str = "abort") -> dict[str, str]:
        assert mode == "wait"
        self.paused = True
        return {"status": "paused"}

    def resume(self) -> dict[str, str]:
        self.paused = False
        return {"status": "resumed"}

    async def rpc(self, request: Request) -> JSONResponse:
        body = await request.json()
        folder = Path(body["kwargs"]["weights_path"])
        assert body["method"] == "reload_weights" and folder.is_absolute() and self.paused
        if not folder.is_dir():
            return JSONResponse({"error": {"message": f"no weights in {folder}", "code": 500}}, 500)
        self.model = load_model(folder)
        self.loaded.append(folder)
        return JSONResponse({"results": [None]})

    def reset(self) -> None:
        self.remembered.clear()

    async def completions(self, request: Request) -> Any:
        body = await request.json()
        self.asked.append(body)
        await asyncio.to_thread(self.gate, body)
        if self.failures:
            self.failures -= 1
            return JSONResponse({"error": {"message": "overloaded"}}, 503)
        if body["model"] != "tiny":
            return JSONResponse({"error": {"message": f"no model {body['model']}"}}, 404)
        if len(body["prompt"]) + body["max_tokens"] > LONGEST:
            return JSONResponse({"error": {"message": f"at most {LONGEST} tokens"}}, 400)
        choice = await asyncio.to_thread(self.choice, body)
        if not body.get("stream"):
            return {"choices": [choice]}
        return StreamingResponse(self.events(choice), media_type="text/event-stream")

    def choice(self, body: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            assert not self.paused
            return self.remembered.setdefault(json.dumps(body, sort_keys=True), self.answer(body))

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = Rendered(body["prompt"], [False] * len(body["prompt"]))
        sampling = Sampling(
            body["max_tokens"],
            body["temperature"],
            body["top_p"],
            max(body["top_k"], 0),
            body["repetition_penalty"],
            body["seed"],
            tuple(body["stop"]),
            alternatives=body["logprobs"],
        )
        served = copy.copy(self.renderer)
        served.stop_ids = {*body["stop_token_ids"], *([] if body["ignore_eos"] else self.renderer.stop_ids)}
        served.unsaid = {int(token) for token, bias in (body["logit_bias"] or {}).items() if bias == -100}
        if allowed := body.get("allowed_token_ids"):
            served.unsaid = set(range(len(self.model.get_output_embeddings().weight))) - set(allowed)
        completion = Engine(self.model, served).generate([prompt], sampling)[0][0]
        return {
            "index": 0,
            "text": completion.text,
            "token_ids": completion.tokens,
            "finish_reason": completion.finish_reason,
            "logprobs": {
                "token_logprobs": self.logprobs(prompt, completion),
                "top_logprobs": [
                    # With the sampled token, as vLLM gives it, and -9999 for what has no probability.
                    {
                        f"token_id:{token}": value
                        for token, value in {said: logprob, 0: -9999.0, **dict(several)}.items()
                    }
                    for said, logprob, several in zip(
                        completion.tokens, completion.logprobs, completion.alternatives, strict=True
                    )
                ]
                if body["logprobs"]
                else [],
            },
        }

    def logprobs(self, prompt: Rendered, completion: Completion) -> list[float]:
        if self.mode == "processed_logprobs":
            return completion.logprobs
        batch = self.renderer.collate([self.renderer.answered(prompt, completion.tokens)])
        logprobs, _ = token_logprobs(self.model, batch)
        return logprobs[0, len(prompt) :].tolist()

    async def events(self, choice: dict[str, Any]) -> Any:
        for place, token in enumerate(choice["token_ids"]):
            last = place == len(choice["token_ids"]) - 1
            logprobs = {name: several[place : place + 1] for name, several in choice["logprobs"].items()}
            part = {"index": 0, "token_ids": [token], "logprobs": logprobs}
            said = {"choices": [{**part, "finish_reason": choice["finish_reason"] if last else None}]}
            yield f"data: {json.dumps(said)}\n\n"
            if place == self.breaks_after:
                yield 'data: {"error": {"message": "out of memory", "code": 500}}\n\n'
                return
        yield 'data: {"choices": [], "usage": {}}\n\n'
        yield "data: [DONE]\n\n"
