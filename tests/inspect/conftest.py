"""Make the models in float64 that several tests of `clipkit.inspect` look into."""

import pytest

from clipkit import CLIP
from tests.helpers.exact import make_exact, resnet_config, vit_config


@pytest.fixture(scope="module")
def exact_vit() -> CLIP:
    """Return a model in float64, of 3 x 4 patches. Tests must not change it."""
    return make_exact(vit_config())


@pytest.fixture(scope="module")
def exact_resnet() -> CLIP:
    """Return a model in float64, of 2 x 3 places. Tests must not change it."""
    return make_exact(resnet_config())
