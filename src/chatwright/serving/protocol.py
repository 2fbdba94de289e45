"""What clients send: the requests of OpenAI's API, as far as the models here can answer them.

Fields that only tune OpenAI's own service (``store``, ``service_tier``, ``user`` ...) are accepted and have no effect;
one that would change the answer and cannot be honoured is refused.
"""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictInt, model_validator

from chatwright.generation.constraint import ANY_OBJECT

MOST_STOPS = 16
MOST_ALTERNATIVES = 20
Stop = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=MOST_STOPS)]
Tokens = Annotated[list[Annotated[StrictInt, Field(ge=0)]], Field(min_length=1)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImageUrl(Strict):
    url: str


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]


class StreamOptions(Strict):
    include_usage: bool = False


class JsonSchema(Strict):
    name: str = ""
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Strict):
    """How a chat is to be answered: as text, as any JSON object, or as JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _with_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema, and to it alone")
        return self

    @property
    def schema_text(self) -> str | None:
        if self.type == "text":
            return None
        return json.dumps(self.json_schema.schema_ if self.json_schema else ANY_OBJECT)


class Sampled(Strict):
    """What chat and plain completions share."""

    model: str
    n: int = Field(1, ge=1)
    seed: int | None = None
    stop: str | Stop | None = None
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    @model_validator(mode="after")
    def _can_be_honoured(self) -> Self:
        for name in ("frequency_penalty", "presence_penalty", "logit_bias"):
            if getattr(self, name):
                raise ValueError(f"{name} is not supported; leave it out")
        if self.stream_options and not self.stream:
            raise ValueError("stream_options is for streams; set stream to true or leave it out")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(Sampled):
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MOST_ALTERNATIVES)
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Sampled):
    prompt: str | Tokens | Annotated[list[str], Field(min_length=1)] | Annotated[list[Tokens], Field(min_length=1)]
    max_tokens: int | None = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    echo: bool = False
    suffix: str | None = None
    best_of: int | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.suffix:
            raise ValueError("suffix is not supported; leave it out")
        if self.best_of is not None and self.best_of != self.n:
            raise ValueError("best_of is not supported; leave it out")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One or more prompts, all texts or all token ids."""
        given: Any = self.prompt
        return [given] if isinstance(given, str) or isinstance(given[0], int) else given


class EmbeddingRequest(Strict):
    model: str
    input: str | Tokens | Annotated[list[str], Field(min_length=1)] | Annotated[list[Tokens], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.dimensions is not None:
            raise ValueError("dimensions is not supported; leave it out")
        return self

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        given: Any = self.input
        return [given] if isinstance(given, str) or isinstance(given[0], int) else given
