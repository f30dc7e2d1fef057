"""Make features of images to calibrate on, for classifiers of the toy model."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit import ImageClassifier


def held_out(
    classifier: ImageClassifier, count: int = 99, seed: int = 5, noise: float = 4.0
) -> tuple[Tensor, Tensor]:
    """Return features (N, D) around the classifier's texts, and labels (N,) of all its classes.

    With the noise by default about three in four are taken for the right class.
    """
    random = torch.Generator().manual_seed(seed)
    texts = classifier.zero_shot_head.weight.detach()  # (C, D)
    labels = torch.arange(count) % len(texts)
    texts = F.normalize(texts - texts.mean(dim=0), dim=1)  # they are close to each other
    length = texts.shape[1] ** 0.5
    rows = texts[labels] + noise * torch.randn(count, texts.shape[1], generator=random) / length
    return F.normalize(rows, dim=1), labels
