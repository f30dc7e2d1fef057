"""Make support sets: features of classes around centers, and a zero-shot head for them."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.classify import metrics
from clipkit.classify.few_shot import METHODS
from clipkit.classify.heads import CosineHead, Head
from tests.helpers.models import assert_same_weights

CLASSES, WIDTH, PROMPTS = 6, 16, 4


def unit(*shape: int, seed: int) -> Tensor:
    """Return random rows of unit length."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float32), dim=-1)


def _ragged_captions() -> Tensor:
    """Return prompts near the centers (C, K, D); rows of zeros where a class has fewer than K."""
    captions = F.normalize(CENTERS[:, None] + 0.8 * unit(CLASSES, PROMPTS, WIDTH, seed=1), dim=-1)
    for own, count in zip(captions, (4, 1, 3, 2, 4, 4), strict=True):
        own[count:] = 0
    return captions


CENTERS = unit(CLASSES, WIDTH, seed=0)
CAPTIONS = _ragged_captions()
SCALE = torch.tensor(math.log(20), dtype=torch.float32)
ZERO_SHOT = CosineHead(F.normalize(CAPTIONS.sum(dim=1), dim=-1), SCALE).eval()

# The options without which a method cannot do.
NEEDED: dict[str, dict[str, Any]] = {
    method: {"captions": CAPTIONS} if method == "prompt_weights" else {} for method in METHODS
}


def draw(*counts: int, seed: int = 0, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return so many images of each class in random order: features (N, D), labels (N,)."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    noisy = CENTERS[labels] + noise * unit(len(labels), WIDTH, seed=seed + 10)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return F.normalize(noisy, dim=1)[order], labels[order]


def accuracy(head: Head, features: Tensor, labels: Tensor) -> float:
    """Return the share of images that a head gets right."""
    with torch.no_grad():
        return metrics.accuracy(head(features).argmax(dim=1), labels)


def assert_same_head(actual: Head, expected: Head) -> None:
    """Fail unless two heads are of one kind, with the same weights, bit by bit, and scale."""
    assert type(actual) is type(expected)
    assert_same_weights(actual.state_dict(), expected.state_dict())
    assert actual.scale == expected.scale


def snapshot(head: Head) -> dict[str, Tensor]:
    """Return a copy of the weights of a head."""
    return {name: tensor.clone() for name, tensor in head.state_dict().items()}
