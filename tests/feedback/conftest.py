"""Everything here runs on SQLite and on PostgreSQL."""

import pytest
from tests.databases import BOTH


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "url" in metafunc.fixturenames:
        metafunc.parametrize("url", BOTH, indirect=True)
