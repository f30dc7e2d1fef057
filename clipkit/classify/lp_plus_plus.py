"""LP++: a linear probe beside the zero-shot logits, with learned weights of the two."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.classify.fitting import Fitted
from clipkit.classify.heads import CosineHead, LinearHead

_COSINE_SCALE = 250.0  # what the paper multiplies the mean cosine with the own text by
_EVERY = 10  # steps of the probe between two of the weights of the texts


def lp_plus_plus(
    features: Tensor,
    labels: Tensor,
    zero_shot: CosineHead,
    generator: torch.Generator,
    *,
    epochs: int = 300,
) -> Fitted:
    """Fit LP++ (2404.02285): gradient descent whose step sizes come from the data.

    logits = x V^T + b + alpha * x W^T, where W are the zero-shot weights

    V starts at the sums of each class's features, and alpha (C,) at 250 times the mean cosine of an
    image with its own text. Each step has the whole support set; its size is the inverse of a bound
    of the curvature. The paper picks the best epoch on other images, which are not at hand: here it
    is the last.

    Args:
        features, labels, zero_shot: as in `fit_head`. The temperature of `zero_shot` is not used.
        generator: draws nothing; all methods take one.
        epochs: steps of V and b, from 0. Each tenth one is followed by a step of alpha.

    Returns:
        A `LinearHead`, and the epochs.
    """
    texts = zero_shot.weight.detach()  # W, (C, D)
    cosines = features @ texts.T  # (N, C)
    members = F.one_hot(labels, len(texts)).T.float()  # (C, N)
    weight = (members @ features).requires_grad_()  # V, (C, D)
    bias = weight.new_zeros(len(texts)).requires_grad_()
    own = _COSINE_SCALE * _mean_own_cosine(cosines, members)
    alpha = torch.full_like(bias, own).requires_grad_()
    optimizer = torch.optim.SGD([weight, bias], lr=_weight_rate(features), momentum=0.9)
    alpha_rate = len(features) / (4 * cosines.square().sum(dim=0).max())
    for epoch in range(1, epochs + 1):
        logits = features @ weight.T + bias + alpha * cosines
        optimizer.zero_grad()
        alpha.grad = None
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
        if epoch % _EVERY == 0 and alpha.grad is not None:
            alpha.data -= alpha_rate * alpha.grad
    with torch.no_grad():
        scale = alpha.mean().item()
        # Where texts point away from their images, cosines of new classes would count backwards.
        known = scale if scale > 0 else None
        head = LinearHead(weight + alpha[:, None] * texts, bias, scale=known)
    return head, {"epochs": epochs}


def _mean_own_cosine(cosines: Tensor, members: Tensor) -> float:
    """Return the mean cosine of a class's images with its text, over the classes that have any.

    Args:
        cosines: of images with texts, (N, C).
        members: which image is of which class, (C, N).
    """
    counts = members.sum(dim=1)  # (C,)
    own = (members * cosines.T).sum(dim=1) / counts.clamp(min=1)
    return own[counts > 0].mean().item()


def _weight_rate(features: Tensor) -> float:
    """Return the size of a step of the probe: 4 N over the largest eigenvalue of X^T X."""
    largest = cast(Tensor, torch.linalg.matrix_norm(features, ord=2)).item() ** 2
    return 4 * len(features) / largest
