"""Make small models in float64, where exact means exact, and compare what they compute."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clipkit.clip import CLIP
from clipkit.config import Activation, CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from clipkit.models.vision_transformer import VisionTransformer
from tests.helpers.random_weights import randomize, some_images, some_tokens

EXACT = 1e-12  # largest difference of features of order one
VOCAB, CONTEXT = 60, 16


def text_config(activation: Activation = "quick_gelu") -> TextConfig:
    return TextConfig(
        width=36,
        layers=3,
        head_width=12,
        mlp_ratio=2,
        activation=activation,
        context_length=CONTEXT,
        vocab_size=VOCAB,
    )


def vit_config(
    activation: Activation = "quick_gelu", size: tuple[int, int] = (24, 32)
) -> CLIPConfig:
    vision = ViTConfig(
        resolution=size,
        patch_size=8,
        width=24,
        layers=3,
        head_width=8,
        mlp_ratio=3,
        activation=activation,
    )
    return CLIPConfig(embed_dim=20, vision=vision, text=text_config(activation))


def resnet_config(size: tuple[int, int] = (64, 96)) -> CLIPConfig:
    vision = ResNetConfig(resolution=size, layers=(1, 2, 1, 1), width=8, head_width=64)
    return CLIPConfig(embed_dim=20, vision=vision, text=text_config())


def make_exact(config: CLIPConfig, seed: int = 0) -> CLIP:
    """Return a random model in float64 and eval mode."""
    return randomize(CLIP(config).double(), seed)


def images_for(model: CLIP, count: int = 4) -> Tensor:
    """Return images (count, 3, H, W) float64."""
    return some_images(count, model.config.vision.resolution).double()


def tokens_for(model: CLIP, count: int = 6) -> Tensor:
    """Return token ids (count, L) int64."""
    return some_tokens(count, model.context_length, model.vocab_size)


def vit_of(model: CLIP) -> VisionTransformer:
    """Return the image tower of a model that has a vision transformer."""
    assert isinstance(model.visual, VisionTransformer)
    return model.visual


def largest_difference(one: Any, other: Any) -> float:
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


def gradients_of(output: Tensor, *modules: nn.Module) -> dict[str, Tensor]:
    """Return the gradients of a fixed random sum of `output`, by the name of each parameter."""
    for module in modules:
        module.zero_grad()
    random = torch.Generator().manual_seed(3)
    weights = torch.randn(output.shape, dtype=output.dtype, generator=random)
    (output * weights).sum().backward()
    found: dict[str, Tensor] = {}
    for i, module in enumerate(modules):
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                found[f"{i}.{name}"] = parameter.grad.clone()
    return found


def assert_same_gradients(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        size = float(gradient.abs().max())
        assert size > 0, name
        assert largest_difference(gradient, other[name]) < 1e-11 * max(1, size), name
