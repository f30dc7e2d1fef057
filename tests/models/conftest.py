"""Give the tests of the models small ones in float64."""

import pytest

from clipkit.clip import CLIP
from tests.helpers.exact import make_exact, resnet_config, vit_config


@pytest.fixture(scope="session")
def exact_vit() -> CLIP:
    """Return a model in float64. Tests must not change it."""
    return make_exact(vit_config())


@pytest.fixture(scope="session")
def exact_resnet() -> CLIP:
    """Return a model in float64. Tests must not change it."""
    return make_exact(resnet_config())


@pytest.fixture(params=["exact_vit", "exact_resnet"])
def exact_model(request: pytest.FixtureRequest) -> CLIP:
    """Return either of the two. Tests must not change it."""
    return request.getfixturevalue(request.param)
