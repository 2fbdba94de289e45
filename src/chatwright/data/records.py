"""The four kinds of record that travel through every stage, for every modality.

A conversation is a list of messages, a message has a role and content parts, field-compatible with OpenAI chat and with
the ``messages`` that Hugging Face templates read. On disk a record is one row of Parquet or JSONL.
"""

import io
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import PIL.Image
import PIL.ImageOps

from chatwright.errors import ChatwrightError

Role = Literal["system", "user", "assistant", "tool"]
ROLES = ("system", "user", "assistant", "tool")
MODALITIES = ("text", "image", "audio", "video")

# What Pillow raises for broken pictures: its readers do not agree.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, PIL.Image.DecompressionBombError)


@dataclass(frozen=True)
class Part:
    """One piece of content: ``text`` for type "text", else ``media``, the encoded file (PNG, WAV, MP4 ...) as bytes."""

    type: Literal["text", "image", "audio", "video"]
    text: str | None = None
    media: bytes | None = None

    @classmethod
    def of_text(cls, text: str) -> "Part":
        return cls("text", text=text)

    @classmethod
    def of_image(cls, image: PIL.Image.Image) -> "Part":
        """Encode a picture losslessly (PNG)."""
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", compress_level=1)
        return cls("image", media=buffer.getvalue())

    def size(self) -> tuple[int, int]:
        """Width and height of an image part in pixels, before EXIF turns it; nothing is decoded.

        Raises:
            ChatwrightError: as `image`.
        """
        with self._open() as image:
            return image.size

    def image(self, mode: str = "RGB") -> PIL.Image.Image:
        """Decode an image part to ``mode``, upright as its EXIF orientation says.

        Raises:
            ChatwrightError: the bytes are not a picture that Pillow can read.
        """
        with self._open() as image:
            PIL.ImageOps.exif_transpose(image, in_place=True)
            return image.convert(mode)

    @contextmanager
    def _open(self) -> Iterator[PIL.Image.Image]:
        try:
            with PIL.Image.open(io.BytesIO(self.media or b"")) as image:
                yield image
        except PIL.UnidentifiedImageError as error:
            raise ChatwrightError("unreadable image (of no known format); export it again as PNG or JPEG") from error
        except UNREADABLE as error:
            raise ChatwrightError(f"unreadable image ({error}); export it again as PNG or JPEG") from error


@dataclass(frozen=True)
class Message:
    role: Role
    content: tuple[Part, ...]

    @classmethod
    def of(cls, role: Role, text: str, *images: PIL.Image.Image) -> "Message":
        """A message of pictures followed by a text."""
        return cls(role, (*map(Part.of_image, images), Part.of_text(text)))

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text or "" for part in self.content if part.type == "text")


@dataclass(frozen=True)
class Document:
    """Raw material for pretraining; may mix modalities."""

    kind: ClassVar[str] = "document"
    content: tuple[Part, ...]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return "".join(part.text or "" for part in self.content if part.type == "text")


@dataclass(frozen=True)
class Demonstration:
    """A conversation whose assistant turns are what the model should say.

    Where somebody judged the last of them step by step, a step being a line of it that is not blank, ``meta["steps"]``
    holds a label for each: 1 right, 0 neutral, -1 wrong (as PRM800K has them), or true and false. Where
    ``meta["learn"]`` is "last", only the last assistant turn is what it should say.
    """

    kind: ClassVar[str] = "demonstration"
    messages: tuple[Message, ...]
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """A conversation to answer.

    ``reference`` is an acceptable answer, ``choices`` all the answers that the question admits (the reference among
    them), ``score`` how an answer is checked ("exact", "contains", "choice"; see `chatwright.evaluation.metrics`).
    ``meta`` carries what a verifier or a report needs: task, language, split, the truth about the picture.
    """

    kind: ClassVar[str] = "prompt"
    messages: tuple[Message, ...]
    reference: str | None = None
    choices: tuple[str, ...] = ()
    score: str = "contains"
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """A prompt with K responses that one judge ranked: ``ranks[i]`` is the place of ``responses[i]``, 0 the best.

    Equal ranks are ties; a single response has rank 0 if it was judged good and 1 if bad. ``annotator`` says who
    judged, ``how`` in which way ("ranking", "pair", "label", "simulated" ...). Where the judge also gave numbers,
    ``meta["ratings"]`` holds one for each response, the higher the better, or None.
    """

    kind: ClassVar[str] = "comparison"
    messages: tuple[Message, ...]
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    annotator: str
    how: str
    meta: dict[str, Any] = field(default_factory=dict)


def is_ratings(given: Any, count: int) -> bool:
    """Whether these can be the ``meta["ratings"]`` of so many responses."""
    return (
        isinstance(given, list | tuple)
        and len(given) == count
        and all(one is None or (type(one) in (int, float) and math.isfinite(one)) for one in given)
    )


Record = Document | Demonstration | Prompt | Comparison
