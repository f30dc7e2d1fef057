"""The head of a classifier that was adapted to a batch: probabilities times Gaussians."""

import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.classify.heads import Head, own

# The Gaussians' log-likelihoods of a few hundred numbers are divided by it (2501.03729).
TEMPERATURE = 50.0


class AdaptedHead(Head):
    """Multiply the probabilities of a linear head by what Gaussians of the classes say.

    logits = log softmax(x W^T + bias) + log N(x; means, variances) / 50

    Args:
        weight: W of the linear head, (C, D).
        bias: its bias, (C,).
        means: of each class's features, (C, D).
        variances: of each class's features, number by number, (C, D), above 0.
    """

    means: Tensor
    variances: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, means: Tensor, variances: Tensor) -> None:
        super().__init__()
        self.classes, self.width = weight.shape
        self.weight = nn.Parameter(own(weight))
        self.bias = nn.Parameter(own(bias))
        self.register_buffer("means", own(means))
        self.register_buffer("variances", own(variances))

    def logits(self, features: Tensor) -> Tensor:
        """Return logits (N, C) of float32 features (N, D)."""
        start = F.linear(features, self.weight.float(), self.bias.float()).log_softmax(dim=1)
        gaussians = log_likelihoods(features, self.means.float(), self.variances.float())
        return start + gaussians / TEMPERATURE


def log_likelihoods(features: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """Return the logarithm of each class's Gaussian density, but for a constant, (N, C).

    Args:
        features: (N, D).
        means: (C, D).
        variances: (C, D), of axes that are independent.
    """
    precisions = 1 / variances  # (C, D)
    # (x - m)^2 / v, summed over D, without a tensor (N, C, D)
    squares = features.square() @ precisions.T
    products = features @ (means * precisions).T
    offsets = (means.square() * precisions + variances.log()).sum(dim=1)  # (C,)
    return -(squares - 2 * products + offsets) / 2
