"""Make each of the three towers small, with random weights and seven inputs."""

from typing import Literal

import torch
from torch import Tensor, nn

from clipkit import CLIP, CLIPConfig, ResNetConfig, TextConfig, ViTConfig, lora
from tests.helpers.random_weights import randomize, some_images, some_tokens

TowerName = Literal["vit", "resnet", "text"]
NAMES: tuple[TowerName, ...] = ("vit", "resnet", "text")
TEXT = TextConfig(
    width=32, layers=2, head_width=16, activation="gelu", context_length=16, vocab_size=600
)
VIT = ViTConfig(
    resolution=(32, 32), patch_size=16, width=32, layers=2, head_width=16, activation="quick_gelu"
)
RESNET = ResNetConfig(resolution=(64, 64), layers=(1, 1, 1, 1), width=8)


def make_vit() -> CLIP:
    """Return a CLIP with a vision transformer for images of 32 pixels, in eval mode."""
    return randomize(CLIP(CLIPConfig(embed_dim=16, vision=VIT, text=TEXT)))


def make_resnet() -> CLIP:
    """Return a CLIP with a ResNet for images of 64 pixels, in eval mode."""
    return randomize(CLIP(CLIPConfig(embed_dim=16, vision=RESNET, text=TEXT)))


def with_low_rank_changes(model: CLIP) -> CLIP:
    """Return a copy with low-rank changes that are not nothing, and dropout of theirs."""
    model = lora(model, rank=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".change" in name:
                parameter.normal_(0, 0.3, generator=generator)
    return model


def make_inputs(name: TowerName) -> Tensor:
    """Return seven images (7, 3, H, W) or rows of token ids (7, 16) for a tower."""
    if name == "text":
        return some_tokens(7, TEXT.context_length, TEXT.vocab_size)
    return some_images(7, VIT.resolution if name == "vit" else RESNET.resolution)


def make_tower(name: TowerName) -> nn.Module:
    """Return a tower in eval mode."""
    if name == "text":
        return make_vit().text
    return make_vit().visual if name == "vit" else make_resnet().visual
