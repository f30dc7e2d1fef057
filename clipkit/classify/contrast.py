"""Measure how far each logit of an image stands out from its others.

A softmax sees differences of logits only, and nothing of whether an image is near to texts at all.
A logit by itself is high for images that are near to every text. In between is the distance from
three quarters of the image's mean logit, which on most sets is better than either for "none of
these", and on all for several labels at once. `docs/trust.md` has the comparison.
"""

from torch import Tensor

SHARE_OF_MEAN = 0.75


def contrast(logits: Tensor) -> Tensor:
    """Return logits (N, C) less three quarters of the mean of their row, (N, C)."""
    return logits - SHARE_OF_MEAN * logits.mean(dim=1, keepdim=True)


def confidence(logits: Tensor) -> Tensor:
    """Return how far the highest logit of each row (N, C) stands out, (N,).

    It is high for images of one of the classes, and low for others.
    """
    return contrast(logits).amax(dim=1)
