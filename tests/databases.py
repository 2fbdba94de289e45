"""Databases to test on: SQLite, and a PostgreSQL server of our own, started from the installed binaries.

A test that uses ``url``, directly or through ``database``, runs on SQLite; marked with `on_both` it runs on PostgreSQL
too. All tests of feedback/ do.

A machine without PostgreSQL skips those tests and says so at the end; with CHATWRIGHT_POSTGRESQL=required, which
.ci/run sets, they fail instead.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.feedback.people import empty

from chatwright.feedback.database import Database

BOTH = ("sqlite", "postgresql")
on_both = pytest.mark.parametrize("url", BOTH, indirect=True)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a PostgreSQL server."""
    installed = [shutil.which("initdb"), *sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    binaries = next((Path(found).resolve().parent for found in installed if found), None)
    if binaries is None:
        reason = "PostgreSQL is not installed (Debian: apt-get install postgresql)"
        (pytest.fail if os.environ.get("CHATWRIGHT_POSTGRESQL") == "required" else pytest.skip)(reason)
    # PostgreSQL does not run as root; the Debian package makes a user for it.
    user = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))  # not pytest's, which that user may not enter
    os.chown(folder, user.pw_uid, user.pw_gid)

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [binaries / program, "-D", folder / "data", *arguments],
            check=True,
            capture_output=True,
            cwd=folder,
            **({"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}),
        )

    try:
        run("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")
        options = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=200"
        run("pg_ctl", "start", "-w", "-o", options, "-l", str(folder / "log"))
        yield f"postgresql://postgres@/postgres?host={folder}"
        run("pg_ctl", "stop", "-m", "immediate")
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a database that is not there yet (SQLite) or empty (PostgreSQL)."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return str(tmp_path / "chat.db")
    return empty(request.getfixturevalue("server"))


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url)
    yield opened
    opened.close()
