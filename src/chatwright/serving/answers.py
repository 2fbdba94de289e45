"""From a client's request to what the engine takes, and from its rows to what the client reads."""

import json
import secrets
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from chatwright.data import media
from chatwright.data.records import Message, Part
from chatwright.data.render import CALL, Renderer
from chatwright.data.rendered import Rendered
from chatwright.errors import ChatwrightError
from chatwright.feedback.environments import CALLS
from chatwright.generation.decoder import Row
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.serving.errors import ApiError
from chatwright.serving.protocol import ChatMessage, Sampled, ToolCall

PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp")


@dataclass(frozen=True)
class Limits:
    """What one request may ask for; checked before anything is decoded.

    body: bytes of a request. images: pictures in a conversation. pixels: of one picture. n: answers to a prompt.
    prompts: in one request. tokens: of an answer. characters: of a message that is kept.
    """

    body: int = 32 * 2**20
    images: int = 16
    pixels: int = 40_000_000
    n: int = 16
    prompts: int = 128
    tokens: int = 4096
    characters: int = 100_000


def messages_of(
    messages: Sequence[ChatMessage], renderer: Renderer, limits: Limits, file: Callable[[str], bytes]
) -> list[Message]:
    """The conversation as our records have it; pictures are data URLs or files, and calls stand in the text.

    What a tool returned is nobody's prompt: special tokens in it become plain text.

    Args:
        file: what is in the file with an id.

    Raises:
        ApiError: a picture is neither a data URL nor a file, cannot be read, or is too large; or there are too many.
    """
    found, pictures = [], 0
    for number, message in enumerate(messages):
        parts = []
        content = message.content if isinstance(message.content, list) else None
        for place, part in enumerate(content or []):
            param = f"messages.{number}.content.{place}"
            if part.type == "text":
                parts.append(Part.of_text(part.text))
                continue
            pictures += 1
            if pictures > limits.images:
                raise ApiError(400, f"more than {limits.images} pictures; send fewer", param)
            parts.append(_picture(part.image_url.url, param, limits, file))
        if isinstance(message.content, str):
            parts.append(Part.of_text(message.content))
        if message.role == "tool":
            parts = [Part.of_text(renderer.plain(part.text or "")) for part in parts]
        if message.tool_calls:
            parts.append(Part.of_text("\n".join(map(_call_text, message.tool_calls))))
        found.append(Message("system" if message.role == "developer" else message.role, tuple(parts)))
    return found


def _call_text(call: ToolCall) -> str:
    """A call as the model has said it, or would have."""
    arguments = call.function.arguments or "{}"
    try:
        json.loads(arguments)
    except ValueError as error:
        raise ApiError(400, f"the arguments of {call.function.name} are not JSON ({error})", "messages") from error
    name = json.dumps(call.function.name, ensure_ascii=False)
    return f'<tool_call>{{"name": {name}, "arguments": {arguments}}}</tool_call>'


def _picture(url: str, param: str, limits: Limits, file: Callable[[str], bytes]) -> Part:
    if not url.startswith(("data:image/", "file-")):
        says = "a picture is a data URL (data:image/png;base64,...) or the id of an uploaded file; nothing is fetched"
        raise ApiError(400, says, param)
    try:
        data = media.decode_base64(url.partition(",")[2]) if url.startswith("data:") else file(url)
        return picture_of(data, limits)
    except ChatwrightError as error:
        raise ApiError(400, str(error), param) from error


def picture_of(data: bytes, limits: Limits) -> Part:
    """A picture that can be read and is not too large; nothing of a larger one is decoded.

    Raises:
        ChatwrightError: it is not, or is no PNG, JPEG, GIF or WebP: Pillow reads many forms that browsers do not, and
            some by starting other programs.
    """
    if media.type_of(data) not in PICTURES:
        raise ChatwrightError("unreadable image (of no known format); export it again as PNG or JPEG")
    part = Part("image", media=data)
    width, height = part.size()
    if width * height > limits.pixels:
        raise ChatwrightError(f"the picture has {width} x {height} pixels; at most {limits.pixels:,} are read")
    part.image()
    return part


def sampling_of(asked: Sampled, most: int | None, alternatives: int, limits: Limits, form: str = "") -> Sampling:
    """How to draw the answers to a request; ``most`` are the tokens that the client allows."""
    if asked.n > limits.n:
        raise ApiError(400, f"n is {asked.n}; at most {limits.n} answers are given to a prompt", "n")
    if most is not None and most > limits.tokens:
        raise ApiError(400, f"{most} tokens are asked for; at most {limits.tokens} are written", "max_tokens")
    seed = secrets.randbits(31) if asked.seed is None else asked.seed
    return Sampling(
        max_new_tokens=most or limits.tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        seed=seed,
        stop=asked.stops,
        form=form,
        alternatives=alternatives,
    )


def plain_prompt(engine: Engine, prompt: str | list[int]) -> Rendered:
    """A text or token ids as they are, without a chat template."""
    ids = (
        engine.renderer.tokenizer(prompt, add_special_tokens=False)["input_ids"] if isinstance(prompt, str) else prompt
    )
    words = len(engine.model.get_input_embeddings().weight)
    if wrong := [token for token in ids if token >= words or token in engine.renderer.unsaid]:
        raise ApiError(400, f"{wrong[0]} is no token that can be given to this model", "prompt")
    # The answer goes on where the prompt ends: with a space, if that is what comes next.
    return engine.render(Rendered(list(ids), [False] * len(ids), begun=True))


@dataclass
class Progress:
    """What of a row has been told to the client: its text and, where it is ``traced``, its tokens."""

    row: Row
    engine: Engine
    traced: bool = False
    text: str = ""
    tokens: int = 0
    ended: bool = False

    def news(self) -> tuple[str, list[int]] | None:
        """The text that has been added, and the places of the tokens that it consists of, where they are traced; None
        where there is nothing.

        Sets ``ended`` with the last of them. What was told once stays told: a piece ends with a whole character, and
        before anything that a stop text may still take back.
        """
        # Read before the tokens: the decoder may write another one meanwhile.
        over = self.row.finish is not None
        text = self.engine.complete(self.row).text if over else self.engine.settled(self.row)
        if not over and not (text.startswith(self.text) and len(text) > len(self.text)):
            return None
        added, self.text, self.ended = text[len(self.text) :], text, over
        until = visible(self.row, self.engine.renderer, text) if self.traced else 0
        places = list(range(self.tokens, until))
        self.tokens = max(self.tokens, until)
        return added, places


def visible(row: Row, renderer: Renderer, text: str) -> int:
    """How many of a row's tokens make up a text that it begins with; tokens of a stop text do not."""
    low, high = 0, len(row.tokens) - bool(row.tokens and row.tokens[-1] in renderer.stop_ids)
    while low < high:
        middle = (low + high) // 2
        if len(renderer.decode(row.tokens[:middle], row.prompt)) < len(text):
            low = middle + 1
        else:
            high = middle
    return low


@dataclass(frozen=True)
class Said:
    """An answer as a client of chat completions reads it: the text outside of calls, and the calls."""

    content: str
    calls: list[dict[str, Any]]

    @classmethod
    def of(cls, text: str) -> "Said":
        """What a whole answer says; one with a call that is not whole is text."""
        calls = [_call_of(inside) for inside, end in CALLS.findall(text) if end]
        if not calls or None in calls or text.count(CALL) != len(calls):
            return cls(text, [])
        before, *rest = (part.strip() for part in CALLS.sub("\0", text).split("\0"))
        return cls("\n".join(part for part in (before, *rest) if part), [call for call in calls if call])

    @staticmethod
    def begun(text: str) -> str:
        """As much of the content as is certain while the answer grows: nothing from where a call may begin."""
        cut = text.find(CALL)
        if cut < 0:
            cut = len(text) - next((n for n in range(len(CALL) - 1, 0, -1) if text.endswith(CALL[:n])), 0)
        return text[:cut].rstrip()


def _call_of(inside: str) -> dict[str, Any] | None:
    """The call that stands between its marks, None where there is none."""
    try:
        call = json.loads(inside)
    except ValueError:
        return None
    match call:
        case {"name": str(name), "arguments": dict(arguments)}:
            function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
            return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
    return None


def chat_logprobs(row: Row, renderer: Renderer, places: Sequence[int]) -> dict[str, Any]:
    """The log-probabilities of the tokens at some places, as chat completions have them."""
    content = []
    for place in places:
        several = row.alternatives[place] if row.alternatives else []
        content.append(
            {
                **_token(row.tokens[place], row.logprobs[place], renderer),
                "top_logprobs": [_token(token, logprob, renderer) for token, logprob in several],
            }
        )
    return {"content": content, "refusal": None}


def _token(token: int, logprob: float, renderer: Renderer) -> dict[str, Any]:
    raw = token_bytes(renderer, token)
    return {"token": raw.decode(errors="replace"), "logprob": logprob, "bytes": list(raw)}


def plain_logprobs(
    tokens: Sequence[int],
    logprobs: Sequence[float | None],
    alternatives: Sequence[Sequence[tuple[int, float]]],
    renderer: Renderer,
) -> dict[str, Any]:
    """Log-probabilities as plain completions have them; equal texts of several alternatives keep the likeliest."""
    texts = [token_bytes(renderer, token).decode(errors="replace") for token in tokens]
    offsets, at = [], 0
    for text in texts:
        offsets.append(at)
        at += len(text)
    tops: list[dict[str, float] | None] = []
    for several in alternatives:
        top: dict[str, float] = {}
        for token, logprob in several:
            top.setdefault(token_bytes(renderer, token).decode(errors="replace"), logprob)
        tops.append(top or None)
    return {"tokens": texts, "token_logprobs": list(logprobs), "top_logprobs": tops, "text_offset": offsets}


def token_bytes(renderer: Renderer, token: int) -> bytes:
    """The bytes that a token stands for; its name where it is a special one."""
    name = renderer.tokenizer.convert_ids_to_tokens(token)
    if name is None:
        return b""
    if token in renderer.tokenizer.added_tokens_decoder:
        return str(name).encode()
    alphabet = _alphabet()
    if all(character in alphabet for character in name):
        return bytes(alphabet[character] for character in name)
    return str(renderer.tokenizer.decode([token])).encode()


@lru_cache
def _alphabet() -> dict[str, int]:
    """What stands for every byte in the names of byte-level tokens."""
    return {character: byte for byte, character in bytes_to_unicode().items()}
