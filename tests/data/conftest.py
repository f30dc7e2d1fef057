"""Fixtures for the tests of images."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def image_transform() -> Callable[..., Any]:
    """Return open_clip's function that makes a transform."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what its imports deprecate is not ours
        return pytest.importorskip("open_clip.transform").image_transform
