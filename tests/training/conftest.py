"""What several tests of training share: a toy CLIP, and images of colors in folders."""

from pathlib import Path

import pytest
import torch

from clipkit import CLIP, Tokenizer
from clipkit.data.labelled import Pairs, read_folder
from tests.helpers.toy_data import color_folders, toy_config


@pytest.fixture
def model(small_tokenizer: Tokenizer) -> CLIP:
    """Return a CLIP of random weights, in eval mode."""
    torch.manual_seed(0)
    return CLIP(toy_config(), small_tokenizer).eval()


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Return eight images of each of four classes."""
    return read_folder(color_folders(tmp_path_factory.mktemp("train"), each=8))


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Return six other images of each class."""
    return read_folder(color_folders(tmp_path_factory.mktemp("test"), each=6, seed=500))


@pytest.fixture
def place(tmp_path: Path, model: CLIP) -> Path:
    """Return a folder with what a run needs: class folders, and a model to start from."""
    color_folders(tmp_path / "images", each=6)
    model.save_pretrained(tmp_path / "start")
    return tmp_path
