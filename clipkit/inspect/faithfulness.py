"""Measure how faithful a map is to what a model does, and whether it points at the object.

- Deletion (1806.07421): pixels are taken away, the highest of the map first. The faster the score
  falls, the better: the area under its curve is to be small.
- Insertion (the same): pixels come back to a blurred image, the highest first. The area is to be
  large.
- Pointing game (1608.00507): the highest pixel of the map is to be on the object.
"""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.errors import ConfigError, ImageError

# From preprocessed images (n, 3, H, W) to numbers (n,), such as probabilities of the right class.
Score: TypeAlias = Callable[[Tensor], Tensor]

STEPS = 24  # of a curve, each of as many pixels
BATCH = 32  # images that are scored at once
# The standard deviation of the blur, over the image's shorter side. At 224 pixels it is 14. The
# paper's program has 5 and cuts it off at 5. What is seen through that has a high score already.
BLUR = 1 / 16


def deletion_curve(
    score: Score, image: Tensor, heat_map: Tensor, *, steps: int = STEPS, seed: int = 0
) -> Tensor:
    """Return the score while pixels are taken away, the highest of the map first.

    Pixels that are taken away are 0, which is the mean color of a preprocessed image.

    Args:
        score: what is measured; it is called without gradients.
        image: preprocessed, (3, H, W) or (1, 3, H, W), on the device that the score wants.
        heat_map: (H, W), of any device, as `explanation.upsample()` returns it.
        steps: how many times pixels are taken away, an equal share of them each time.
        seed: of the order of pixels whose value is the same, which is random.

    Returns:
        (steps + 1,) float32 on the CPU: of the whole image first, and of none of it last.

    Raises:
        ConfigError: if the map is of another size than the image or not finite, or there are no
            steps.
        ImageError: if the image has another shape.

    Example:
        area_under(deletion_curve(score, image, explain(model, image, "a cat").upsample()))
    """
    return _curve(score, image, torch.zeros_like(image), heat_map, steps, seed)


def insertion_curve(
    score: Score, image: Tensor, heat_map: Tensor, *, steps: int = STEPS, seed: int = 0
) -> Tensor:
    """Return the score while pixels come back to a blurred image, the highest of the map first.

    Arguments and errors are those of `deletion_curve`.

    Returns:
        (steps + 1,) float32 on the CPU: of the blurred image first, and of the whole one last.

    Example:
        area_under(insertion_curve(score, image, explain(model, image, "a cat").upsample()))
    """
    return _curve(score, blur(image), image, heat_map, steps, seed)


def area_under(curve: Tensor) -> float:
    """Return the area under a curve over the share of pixels, from 0 to 1, by trapezoids.

    Args:
        curve: (steps + 1,), of at least two points.

    Raises:
        ConfigError: for anything else.

    Example:
        >>> area_under(torch.tensor([1.0, 0.5, 0.0]))
        0.5
    """
    if curve.ndim != 1 or len(curve) < 2:
        raise ConfigError(
            f"a curve needs two points or more, (steps + 1,), not {tuple(curve.shape)}: "
            "deletion_curve makes one"
        )
    return float(torch.trapezoid(curve, dx=1 / (len(curve) - 1)))


def pointing_hit(heat_map: Tensor, mask: Tensor) -> float:
    """Return whether the highest pixel of a map is on an object: 1 or 0.

    Where several pixels are the highest, it is the share of them that are on the object.

    Args:
        heat_map: (H, W).
        mask: (H, W) bool, True on the object. `box_mask` makes one of boxes.

    Raises:
        ConfigError: if the sizes differ, or the map is not finite.

    Example:
        >>> mask = box_mask([(0, 0, 2, 2)], height=4, width=4)
        >>> pointing_hit(torch.eye(4), mask)  # two of the four highest pixels are in the box
        0.5
    """
    if heat_map.shape != mask.shape or mask.dtype != torch.bool:
        raise ConfigError(
            f"a map of {tuple(heat_map.shape)} needs a mask of the same size and of torch.bool, "
            f"not {mask.dtype} of {tuple(mask.shape)}"
        )
    if not bool(heat_map.isfinite().all()):
        raise ConfigError(
            "a map needs finite numbers: it has NaN or infinity, which nothing is above"
        )
    highest = heat_map == heat_map.max()
    return float(mask.to(heat_map.device)[highest].float().mean())


def box_mask(boxes: list[tuple[float, float, float, float]], height: int, width: int) -> Tensor:
    """Return a mask of all pixels whose center is in one of the boxes.

    Args:
        boxes: left, top, right and bottom in pixels, of which 0 is the image's edge.
        height, width: of the image in pixels.

    Returns:
        (height, width) bool, on the CPU.

    Example:
        >>> box_mask([(0, 0, 2, 1)], height=2, width=3).tolist()
        [[True, True, False], [False, False, False]]
    """
    mask = torch.zeros(height, width, dtype=torch.bool, device="cpu")
    x = torch.arange(width, device="cpu") + 0.5
    y = torch.arange(height, device="cpu") + 0.5
    for left, top, right, bottom in boxes:
        rows, columns = (y > top) & (y < bottom), (x > left) & (x < right)
        mask |= rows[:, None] & columns  # (height, 1) and (width,) -> (height, width)
    return mask


def blur(image: Tensor) -> Tensor:
    """Return an image blurred by a Gaussian, by a sixteenth of its shorter side.

    Args:
        image: (3, H, W) or (1, 3, H, W), H and W at least 2.

    Raises:
        ImageError: for another shape.

    Example:
        blurred = blur(model.preprocess("cat.jpg"))  # (3, H, W)
    """
    _check_image(image)
    height, width = int(image.shape[-2]), int(image.shape[-1])
    if min(height, width) < 2:
        raise ImageError(
            f"an image of {height} x {width} pixels has no pixels beside its own to be blurred "
            "with: pass one of at least 2 a side"
        )
    deviation = BLUR * min(height, width)
    # Reflection takes less than the whole side, and three deviations are nearly all of it.
    radius = max(1, min(int(3 * deviation + 0.5), min(height, width) - 1))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32, device=image.device)
    kernel = (-(offsets**2) / (2 * deviation**2)).exp()
    kernel = (kernel / kernel.sum()).to(image.dtype)
    x = image.reshape(-1, 1, height, width)  # (..., 3, H, W) -> (3, 1, H, W)
    x = F.pad(x, (radius, radius, radius, radius), mode="reflect")
    x = F.conv2d(x, kernel.view(1, 1, 1, -1))
    return F.conv2d(x, kernel.view(1, 1, -1, 1)).reshape(image.shape)


def _curve(
    score: Score, start: Tensor, end: Tensor, heat_map: Tensor, steps: int, seed: int
) -> Tensor:
    """Return the score while pixels of `end` take the place of those of `start`."""
    _check(start, heat_map, steps)
    ranks = _rank(heat_map.cpu(), seed).to(start.device)  # (H, W)
    found: list[Tensor] = []
    with torch.no_grad():
        for counts in _counts(ranks.numel(), steps):
            changed = ranks < torch.tensor(counts, device=start.device).view(-1, 1, 1, 1)
            images = torch.where(changed, end.reshape(1, 3, *ranks.shape), start)
            found.append(score(images).float().cpu())  # (n, 1, H, W) -> (n, 3, H, W) -> (n,)
    return torch.cat(found)


def _counts(pixels: int, steps: int) -> Iterator[list[int]]:
    """Yield how many pixels are changed, for so many images at once."""
    counts = [round(pixels * step / steps) for step in range(steps + 1)]
    for begin in range(0, len(counts), BATCH):
        yield counts[begin : begin + BATCH]


def _rank(heat_map: Tensor, seed: int) -> Tensor:
    """Return the place of each pixel in the order from the highest to the lowest, (H, W) int64."""
    generator = torch.Generator("cpu").manual_seed(seed)
    values = heat_map.flatten()
    # A map has many zeros. By position they would come row by row, from the top.
    shuffled = torch.randperm(len(values), generator=generator, device="cpu")
    order = shuffled[values[shuffled].argsort(descending=True, stable=True)]
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(values), device="cpu")
    return ranks.view(heat_map.shape)


def _check_image(image: Tensor) -> None:
    """Raise `ImageError` unless an image is (3, H, W) or (1, 3, H, W)."""
    shape = tuple(image.shape)
    if shape[-3:-2] != (3,) or shape[:-3] not in ((), (1,)):
        raise ImageError(
            f"an image must be of shape (3, H, W) or (1, 3, H, W), not {shape}: prepare it with "
            "model.preprocess"
        )


def _check(image: Tensor, heat_map: Tensor, steps: int) -> None:
    """Raise an error unless an image, a map and steps fit each other."""
    _check_image(image)
    shape = tuple(image.shape)
    if tuple(heat_map.shape) != shape[-2:] or not bool(heat_map.isfinite().all()):
        raise ConfigError(
            f"an image of {shape[-2:]} pixels needs a finite map of the same size, not one of "
            f"{tuple(heat_map.shape)}: explanation.upsample() makes one"
        )
    if type(steps) is not int or steps < 1:
        raise ConfigError(f"steps must be an integer of at least 1, not {steps!r}")
