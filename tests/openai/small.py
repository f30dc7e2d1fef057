"""Make small models of clipkit.openai with random weights, and inputs for them."""

import torch
from torch import Tensor

from clipkit.openai.model import CLIP
from tests.helpers.random_weights import randomize, some_images, some_tokens

LENGTH, VOCAB = 16, 600
TEXT = (LENGTH, VOCAB, 128, 2, 2)  # context, vocabulary, width, heads, layers


def make_vit() -> CLIP:
    """Return a model with a vision transformer of two heads for images of 48 pixels."""
    return randomize(CLIP(32, 48, 2, 128, 16, *TEXT))


def make_resnet() -> CLIP:
    """Return a model with a ResNet for images of 64 pixels."""
    return randomize(CLIP(32, 64, (1, 2, 1, 1), 16, None, *TEXT))


def images_for(model: CLIP, count: int = 3) -> Tensor:
    """Return images (count, 3, H, W) float32."""
    return some_images(count, model.visual.input_resolution)


def some_ids(count: int = 3) -> Tensor:
    """Return token ids (count, 16) int32, whose highest is the end of text."""
    return some_tokens(count, LENGTH, VOCAB).to(torch.int32)
