"""What the tests of the classifier share: a small model, features that can be told apart, and all that one can see."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit import CLIP, ImageClassifier, Tokenizer
from tests.helpers.toy_data import toy_config

NAMES = ["blue", "dark red", "green", "white"]  # in the order of the folders
RAGGED = {
    "blue": ["blue", "navy", "sky"],
    "dark red": "dark red",
    "green": ["green", "olive"],
    "white": ["white"],
}
QUICK: dict[str, Any] = {"zero_shot_linear": {"epochs": 3}, "random_linear": {"epochs": 3}}


def toy_model(tokenizer: Tokenizer) -> CLIP:
    """With random weights, for `small_tokenizer`."""
    torch.manual_seed(0)
    return CLIP(toy_config(), tokenizer).eval()


def toy_features() -> tuple[Tensor, Tensor]:
    """Features (22, 32) of 4 classes around their centres, 7, 5, 5 and 5 of each, and labels."""
    random = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.arange(20) % 4, torch.tensor([0, 0])])
    centres = torch.randn(4, 32, generator=random)
    return F.normalize(
        centres[labels] + 0.8 * torch.randn(22, 32, generator=random), dim=-1
    ), labels


def assert_close(first: Tensor, second: Tensor, atol: float = 2e-5) -> None:
    """In value, whatever the dtypes."""
    torch.testing.assert_close(
        first.detach().double(), second.detach().double(), rtol=1e-5, atol=atol
    )


def logits(classifier: ImageClassifier, features: Tensor) -> Tensor:
    """What the head says."""
    with torch.no_grad():
        return classifier.head(features)


def known(classifier: ImageClassifier) -> list[Any]:
    """All by which a change of the heads would show, to the bit."""
    heads = [
        {k: v.tolist() for k, v in h.state_dict().items()}
        for h in (classifier.head, classifier.zero_shot_head)
    ]
    return copy.deepcopy(
        [type(classifier.head), heads, classifier.labels, classifier.prompts, classifier.provenance]
    )
