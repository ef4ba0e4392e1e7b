import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def beauty_folder():
    """The real Beauty files, beside the repository or where FEEDWORKS_DATA says."""
    default = Path(__file__).resolve().parents[4] / "shared" / "data"
    folder = Path(os.environ.get("FEEDWORKS_DATA", default)) / "amazon_beauty"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent (set FEEDWORKS_DATA)")
    return folder
