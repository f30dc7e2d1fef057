"""Give several tests of faults a toy CLIP, a folder of images, and a folder to train from."""

from pathlib import Path

import pytest

from clipkit import CLIP, Tokenizer
from tests.helpers.toy_classifier import toy_model
from tests.helpers.toy_data import color_folders


@pytest.fixture
def toy(small_tokenizer: Tokenizer) -> CLIP:
    """Return a small CLIP of random weights, in eval mode."""
    return toy_model(small_tokenizer)


@pytest.fixture
def place(tmp_path: Path, toy: CLIP) -> Path:
    """Return a folder with what a run needs: class folders, and a model to start from."""
    color_folders(tmp_path / "images", each=2)
    toy.save_pretrained(tmp_path / "start")
    return tmp_path


@pytest.fixture(scope="module")
def model(small_tokenizer: Tokenizer) -> CLIP:
    """Return the same small CLIP for all tests of a file. Tests must not change it."""
    return toy_model(small_tokenizer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return four class folders with three images each."""
    return color_folders(tmp_path_factory.mktemp("images"), each=3)
