import json

import pytest
from tests.data.rows import BLUE, RED


@pytest.fixture
def write(tmp_path):
    """Write rows as JSONL beside two pictures; gives the path."""
    (tmp_path / "red.png").write_bytes(RED.media)
    (tmp_path / "blue.png").write_bytes(BLUE.media)

    def rows(*rows, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
        return path

    return rows
