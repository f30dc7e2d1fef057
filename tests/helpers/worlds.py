"""Make classes as Gaussian clouds with texts near their centers."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.classify.heads import CosineHead


class World:
    """Hold classes as Gaussian clouds around centers, and texts near the centers.

    Args:
        classes, width: C, D.
        noise: of images around the center of their class. Directions differ in it.
        gap: of texts around the center; infinite for texts that tell nothing.
        seed: of all draws.
    """

    def __init__(self, classes: int, width: int, noise: float, gap: float, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.centers = self.random.normal(size=(classes, width))
        self.noise = noise * np.linspace(0.3, 2, width)
        texts = self.random.normal(size=(classes, width))
        if math.isfinite(gap):
            texts = self.centers + gap * texts
        weight = F.normalize(torch.tensor(texts), dim=1)
        self.zero_shot = CosineHead(weight, torch.tensor(math.log(100)))

    def draw(self, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return so many images of each class in random order.

        Returns:
            features (N, D) float32 of unit length, and labels (N,).
        """
        labels = np.repeat(np.arange(len(counts)), counts)
        noise = self.random.normal(size=(len(labels), self.centers.shape[1]))
        features = self.centers[labels] + self.noise * noise
        order = self.random.permutation(len(labels))
        rows = torch.tensor(features[order]).float()
        return F.normalize(rows, dim=1), torch.tensor(labels[order])
