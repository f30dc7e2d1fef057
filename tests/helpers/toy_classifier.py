"""Make what the tests of classifiers share: a small model, and features that can be told apart."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from clipkit import CLIP, ImageClassifier, Tokenizer
from tests.helpers.toy_data import COLORS, toy_config, two_colors

NAMES = ["blue", "dark red", "green", "white"]  # in the order of the folders
RAGGED = {
    "blue": ["blue", "navy", "sky"],
    "dark red": "dark red",
    "green": ["green", "olive"],
    "white": ["white"],
}
QUICK: dict[str, Any] = {"zero_shot_linear": {"epochs": 3}, "random_linear": {"epochs": 3}}

# What takes classes without being fitted again: zero-shot, and methods by name.
EXTENDED = [
    "zero_shot",
    "anchored",
    "prompt_weights",
    "gaussian",
    "cache",
    "cache_finetuned",
    "lp_plus_plus",
    "proker",
    "projection",
    "clap",
]


def toy_model(tokenizer: Tokenizer) -> CLIP:
    """Return a model with random weights, for `small_tokenizer`."""
    torch.manual_seed(0)
    return CLIP(toy_config(), tokenizer).eval()


def toy_features() -> tuple[Tensor, Tensor]:
    """Return features (22, 32) around the centers of 4 classes, and labels (22,).

    The classes have 7, 5, 5 and 5 features.
    """
    random = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.arange(20) % 4, torch.tensor([0, 0])])
    centers = torch.randn(4, 32, generator=random)
    noise = torch.randn(22, 32, generator=random)
    return F.normalize(centers[labels] + 0.8 * noise, dim=-1), labels


class ColoredImages(Dataset[Any]):
    """Images of noise around a color, with or without their labels."""

    def __init__(self, labels: list[int], labeled: bool = True) -> None:
        self.labels = labels
        self.labeled = labeled

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        color = COLORS[NAMES[self.labels[index]]]
        image = two_colors(color, color, seed=index)
        return (image, self.labels[index]) if self.labeled else image


def assert_close(first: Tensor, second: Tensor, atol: float = 2e-5) -> None:
    """Fail unless two tensors are close in value, whatever their dtypes."""
    torch.testing.assert_close(
        first.detach().double(), second.detach().double(), rtol=1e-5, atol=atol
    )


def zero_shot_by_hand(model: CLIP, images: Tensor, weights: Tensor) -> Tensor:
    """Return the logits (N, C) of zero-shot classification, computed in float64."""
    with torch.no_grad():
        features = model.encode_image(images).double()
        features = features / features.square().sum(dim=1, keepdim=True).sqrt()
        return model.logit_scale.double().exp() * features @ weights.double().T


def fitted(model: CLIP, few: tuple[Tensor, Tensor], method: str) -> ImageClassifier:
    """Return a classifier of four colors, fitted by a method unless that is "zero_shot"."""
    classifier = ImageClassifier.zero_shot(model, RAGGED, ["a {}."])
    if method == "zero_shot":
        return classifier
    return classifier.fit(*few, method, **QUICK.get(method, {}))


def head_logits(classifier: ImageClassifier, features: Tensor) -> Tensor:
    """Return what the head makes of features, without gradient."""
    with torch.no_grad():
        return classifier.head(features)


def state_of(classifier: ImageClassifier) -> list[Any]:
    """Return everything in which a change of the heads would show, to the bit."""
    heads = [
        {name: value.tolist() for name, value in head.state_dict().items()}
        for head in (classifier.head, classifier.zero_shot_head)
    ]
    return copy.deepcopy(
        [
            type(classifier.head),
            classifier.head.scale,
            heads,
            classifier.labels,
            classifier.prompts,
            classifier.templates,
            classifier.provenance,
        ]
    )
