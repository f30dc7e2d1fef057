"""StatA: adapt a classifier to a batch of images without labels (2501.03729).

Each class gets a Gaussian, whose mean and variances start at what the texts say and are drawn to
the images that are taken for that class; the fewer there are, the less. So a batch in which only a
few of the classes occur does no harm to the others. In turn the images are assigned anew: by the
probabilities that they start with, by the Gaussians, and by the assignments of their neighbors.
"""

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.classify.adapted_head import TEMPERATURE, AdaptedHead, log_likelihoods
from clipkit.classify.heads import CosineHead, Head
from clipkit.classify.precision import as_float64
from clipkit.errors import ConfigError, DataError

NEIGHBORS = 3  # the nearest images, whose assignments an image follows
ITERATIONS = 10  # of the Gaussians
_ASSIGNMENTS = 5  # of the images, between two of the Gaussians
_SMALLEST_VARIANCE = 1e-8
_ROWS = 4096  # images whose neighbors are looked for at once

# What the guard asks of a batch: how often neighbors have the same class, over what is expected if
# they always had; and how often they may have it already. Set on the tables of `examples/adapt.py`.
LEAST_AGREEMENT = 0.5
MOST_AGREEMENT = 0.85


@dataclass(frozen=True)
class Batch:
    """Hold what a batch has told.

    Attributes:
        probabilities: of each class for each image, (N, C), with the sum 1.
        means: of each class's features, (C, D), of unit length.
        variances: of each class's features, (C, D).
    """

    probabilities: Tensor
    means: Tensor
    variances: Tensor


def adapted_head(
    head: Head,
    zero_shot: CosineHead,
    features: Tensor,
    anchor: float,
    *,
    guard: bool = True,
) -> tuple[Head, Tensor]:
    """Return a head that is adapted to a batch, and the probabilities of its images, (N, C).

    Args:
        head: what the images start with; it must be linear in the features.
        zero_shot: its weights are the texts.
        features: of the images, (N, D), of unit length.
        anchor: how many images of a class its text is worth, above 0.
        guard: whether to return the head as a linear one, and its own probabilities, for a batch
            that `is_worth_adapting_to` finds nothing in.

    Raises:
        ConfigError: if `anchor` is impossible, or the head is not linear.
        DataError: if there is no image.
    """
    given: object = anchor
    is_number = isinstance(given, int | float | np.number) and not isinstance(given, bool)
    if not is_number or not 0 < anchor < math.inf:
        raise ConfigError(f"anchor must be a number above 0, not {anchor!r}")
    if len(features) == 0:
        raise DataError("there is no image to adapt to: pass one at least")
    linear = head.to_linear()
    with torch.no_grad():
        rows = features.float().to(linear.weight.device)
        start = linear(rows).softmax(dim=-1)
        if guard and not is_worth_adapting_to(rows, start):
            return linear.eval(), start.cpu()
        texts = zero_shot.weight.float().to(rows.device)
        batch = adapt_to(rows, start, texts, anchor=float(anchor))
    made = AdaptedHead(linear.weight, linear.bias, batch.means, batch.variances)
    return made.eval(), batch.probabilities.float().cpu()


def is_worth_adapting_to(features: Tensor, start: Tensor) -> bool:
    """Return whether a batch has groups of images that the start does not yet see as such.

    The likeliest classes of neighbors are compared. If a class gathers its images, two neighbors
    have the same one whenever both are right, which is about the square of how sure the start is.
    Where they agree far less often, images do not lie by class, and to follow the batch does harm;
    where nearly all agree already, there is nothing to win.

    Args:
        features: of the images, (N, D), of unit length.
        start: the probabilities that they start with, (N, C).
    """
    if len(features) < 2:
        return False
    likeliest = start.argmax(dim=1)  # (N,)
    graph = _Neighbors(as_float64(features))
    same = likeliest[graph.indices.to(likeliest.device)] == likeliest[:, None]  # (N, neighbors)
    agreement = same.float().mean().item()
    sure = start.amax(dim=1).mean().item()
    return LEAST_AGREEMENT * sure**2 <= agreement <= MOST_AGREEMENT


def adapt_to(features: Tensor, start: Tensor, texts: Tensor, *, anchor: float = 1.0) -> Batch:
    """Assign images to classes, together, and return Gaussians of the classes.

    Args:
        features: of the images, (N, D), of unit length.
        start: the probabilities that they start with, (N, C).
        texts: a vector of unit length for each class, (C, D), at which the means start.
        anchor: how many images the texts are worth, above 0.
    """
    features, start, texts = as_float64(features), as_float64(start), as_float64(texts)
    variance = _scatter(features, start, texts)  # (D,)
    means, variances = texts, variance.expand_as(texts)
    graph = _Neighbors(features)
    assigned = start
    for iteration in range(ITERATIONS + 1):
        likelihoods = log_likelihoods(features, means, variances)  # (N, C)
        assigned = _assign(assigned, start, likelihoods, graph)
        if iteration < ITERATIONS:
            means, variances = _estimate(features, assigned, texts, variance, anchor)
    return Batch(assigned, means, variances)


def _scatter(features: Tensor, start: Tensor, texts: Tensor) -> Tensor:
    """Return the mean square of each number of an image less that of its text, (D,).

    An image has several texts, by their probabilities.
    """
    mixed = start.T @ features  # (C, D)
    squares = features.square().sum(dim=0) - 2 * (texts * mixed).sum(dim=0)
    squares = squares + (start.sum(dim=0)[:, None] * texts.square()).sum(dim=0)
    return (squares / len(features)).clamp(min=_SMALLEST_VARIANCE)


def _assign(assigned: Tensor, start: Tensor, likelihoods: Tensor, graph: "_Neighbors") -> Tensor:
    """Return the probabilities of classes for images that look at each other, (N, C)."""
    known = start.clamp(min=torch.finfo(start.dtype).tiny).log() + likelihoods / TEMPERATURE
    for _ in range(_ASSIGNMENTS):
        # The paper's weight of the neighbors, 50, is its temperature.
        assigned = (known + graph.votes(assigned)).softmax(dim=1)
    return assigned


def _estimate(
    features: Tensor, assigned: Tensor, texts: Tensor, variance: Tensor, anchor: float
) -> tuple[Tensor, Tensor]:
    """Return means and variances of the classes, (C, D) each, held to the texts.

    A class with n images has a share of n / (anchor + n) from them.
    """
    classes = len(texts)
    counts = assigned.argmax(dim=1).bincount(minlength=classes)  # (C,)
    share = (counts / (anchor + counts))[:, None]  # (C, 1)
    weights = assigned / assigned.sum(dim=0).clamp(min=torch.finfo(assigned.dtype).tiny)  # (N, C)
    found = weights.T @ features  # (C, D)
    means = share * F.normalize(found, dim=1) + (1 - share) * texts
    means = F.normalize(means, dim=1)
    squares = weights.T @ features.square() - 2 * means * found + means.square()  # around the mean
    held = variance + (texts - means).square()
    variances = share * squares + (1 - share) * held
    return means, variances.clamp(min=_SMALLEST_VARIANCE)


class _Neighbors:
    """Hold the nearest images of each image, and let them vote.

    Args:
        features: (N, D), of unit length.

    Attributes:
        indices: of the neighbors of each image, (N, neighbors).
    """

    def __init__(self, features: Tensor) -> None:
        self._count = min(NEIGHBORS, len(features) - 1)
        parts = [self._nearest(features, start) for start in range(0, len(features), _ROWS)]
        self._cosines = torch.cat([cosines for cosines, _ in parts])  # (N, neighbors)
        self.indices = torch.cat([indices for _, indices in parts])  # (N, neighbors)

    def _nearest(self, features: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Return cosines and indices of the nearest others of some images."""
        cosines = features[start : start + _ROWS] @ features.T  # (rows, N)
        own = torch.arange(len(cosines), device=cosines.device)
        cosines[own, start + own] = -torch.inf
        return cast("tuple[Tensor, Tensor]", cosines.topk(self._count, dim=1))

    def votes(self, assigned: Tensor) -> Tensor:
        """Return the mean of what neighbors are assigned to, in both directions, (N, C)."""
        if self._count == 0:
            return torch.zeros_like(assigned)
        votes = torch.zeros_like(assigned)
        # One rank of neighbors after another, as all at once would take several times the memory.
        for cosines, indices in zip(self._cosines.T, self.indices.T, strict=True):
            votes += cosines[:, None] * assigned[indices]
            votes.index_add_(0, indices, cosines[:, None] * assigned)
        return votes / (2 * self._count)
