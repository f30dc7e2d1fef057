"""What the tests of classifiers share; nothing of it may be changed by a test."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from clipkit import CLIP, ImageClassifier
from clipkit.tokenizer import Tokenizer
from tests.helpers.toy_classifier import NAMES, toy_features, toy_model
from tests.helpers.toy_data import color_folders


@pytest.fixture(scope="session")
def toy(small_tokenizer: Tokenizer) -> CLIP:
    """Return a small model with random weights."""
    return toy_model(small_tokenizer)


@pytest.fixture
def classifier(toy: CLIP) -> ImageClassifier:
    """Return a zero-shot classifier of four colors, which the test may fit."""
    return ImageClassifier.zero_shot(toy, NAMES)


@pytest.fixture(scope="session")
def color_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two images in each of four folders named by colors."""
    return color_folders(tmp_path_factory.mktemp("images"), each=2)


@pytest.fixture(scope="session")
def few() -> tuple[Tensor, Tensor]:
    """Return features (22, 32) of four classes, and labels (22,)."""
    return toy_features()


@pytest.fixture(scope="session")
def images() -> Tensor:
    """Return preprocessed images (3, 3, 32, 32) of noise."""
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
