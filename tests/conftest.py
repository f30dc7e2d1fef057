"""What all tests share: the options, a cache of their own, a local hub, and small models with random weights."""

import os
import tempfile

import pytest
import torch

from clipkit import (
    CLIP,
    CLIPConfig,
    PreprocessConfig,
    ResNetConfig,
    TextConfig,
    Tokenizer,
    ViTConfig,
)
from clipkit.tokenizer import default_merges
from tests.helpers.hub_server import hub  # noqa: F401  a fixture


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--network", action="store_true", help="also run the tests that download published weights"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--network"):
        return  # gigabytes, better kept in the user's own cache
    cache = tempfile.TemporaryDirectory(prefix="clipkit-tests-")
    config.add_cleanup(cache.cleanup)
    # huggingface_hub reads them when it is first imported; offline, so that no test asks the network by mistake.
    os.environ |= {"HF_HOME": cache.name, "HF_HUB_CACHE": cache.name, "HF_HUB_OFFLINE": "1"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("network") and not config.getoption("--network"):
            item.add_marker(pytest.mark.skip(reason="needs --network"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


# Head widths, activations' order and preprocessing are no defaults: what is not read from the checkpoint shows.
TEXT = TextConfig(
    width=64, layers=2, head_width=32, activation="gelu", context_length=16, vocab_size=600
)
PREPROCESS = PreprocessConfig(
    mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), interpolation="bilinear", resize_mode="squash"
)


@pytest.fixture(scope="session")
def vit_config() -> CLIPConfig:
    vision = ViTConfig(
        resolution=48,
        patch_size=16,
        width=96,
        layers=2,
        head_width=32,
        mlp_ratio=2.5,
        activation="gelu",
    )
    return CLIPConfig(embed_dim=32, vision=vision, text=TEXT, preprocess=PREPROCESS)


@pytest.fixture(scope="session")
def resnet_config() -> CLIPConfig:
    vision = ResNetConfig(resolution=64, layers=(1, 2, 1, 1), width=16, head_width=32)
    return CLIPConfig(embed_dim=32, vision=vision, text=TEXT, preprocess=PREPROCESS)


def random_clip(config: CLIPConfig, tokenizer: Tokenizer | None = None) -> CLIP:
    """A model none of whose weights and statistics is neutral, in eval mode."""
    model = CLIP(config, tokenizer)
    random = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            value.fill_(7)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=random)
        else:
            value.normal_(0, 0.1, generator=random)
    return model.eval()


@pytest.fixture(scope="session")
def vit(vit_config: CLIPConfig) -> CLIP:
    return random_clip(vit_config)


@pytest.fixture(scope="session")
def resnet(resnet_config: CLIPConfig) -> CLIP:
    return random_clip(resnet_config)


@pytest.fixture(params=["vit", "resnet"])
def clip(request: pytest.FixtureRequest) -> CLIP:
    """Either of the two; not to be changed."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def small_tokenizer() -> Tokenizer:
    """One with 86 merges, whose vocabulary is that of the small models."""
    return Tokenizer(default_merges()[:86], context_length=16)
