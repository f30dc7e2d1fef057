"""Classifier heads: modules from normalised features (N, D) to logits (N, C)."""

import torch
from torch import Tensor, nn


class LinearHead(nn.Linear):
    """One linear layer. It starts at zero, or as the zero-shot classifier (`from_zero_shot`)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(width, classes)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    @classmethod
    def from_zero_shot(cls, weights: Tensor, logit_scale: Tensor) -> "LinearHead":
        """The zero-shot classifier: text features (C, D) times exp(logit_scale), without bias."""
        head = cls(weights.shape[1], weights.shape[0]).to(weights.device)
        with torch.no_grad():
            head.weight.copy_(weights.float() * logit_scale.float().exp())
        return head
