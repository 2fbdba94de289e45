"""OpenAI's API over the engine: the routes under ``/v1``."""

import asyncio
import base64
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from chatwright.data.rendered import Rendered
from chatwright.errors import ChatwrightError
from chatwright.generation.engine import Engine
from chatwright.generation.reading import Reading, embed, read
from chatwright.generation.sampling import Sampling
from chatwright.generation.service import Service, Ticket
from chatwright.serving.answers import (
    Limits,
    Progress,
    Said,
    chat_logprobs,
    messages_of,
    plain_logprobs,
    plain_prompt,
    sampling_of,
)
from chatwright.serving.errors import ApiError
from chatwright.serving.events import EventStream, event_of
from chatwright.serving.files import content_of
from chatwright.serving.protocol import ChatRequest, CompletionRequest, EmbeddingRequest
from chatwright.serving.served import Model, Served

PATIENCE = 1.0  # seconds between two looks whether a client that waits is still there


def routes(served: Served) -> APIRouter:
    """The routes of one served model."""
    router = APIRouter(prefix="/v1")

    def about(model: Model) -> dict[str, Any]:
        return {"id": model.name, "object": "model", "created": model.since, "owned_by": "chatwright"}

    @router.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [about(served.model)]}

    @router.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        return about(served.called(name))

    @router.post("/chat/completions")
    async def chat(asked: ChatRequest, request: Request) -> Response:
        engine = served.called(asked.model).engine
        file = partial(content_of, served.database, request.state.person)
        prompt, form = await run_in_threadpool(_conversation, engine, asked, served.limits, file)
        sampling = sampling_of(asked, asked.limit, asked.top_logprobs, served.limits, form)
        made = Chat(asked, engine)
        return await _answer(served, made, asked.stream, engine, [prompt], sampling, asked.n, request)

    @router.post("/completions")
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        engine = served.called(asked.model).engine
        if len(asked.prompts) * asked.n > served.limits.prompts:
            raise ApiError(400, f"at most {served.limits.prompts} answers are given at once", "prompt")
        prompts = [plain_prompt(engine, prompt) for prompt in asked.prompts]
        sampling = sampling_of(asked, asked.max_tokens or 1, asked.logprobs or 0, served.limits)
        readings = None
        if asked.echo and asked.logprobs is not None:
            readings = await asyncio.wrap_future(served.service.call(partial(read, engine, prompts, asked.logprobs)))
        made = Plain(asked, engine, prompts, readings)
        if asked.max_tokens == 0:
            return JSONResponse(made.whole([]))
        return await _answer(served, made, asked.stream, engine, prompts, sampling, asked.n, request)

    @router.post("/embeddings")
    async def embeddings(asked: EmbeddingRequest) -> dict[str, Any]:
        engine = served.called(asked.model).engine
        if len(asked.inputs) > served.limits.prompts:
            raise ApiError(400, f"at most {served.limits.prompts} texts are read at once", "input")
        rows = [plain_prompt(engine, text) for text in asked.inputs]
        vectors = await asyncio.wrap_future(served.service.call(partial(embed, engine, rows)))
        data = []
        for index, vector in enumerate(vectors.numpy().astype("<f4")):
            value = vector.tolist() if asked.encoding_format == "float" else base64.b64encode(vector.tobytes()).decode()
            data.append({"object": "embedding", "index": index, "embedding": value})
        count = sum(map(len, rows))
        usage = {"prompt_tokens": count, "total_tokens": count}
        return {"object": "list", "data": data, "model": asked.model, "usage": usage}

    return router


def _conversation(
    engine: Engine, asked: ChatRequest, limits: Limits, file: Callable[[str], bytes]
) -> tuple[Rendered, str]:
    """The prompt as the model reads it, and the form that its answer has to keep to."""
    schemas = [{"type": "function", "function": schema} for schema in asked.callable]
    renderer = engine.renderer.with_tools(schemas) if schemas else engine.renderer
    messages = messages_of(asked.messages, renderer, limits, file)
    return engine.render(renderer.prompt(messages)), asked.form


class Chat:
    """The two forms of a chat completion: whole, and in chunks. Where tools may be called, calls leave the text."""

    def __init__(self, asked: ChatRequest, engine: Engine):
        self.asked, self.renderer = asked, engine.renderer
        self.traced = asked.logprobs
        self.told = [""] * asked.n  # the content that a stream has told, by choice
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model}

    def whole(self, answers: Sequence[tuple[Progress, str, list[int]]]) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": self._message(said := self._said(text)),
                "logprobs": self._logprobs(progress, places),
                "finish_reason": "tool_calls" if said.calls else finish_of(progress),
            }
            for index, (progress, text, places) in enumerate(answers)
        ]
        return {**self.head, "object": "chat.completion", "choices": choices}

    def first(self, index: int) -> dict[str, Any]:
        return self._chunk(index, {"role": "assistant", "content": "", "refusal": None}, None, None)

    def piece(self, index: int, progress: Progress, text: str, places: list[int]) -> dict[str, Any]:
        if self.asked.callable:
            content = self._said(progress.text).content if progress.ended else Said.begun(progress.text)
            text, self.told[index] = content[len(self.told[index]) :], content
        return self._chunk(index, {"content": text}, self._logprobs(progress, places), None)

    def last(self, index: int, progress: Progress) -> list[dict[str, Any]]:
        calls = self._said(progress.text).calls
        whole = [{"index": place, **call} for place, call in enumerate(calls)]
        end = self._chunk(index, {}, None, "tool_calls" if calls else finish_of(progress))
        return [self._chunk(index, {"tool_calls": whole}, None, None), end] if calls else [end]

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        return {**self.head, "object": "chat.completion.chunk", "choices": [], "usage": usage}

    def _said(self, text: str) -> Said:
        return Said.of(text) if self.asked.callable else Said(text, [])

    def _message(self, said: Said) -> dict[str, Any]:
        message = {"role": "assistant", "content": said.content or None if said.calls else said.content}
        return {**message, "refusal": None, **({"tool_calls": said.calls} if said.calls else {})}

    def _chunk(self, index: int, delta: dict[str, Any], logprobs: Any, finish: str | None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self.head, "object": "chat.completion.chunk", "choices": [choice]}

    def _logprobs(self, progress: Progress, places: list[int]) -> dict[str, Any] | None:
        return chat_logprobs(progress.row, self.renderer, places) if self.asked.logprobs else None


class Plain:
    """The two forms of a plain completion. With ``echo`` it begins with its prompt."""

    def __init__(
        self, asked: CompletionRequest, engine: Engine, prompts: list[Rendered], readings: list[Reading] | None
    ):
        self.asked, self.renderer = asked, engine.renderer
        self.traced = asked.logprobs is not None
        self.prompts, self.readings = prompts, readings
        self.head = {
            "id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()),
            "model": asked.model,
        }  # fmt: skip

    def whole(self, answers: Sequence[tuple[Progress, str, list[int]]]) -> dict[str, Any]:
        choices = []
        for index in range(len(self.prompts) * self.asked.n):
            progress, text, places = answers[index] if answers else (None, "", [])
            choice = self._choice(index, self._echo(index) + text, progress, places, whole=True)
            choice["finish_reason"] = finish_of(progress) if progress else "length"
            choices.append(choice)
        usage = {} if answers else {"usage": _usage(self.prompts, [])}
        return {**self.head, "choices": choices, **usage}

    def first(self, index: int) -> dict[str, Any] | None:
        if not self.asked.echo:
            return None
        return {**self.head, "choices": [self._choice(index, self._echo(index), None, [], whole=True)]}

    def piece(self, index: int, progress: Progress, text: str, places: list[int]) -> dict[str, Any]:
        return {**self.head, "choices": [self._choice(index, text, progress, places)]}

    def last(self, index: int, progress: Progress) -> list[dict[str, Any]]:
        choice = self._choice(index, "", progress, []) | {"finish_reason": finish_of(progress), "logprobs": None}
        return [{**self.head, "choices": [choice]}]

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        return {**self.head, "choices": [], "usage": usage}

    def _echo(self, index: int) -> str:
        if not self.asked.echo:
            return ""
        prompt = self.prompts[index // self.asked.n]
        return str(self.renderer.tokenizer.decode(prompt.input_ids))

    def _choice(
        self, index: int, text: str, progress: Progress | None, places: list[int], whole: bool = False
    ) -> dict[str, Any]:
        logprobs = None
        if self.asked.logprobs is not None:
            tokens, values, several = [], [], []
            if whole and self.readings:
                reading, prompt = self.readings[index // self.asked.n], self.prompts[index // self.asked.n]
                tokens, values, several = list(prompt.input_ids), list(reading.logprobs), list(reading.alternatives)
            if progress:
                row = progress.row
                tokens += [row.tokens[place] for place in places]
                values += [row.logprobs[place] for place in places]
                several += [row.alternatives[place] if row.alternatives else [] for place in places]
            logprobs = plain_logprobs(tokens, values, several, self.renderer)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}


def finish_of(progress: Progress) -> str:
    return "stop" if progress.row.finish == "stop" else "length"


async def _answer(
    served: Served,
    made: Chat | Plain,
    stream: bool,
    engine: Engine,
    prompts: list[Rendered],
    sampling: Sampling,
    n: int,
    request: Request,
) -> Response:
    """Have the prompts answered; as a whole, or as server-sent events."""
    loop, news = asyncio.get_running_loop(), asyncio.Event()

    def changed() -> None:
        loop.call_soon_threadsafe(news.set)

    tickets = await run_in_threadpool(_submit, served.service, engine, prompts, sampling, n, changed)
    rows = [Progress(row, engine, made.traced) for ticket in tickets for row in ticket.request.rows]
    if stream:
        events = _events(made, tickets, rows, prompts, news, made.asked.wants_usage)
        return EventStream(events, partial(_cancel, tickets))
    try:
        while not all(ticket.ended for ticket in tickets):
            try:
                await asyncio.wait_for(news.wait(), PATIENCE)
            except TimeoutError:
                if await request.is_disconnected():
                    return Response(status_code=499)
            news.clear()
    finally:
        _cancel(tickets)
    for ticket in tickets:
        if ticket.error:
            raise ApiError(500, ticket.error)
    answers = [(progress, *(progress.news() or ("", []))) for progress in rows]
    return JSONResponse({**made.whole(answers), "usage": _usage(prompts, rows)})


def _submit(
    service: Service,
    engine: Engine,
    prompts: list[Rendered],
    sampling: Sampling,
    n: int,
    changed: Callable[[], None],
) -> list[Ticket]:
    """All prompts of a request, or none of them."""
    tickets: list[Ticket] = []
    try:
        for prompt in prompts:
            tickets.append(service.submit(engine, prompt, sampling, n, changed))
    except ChatwrightError:
        _cancel(tickets)
        raise
    return tickets


async def _events(
    made: Chat | Plain,
    tickets: list[Ticket],
    rows: list[Progress],
    prompts: list[Rendered],
    news: asyncio.Event,
    wants_usage: bool,
) -> AsyncIterator[str]:
    """Server-sent events until every row has ended."""
    for index in range(len(rows)):
        if first := made.first(index):
            yield _event(first, wants_usage)
    while not all(progress.ended for progress in rows):
        await news.wait()
        news.clear()
        if error := next((ticket.error for ticket in tickets if ticket.error), None):
            yield event_of(ApiError(500, error).body())
            return
        for index, progress in enumerate(rows):
            if progress.ended or (new := progress.news()) is None:
                continue
            text, places = new
            if text or places:
                yield _event(made.piece(index, progress, text, places), wants_usage)
            if progress.ended:
                for chunk in made.last(index, progress):
                    yield _event(chunk, wants_usage)
    if wants_usage:
        yield _event(made.usage(_usage(prompts, rows)), False)
    yield "data: [DONE]\n\n"


def _cancel(tickets: list[Ticket]) -> None:
    """Whatever has not ended is not written on."""
    for ticket in tickets:
        ticket.cancel()


def _event(chunk: dict[str, Any], wants_usage: bool) -> str:
    return event_of({**chunk, "usage": None} if wants_usage else chunk)


def _usage(prompts: list[Rendered], rows: list[Progress]) -> dict[str, int]:
    read, written = sum(map(len, prompts)), sum(len(progress.row.tokens) for progress in rows)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
