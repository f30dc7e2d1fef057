"""Count the parameters of the model that a config describes, without its weights."""

from functools import lru_cache

import torch

from clipkit.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from clipkit.models.build import Uninitialized, build_text, build_visual


def count_parameters(config: CLIPConfig) -> int:
    """Return how many numbers a config's model learns. Statistics of batch norms are none of them.

    Example:
        count_parameters(clipkit.CLIP.from_pretrained("ViT-B/32").config)  # 151277313
    """
    return _count_parameters(config.vision, config.text, config.embed_dim)


@lru_cache(maxsize=64)  # many published models share an architecture
def _count_parameters(vision: ViTConfig | ResNetConfig, text: TextConfig, embed_dim: int) -> int:
    with torch.device("meta"), Uninitialized():
        towers = (build_visual(vision, embed_dim), build_text(text, embed_dim))
    temperature = 1
    return temperature + sum(
        parameter.numel() for tower in towers for parameter in tower.parameters()
    )
