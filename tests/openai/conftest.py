"""Share small models of clipkit.openai with random weights. Tests must not change them."""

import pytest

from clipkit.openai.model import CLIP
from tests.openai.small import make_resnet, make_vit


@pytest.fixture(scope="session")
def vit() -> CLIP:
    return make_vit()


@pytest.fixture(scope="session")
def resnet() -> CLIP:
    return make_resnet()


@pytest.fixture(params=["vit", "resnet"])
def model(request: pytest.FixtureRequest) -> CLIP:
    """Return either of the two models."""
    return request.getfixturevalue(request.param)
