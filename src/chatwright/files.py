"""Writing, hashing and locking files so that a kill at any moment leaves nothing half."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chatwright.errors import ChatwrightError


def write(path: Path, text: str) -> None:
    """Write a small text file so that a kill leaves either the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + ".half")
    with half.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    half.replace(path)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold ``out`` for this process.

    Raises:
        ChatwrightError: another run holds it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / f".{out.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ChatwrightError(f"{out}: another run is at work here; wait for it or choose another --out") from error
        yield
