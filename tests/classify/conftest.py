"""What the tests of classifiers share; nothing of it may be changed by a test."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clipkit import CLIP, ImageClassifier
from clipkit.classify import (
    anchored,
    anchored_logistic,
    cache,
    fitting,
    gaussian,
    linear_probe,
    projection,
    prompt_weights,
)
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


def minimize_roughly(
    loss: Callable[[], Tensor], parameters: list[Tensor], iterations: int, tolerance: float = 1e-5
) -> None:
    fitting.minimize(loss, parameters, min(iterations, 15), tolerance)


@pytest.fixture
def quick_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let methods choose among few settings and stop early, where only equal fits are compared."""
    monkeypatch.setattr(anchored, "STRENGTHS", (10.0, 1.0, 0.1))
    monkeypatch.setattr(projection, "STRENGTHS", (1.0, 0.1))
    monkeypatch.setattr(linear_probe, "EXPONENTS", (0, 2))
    monkeypatch.setattr(gaussian, "ALPHAS", (0.1, 1.0, 10.0))
    monkeypatch.setattr(cache, "ALPHAS", (0.3, 3.0))
    monkeypatch.setattr(cache, "BETAS", (1.0, 10.0))
    for module in (anchored_logistic, linear_probe, projection, prompt_weights):
        monkeypatch.setattr(module, "minimize", minimize_roughly)
