"""Fixtures shared by all tests."""

import os
import tempfile
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


def pytest_configure(config: pytest.Config) -> None:
    """Tokenized texts and compiled code go into a folder of this run, also those of the processes that tests start."""
    folder = tempfile.TemporaryDirectory(prefix="msb-cache-")
    config.add_cleanup(folder.cleanup)
    os.environ["MSB_CACHE"] = folder.name


@pytest.fixture(scope="session")
def token_cache() -> Path:
    """Where tokenized texts go."""
    return Path(os.environ["MSB_CACHE"])
