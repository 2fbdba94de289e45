"""The pipeline run once, without interruption, by one process."""

from pathlib import Path

import pytest
from tests.pipeline import STAGES, write_data
from tests.processes import context, run


@pytest.fixture(scope="package")
def made(tmp_path_factory) -> Path:
    """Data, and every stage's artifact by its name."""
    folder = tmp_path_factory.mktemp("made")
    write_data(folder)
    for name, stage in STAGES.items():
        process = context.Process(target=run, args=(stage(folder), folder / name))
        process.start()
        process.join(120)
        assert process.exitcode == 0
    return folder
