"""Give sets of labels that hold the right one as often as is asked: split conformal prediction.

Images with known labels say how improbable a right label can be. A set takes in every label that is
no more improbable than the right labels of the wanted share of those images. For a new image that
comes from where they came from, the set holds the right label with at least the wanted probability,
whatever the classifier is worth (Vovk et al., 2005): a bad one only makes large sets.

The score of a label is the negative logarithm of its probability (LAC: Sadinle et al., 1609.00451).
Of LAC, APS (2006.02544) and RAPS (2009.14193) it made the smallest sets on all features on which
they were compared; see `docs/trust.md`.
"""

import math

import torch.nn.functional as F
from torch import Tensor

from clipkit.classify.metric_inputs import is_number
from clipkit.errors import ConfigError

# Products such as 0.29 * 100 lie next to the whole number that they stand for.
ROUNDING = 1e-9


def nonconformity(logits: Tensor) -> Tensor:
    """Return how little each label fits its image: -log softmax, (N, C), from 0.

    Args:
        logits: (N, C) float32, divided by their temperature.
    """
    return -F.log_softmax(logits, dim=-1)


def conformal_quantile(scores: Tensor, coverage: float) -> float:
    """Return the score up to which labels belong to a set.

    It is the k-th lowest of n scores, where k = ceil((n + 1) coverage). With k = ceil(n coverage),
    sets would hold the right label a little too rarely.

    Args:
        scores: (n,), of the right labels of calibration images, in rising order.
        coverage: between 0 and 1.

    Raises:
        ConfigError: if `coverage` is not between 0 and 1, or needs more images.

    Example:
        >>> import torch
        >>> conformal_quantile(torch.tensor([0.5, 1.0, 1.5, 2.0]), 0.8)
        2.0
    """
    check_share("coverage", coverage)
    count = len(scores)
    place = math.ceil((count + 1) * coverage - ROUNDING)
    if place > count:
        needed = math.ceil(coverage / (1 - coverage) - ROUNDING)
        raise ConfigError(
            f"coverage of {coverage} needs {needed:,} calibration images at least, and there are "
            f"{count:,}: ask for a coverage of at most {_rounded_down(count / (count + 1))}, or "
            "calibrate on more images"
        )
    return float(scores[place - 1])


def label_sets(scores: Tensor, quantile: float) -> Tensor:
    """Return which labels belong to the set of each image, (N, C) bool.

    A set is never empty: it has the most probable label in any case, so it may hold the right one
    more often than was asked.

    Args:
        scores: (N, C), as from `nonconformity`.
        quantile: as from `conformal_quantile`.
    """
    members = scores <= quantile
    return members.scatter(1, scores.argmin(dim=1, keepdim=True), True)


def check_share(name: str, share: float) -> None:
    """Raise `ConfigError` unless `share` is a number between 0 and 1."""
    if not is_number(share) or not 0 < share < 1:
        raise ConfigError(f"{name} must be a number between 0 and 1, not {share!r:.60}")


def _rounded_down(share: float) -> float:
    return math.floor(share * 1000) / 1000
