"""Make small models with random weights, and compare models and weights bit by bit."""

from collections.abc import Mapping

import torch
from torch import Tensor

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

# No head width, activation or preprocessing below is a default. A setting that is not read from the
# checkpoint therefore shows in the results.
TEXT = TextConfig(
    width=64,
    layers=2,
    head_width=32,
    activation="gelu",
    context_length=16,
    vocab_size=600,
)
PREPROCESS = PreprocessConfig(
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.4),
    interpolation="bilinear",
    resize_mode="squash",
)
VIT = CLIPConfig(
    embed_dim=32,
    vision=ViTConfig(
        resolution=(48, 48),
        patch_size=16,
        width=96,
        layers=2,
        head_width=32,
        mlp_ratio=2.5,
        activation="gelu",
    ),
    text=TEXT,
    preprocess=PREPROCESS,
)
RESNET = CLIPConfig(
    embed_dim=32,
    vision=ResNetConfig(resolution=(64, 64), layers=(1, 2, 1, 1), width=16, head_width=32),
    text=TEXT,
    preprocess=PREPROCESS,
)


def random_clip(config: CLIPConfig, tokenizer: Tokenizer | None = None) -> CLIP:
    """Return a model in eval mode. None of its weights and batch statistics is neutral."""
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


def make_small_tokenizer() -> Tokenizer:
    """Return a tokenizer with 86 merges. It has the 600 tokens of the small models."""
    return Tokenizer(default_merges()[:86], context_length=TEXT.context_length)


def assert_same(actual: CLIP, expected: CLIP) -> None:
    """Fail unless two models have the same config and the same weights, dtypes and bits alike."""
    assert actual.config == expected.config
    assert_same_weights(actual.state_dict(), expected.state_dict())


def assert_same_weights(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Fail unless both have the same names, dtypes, shapes and bits, and none asks for gradients.

    NaN equals itself here.
    """
    assert sorted(actual) == sorted(expected)
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert actual[name].shape == value.shape, name
        assert not actual[name].requires_grad, name
        assert torch.equal(_bits(actual[name]), _bits(value)), name


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)  # (...) -> (bytes,)
