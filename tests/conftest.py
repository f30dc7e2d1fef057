"""Give all tests their options, a cache of their own, a local hub, and small models."""

import os
import signal
import tempfile

import pytest
import torch

from clipkit import CLIP, CLIPConfig, Tokenizer
from tests.helpers.hub_server import hub as hub
from tests.helpers.models import RESNET, VIT, make_small_tokenizer, random_clip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--network", action="store_true", help="also run the tests that download published weights"
    )
    parser.addoption("--slow", action="store_true", help="also run the tests that take long")


def pytest_configure(config: pytest.Config) -> None:
    # A shell that starts this in the background lets it ignore Ctrl-C, and all that it starts too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "PYTEST_XDIST_WORKER" in os.environ:  # the others use the other cores
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
    if config.getoption("--network"):
        return  # gigabytes, which are better kept in the user's own cache
    cache = tempfile.TemporaryDirectory(prefix="clipkit-tests-")
    config.add_cleanup(cache.cleanup)
    # huggingface_hub reads these variables when it is first imported. Offline, no test can ask the
    # network by mistake.
    os.environ |= {"HF_HOME": cache.name, "HF_HUB_CACHE": cache.name, "HF_HUB_OFFLINE": "1"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("network") and not config.getoption("--network"):
            item.add_marker(pytest.mark.skip(reason="needs --network"))
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="needs --slow"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def vit_config() -> CLIPConfig:
    return VIT


@pytest.fixture(scope="session")
def resnet_config() -> CLIPConfig:
    return RESNET


@pytest.fixture(scope="session")
def vit() -> CLIP:
    return random_clip(VIT)


@pytest.fixture(scope="session")
def resnet() -> CLIP:
    return random_clip(RESNET)


@pytest.fixture(params=["vit", "resnet"])
def clip(request: pytest.FixtureRequest) -> CLIP:
    """Return either of the two small models. Tests must not change it."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def small_tokenizer() -> Tokenizer:
    return make_small_tokenizer()
