"""Writing, hashing and locking files so that a kill at any moment leaves nothing half."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from chatwright.errors import ChatwrightError


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the name ``path`` when the block ends well, and leaves nothing behind when it does not.

    Raises:
        ChatwrightError: it cannot be written: no space, no permission.
    """
    unfinished = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(unfinished, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise ChatwrightError(f"{path}: cannot write it ({reason}); free some space or choose another place") from error


def write(path: Path, text: str) -> None:
    """Write a small text file, whole or not at all."""
    with atomic(path) as file:
        file.write(text.encode())


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(out: Path, wait: bool = False) -> Iterator[None]:
    """Hold ``out`` for this block alone, among all threads and processes; a kill lets go of it.

    Args:
        wait: for whoever holds it.

    Raises:
        ChatwrightError: another run holds it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / f".{out.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ChatwrightError(f"{out}: another run is at work here; wait for it or choose another --out") from error
        yield
