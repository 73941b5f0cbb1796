"""Real problem sets, where they are."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    folder = Path(os.environ.get("DCPO_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real problem sets in {folder}; set DCPO_DATA to their folder")
    return folder
