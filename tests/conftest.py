"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real data sets, which the repository has not; without it the test is skipped."""
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("MSB_SHARED_DATA") or default)
    if not folder.is_dir():
        pytest.skip(f"needs the real data sets; there is no folder {folder} (MSB_SHARED_DATA names another)")
    return folder


@pytest.fixture(scope="module", autouse=True)
def fresh_accelerator():
    """Accelerate keeps a process's first precision for good: each test file chooses its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session", autouse=True)
def token_cache(tmp_path_factory) -> Path:
    """Where tokenized texts go, also those of the processes that tests start: not into the home folder."""
    folder = tmp_path_factory.mktemp("token-cache")
    os.environ["MSB_CACHE"] = str(folder)
    return folder
