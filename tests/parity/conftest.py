"""Keep the peers' progress bars quiet, and leave no large folders behind."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _no_progress_bars() -> None:
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Return an empty folder; pytest would keep the gigabytes of three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)
