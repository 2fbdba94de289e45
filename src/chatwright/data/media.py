"""Pictures, sounds and videos as bytes: from paths, data URLs and the structs that Hugging Face stores."""

import base64
import binascii
import os
from pathlib import Path
from typing import Any

from chatwright.errors import ChatwrightError

# The first bytes of the containers that people use, and their media types.
SIGNATURES = (
    (b"\x89PNG", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"fLaC", "audio/flac"),
    (b"OggS", "audio/ogg"),
    (b"ID3", "audio/mpeg"),
    (b"\xff\xfb", "audio/mpeg"),
    (b"\x1aE\xdf\xa3", "video/webm"),
)


def type_of(media: bytes) -> str | None:
    """The media type that the first bytes tell, None where they tell none."""
    if media[:4] == b"RIFF":
        return {b"WAVE": "audio/wav", b"WEBP": "image/webp", b"AVI ": "video/x-msvideo"}.get(media[8:12])
    return next((kind for signature, kind in SIGNATURES if media.startswith(signature)), None)


def data_url(media: bytes, modality: str) -> str:
    """``data:image/png;base64,...``; the media type is told by the first bytes."""
    kind = type_of(media)
    if media[4:8] == b"ftyp":
        kind = f"{modality}/mp4" if modality != "image" else "image/avif"
    if kind is None or not kind.startswith(modality):
        kind = f"{modality}/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(media).decode()}"


def read(value: Any, folder: Path, fetch: bool = True) -> bytes:
    """The bytes that ``value`` stands for.

    Args:
        value: bytes, a data URL, a path relative to ``folder``, ``{"bytes": ..., "path": ...}`` as Hugging Face stores
            media, ``{"url": ...}`` or ``{"data": base64}`` as OpenAI does.
        fetch: False only looks whether a file is there, and gives no bytes.

    Raises:
        ChatwrightError: "what is wrong; remedy": a missing file, a web address (nothing is ever downloaded) ...
    """
    if isinstance(value, dict):
        if isinstance(value.get("data"), str):
            return decode_base64(value["data"]) if fetch else b""
        given = [value[key] for key in ("bytes", "url", "path") if value.get(key) is not None]
        if not given:
            raise ChatwrightError(f"holds neither bytes nor a path but {sorted(value)}; give a path or a data URL")
        value = given[0]
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise ChatwrightError(f"is {value!r:.40}; give a path or a data URL")
    if value.startswith("data:"):
        return decode_base64(value.partition(",")[2]) if fetch else b""
    if value.startswith(("http://", "https://")):
        raise ChatwrightError(f"{value:.80} is not fetched, nothing is; save the file and give its path")
    path = folder / value.removeprefix("file://")
    # os.path.isfile is False, where Path.is_file raises, for a text that is too long to be a name.
    if not os.path.isfile(path):
        raise ChatwrightError(f"no such file {path!s:.200}; paths are relative to the data file")
    if not fetch:
        return b""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ChatwrightError(f"cannot read {path} ({error.strerror}); check its permissions") from error


def decode_base64(text: str) -> bytes:
    """Bytes of standard base64, or a ChatwrightError."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ChatwrightError(f"is not base64 ({error}); encode the file again") from error
