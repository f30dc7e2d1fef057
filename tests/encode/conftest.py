"""Fixtures for the tests of encoding."""

from pathlib import Path

import pytest

from clipkit.data import pictures
from tests.helpers.toy_extraction import CHUNK, make_images


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut work into chunks of a few images."""
    monkeypatch.setattr(pictures, "CHUNK", CHUNK)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images, one of which is broken."""
    return make_images(tmp_path_factory.mktemp("images"))
