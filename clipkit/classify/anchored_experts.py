"""The two classifiers that `anchored` averages, fitted to one support set with one strength."""

from typing import Literal, TypeAlias, get_args

import torch.nn.functional as F
from torch import Tensor

from clipkit.classify.anchored_gaussian import GaussianExpert
from clipkit.classify.anchored_logistic import LogisticExpert
from clipkit.classify.fitting import minimize
from clipkit.classify.heads import CosineHead

# The mean of both classifiers, or one alone.
Which: TypeAlias = Literal["both", "logistic", "gaussian"]
CHOICES: tuple[Which, ...] = get_args(Which)

DISTANCE = 0.003  # the Gaussians' distance from their texts at a strength of 1


class Experts:
    """Hold both classifiers, and average their logits.

    Args:
        features: (N, D).
        labels: (N,).
        zero_shot: where they start.

    Attributes:
        scale: the temperature of the texts.
        trust: the same over that of the model.
    """

    def __init__(self, features: Tensor, labels: Tensor, zero_shot: CosineHead) -> None:
        start = zero_shot.weight.detach()
        usual = zero_shot.logit_scale.detach().exp().item()
        self.scale = text_scale(features @ start.T, labels, usual)
        self.trust = self.scale / usual
        self.logistic = LogisticExpert(features, labels, start, self.scale)
        self.gaussian = GaussianExpert(features, labels, start, self.scale)

    def fit(self, strength: float, iterations: int, rounds: int) -> None:
        """Fit both, starting from where the last fit ended."""
        self.logistic.fit(strength, iterations)
        self.gaussian.fit(DISTANCE / strength, rounds)

    def layer(self, which: Which) -> tuple[Tensor, Tensor]:
        """Return weights (C, D) and bias (C,) of the linear layer that computes the logits."""
        first, second = self.logistic, self.gaussian
        if which == "logistic":
            return first.weight, first.bias
        if which == "gaussian":
            return second.weight, second.bias
        return (first.weight + second.weight) / 2, (first.bias + second.bias) / 2

    def logits(self, features: Tensor, which: Which) -> Tensor:
        """Return the logits (M, C) of any features (M, D)."""
        weight, bias = self.layer(which)
        return F.linear(features, weight, bias)


def text_scale(cosines: Tensor, labels: Tensor, usual: float) -> float:
    """Return the factor that makes the cosines with the texts fit the labels.

    The fewer the images, the nearer it stays to the factor that the model was trained with: the
    logarithms of both differ by about 1.

    Args:
        cosines: (N, C).
        labels: (N,) int64.
        usual: the factor of the model, exp(logit_scale).
    """
    lead = cosines - cosines.gather(1, labels[:, None])  # (N, C)
    moved = cosines.new_zeros(()).requires_grad_()

    def loss() -> Tensor:
        losses = (usual * moved.exp() * lead).logsumexp(dim=1)
        return (losses.sum() + moved.square() / 2) / len(losses)

    minimize(loss, [moved], iterations=50)
    return usual * moved.detach().exp().item()
