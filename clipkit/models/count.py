"""Count the parameters of the model that a config describes, without its weights."""

from dataclasses import replace
from functools import lru_cache

import torch
from torch import nn

from clipkit.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from clipkit.models.build import Uninitialized, build_text, build_visual


def count_parameters(config: CLIPConfig) -> int:
    """Return how many numbers a config's model learns. Statistics of batch norms are none of them.

    Example:
        count_parameters(clipkit.CLIP.from_pretrained("ViT-B/32").config)  # 151277313
    """
    vision = config.vision
    if isinstance(vision, ViTConfig):  # activations have no parameters
        vision = replace(vision, activation="gelu")
    text = replace(config.text, activation="gelu")
    temperature = 1
    return (
        _count_visual(vision, config.embed_dim) + _count_text(text, config.embed_dim) + temperature
    )


# Many published models share their towers.


@lru_cache(maxsize=64)
def _count_visual(config: ViTConfig | ResNetConfig, embed_dim: int) -> int:
    with torch.device("meta"), Uninitialized():
        return _count(build_visual(config, embed_dim))


@lru_cache(maxsize=64)
def _count_text(config: TextConfig, embed_dim: int) -> int:
    with torch.device("meta"), Uninitialized():
        return _count(build_text(config, embed_dim))


def _count(tower: nn.Module) -> int:
    return sum(parameter.numel() for parameter in tower.parameters())
