"""What several tests of faults share: a toy CLIP, and a folder to train from."""

from pathlib import Path

import pytest
import torch

from clipkit import CLIP, Tokenizer
from tests.helpers.toy_data import color_folders, toy_config


@pytest.fixture
def toy(small_tokenizer: Tokenizer) -> CLIP:
    """Return a small CLIP of random weights, in eval mode."""
    torch.manual_seed(0)
    return CLIP(toy_config(), small_tokenizer).eval()


@pytest.fixture
def place(tmp_path: Path, toy: CLIP) -> Path:
    """Return a folder with what a run needs: class folders, and a model to start from."""
    color_folders(tmp_path / "images", each=2)
    toy.save_pretrained(tmp_path / "start")
    return tmp_path
