"""What the tests of the commands share: a small model, and images to train it on."""

from pathlib import Path

import pytest
import torch

from clipkit import CLIP, Tokenizer
from tests.helpers.toy_data import caption_table, color_folders, toy_config


@pytest.fixture
def toy(tmp_path: Path, small_tokenizer: Tokenizer) -> Path:
    """Return a folder with a small model, class folders and captioned images."""
    torch.manual_seed(0)
    CLIP(toy_config(), small_tokenizer).save_pretrained(tmp_path / "start")
    color_folders(tmp_path / "images", each=5)
    caption_table(tmp_path / "captioned")
    return tmp_path


@pytest.fixture
def start(toy: Path) -> list[str]:
    """Return the options that name the small model."""
    return ["--model", str(toy / "start"), "--device", "cpu"]
