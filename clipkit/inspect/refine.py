"""Let scores of pixels follow the edges of the image: pixel-adaptive refinement (2005.08104)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.errors import ConfigError
from clipkit.fields import is_positive

ITERATIONS = 10  # these are the settings with which NACLIP (2404.08181) refines
DILATIONS = (8, 16)
_SHARE_OF_DEVIATION = 0.1  # in whose units differences count, as in the paper's program
_SIDES = (-1, 0, 1)


def refine_scores(
    scores: Tensor,
    image: Tensor,
    *,
    iterations: int = ITERATIONS,
    dilations: Sequence[int] = DILATIONS,
) -> Tensor:
    """Return scores in which each pixel has become more like neighbors of its own color.

    Each iteration replaces the scores of a pixel by a mean of those of its neighbors. A neighbor
    weighs more, the smaller the difference of the colors is, in units of a tenth of the local
    standard deviation. At the edges the nearest pixel stands for those that are not there.

    Args:
        scores: (C, H, W), floating.
        image: (3, H, W), floating, in any unit.
        iterations: how often.
        dilations: distances of the neighbors in pixels; there are eight at each.

    Returns:
        (C, H, W). In float32 and with the default distances, at most 18 bytes for each score are in
        memory, those of `scores` among them, and 250 for each pixel.

    Raises:
        ConfigError: if shapes differ, there is no distance, or a number is impossible.

    Example:
        refined = refine_scores(scores, image)
    """
    if scores.shape[1:] != image.shape[1:]:
        raise ConfigError(
            f"scores {tuple(scores.shape)} are refined by an image of as many pixels, not "
            f"{tuple(image.shape)}: resize one of them"
        )
    if not dilations or not all(is_positive(dilation) for dilation in dilations):
        raise ConfigError(
            f"dilations must be whole pixels from 1 on, such as {DILATIONS}, not {list(dilations)}"
        )
    if type(iterations) is not int or iterations < 0:
        raise ConfigError(f"iterations must be an integer from 0 on, not {iterations!r}")
    shifts = [
        (dilation * down, dilation * right)
        for dilation in dilations
        for down in _SIDES
        for right in _SIDES
        if (down, right) != (0, 0)
    ]
    weights = _weigh_neighbors(image, shifts, centers=len(dilations)).to(scores.dtype)
    for _ in range(iterations):
        scores = _average(scores, shifts, weights)
    return scores


def _average(scores: Tensor, shifts: list[tuple[int, int]], weights: Tensor) -> Tensor:
    """Return the weighted mean of the neighbors of each pixel, (C, H, W)."""
    padded = _pad(scores, shifts)
    mean = torch.zeros_like(scores)
    for shift, weight in zip(shifts, weights, strict=True):
        mean.addcmul_(_shifted(padded, shift, shifts, scores), weight)
    return mean


def _weigh_neighbors(image: Tensor, shifts: list[tuple[int, int]], centers: int) -> Tensor:
    """Return how much each neighbor weighs, (neighbors, H, W); together they weigh 1."""
    unit = 1e-8 + _SHARE_OF_DEVIATION * _deviation(image, shifts, centers)  # (3, H, W)
    padded = _pad(image, shifts)
    nearness = image.new_empty((len(shifts), *image.shape[1:]))
    for number, shift in enumerate(shifts):
        difference = _shifted(padded, shift, shifts, image) - image
        nearness[number] = -(difference.abs() / unit).mean(dim=0)
    return nearness.softmax(dim=0)


def _deviation(image: Tensor, shifts: list[tuple[int, int]], centers: int) -> Tensor:
    """Return the standard deviation around each pixel, (3, H, W).

    It is of all neighbors, and of the pixel itself once for each distance.
    """
    padded = _pad(image, shifts)
    total, squares = torch.zeros_like(image), torch.zeros_like(image)
    for shift in shifts:
        difference = _shifted(padded, shift, shifts, image) - image  # (3, H, W)
        total += difference
        squares += difference**2
    count = len(shifts) + centers
    return ((squares - total**2 / count).clamp(min=0) / (count - 1)).sqrt()


def _pad(maps: Tensor, shifts: list[tuple[int, int]]) -> Tensor:
    """Return maps with their edges repeated as far as any neighbor is."""
    reach = max(max(shift) for shift in shifts)
    return F.pad(maps[None], [reach] * 4, mode="replicate")[0]


def _shifted(
    padded: Tensor, shift: tuple[int, int], shifts: list[tuple[int, int]], like: Tensor
) -> Tensor:
    """Return of each pixel the value of one of its neighbors, (C, H, W)."""
    reach = max(max(one) for one in shifts)
    top, left = reach + shift[0], reach + shift[1]
    return padded[:, top : top + like.shape[1], left : left + like.shape[2]]
