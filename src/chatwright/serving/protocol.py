"""What clients send: the requests of OpenAI's API, as far as the models here can answer them.

Fields that only tune OpenAI's own service (``store``, ``service_tier``, ``user`` ...) are accepted and have no effect;
one that would change the answer and cannot be honoured is refused.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictInt, model_validator

from chatwright.generation.constraint import ANY_OBJECT, call_form, json_form

MOST_STOPS = 16
MOST_ALTERNATIVES = 20
MOST_TOOLS = 128
NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
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


class Called(Strict):
    name: str
    arguments: str


class ToolCall(Strict):
    id: str
    type: Literal["function"] = "function"
    function: Called


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]] | None = None
    tool_calls: list[ToolCall] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only the assistant calls tools")
        if self.content is None and not self.tool_calls:
            raise ValueError("a message needs content")
        return self


class Function(Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=lambda: dict(NO_PARAMETERS))


class Tool(Strict):
    type: Literal["function"]
    function: Function


class Named(Strict):
    name: str


class ToolChoice(Strict):
    type: Literal["function"]
    function: Named


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
    def form(self) -> str:
        if self.type == "text":
            return ""
        return json_form(self.json_schema.schema_ if self.json_schema else ANY_OBJECT)


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
    tools: list[Tool] = Field(default_factory=list, max_length=MOST_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | ToolChoice = "auto"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        if isinstance(self.tool_choice, ToolChoice) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name!r}, which is not among the tools")
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice requires a tool and there are none")
        return self

    @property
    def callable(self) -> list[dict[str, Any]]:
        """The schemas of the functions that may be called, as templates and `call_form` take them."""
        return [] if self.tool_choice == "none" else [tool.function.model_dump() for tool in self.tools]

    @property
    def form(self) -> str:
        """What the answer has to keep to: a call where one is required, else the response format."""
        if isinstance(self.tool_choice, ToolChoice):
            wanted = self.tool_choice.function.name
            return call_form([schema for schema in self.callable if schema["name"] == wanted])
        if self.tool_choice == "required":
            return call_form(self.callable)
        return self.response_format.form if self.response_format else ""

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
