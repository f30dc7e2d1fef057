"""Colors, numbers and lines of areas, the same in `draw_overlay` and in `plots.segmentation`.

A class has the same color and the same number in every image: both come from its place among the
labels. Numbers count from 1, and stand where an area is widest.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clipkit.classify.metric_inputs import is_count, is_number
from clipkit.errors import ConfigError

Color = tuple[int, int, int]

# Okabe and Ito's colors, which the color-blind tell apart too (Color Universal Design, 2008). Their
# black is left to the numbers. Each class has a number as well, on the map and in the legend.
COLORS: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
# Of the same colors, (how much of white, how much of the color): as they are, lighter, darker.
_SHADES = ((0.0, 1.0), (0.5, 0.5), (0.0, 0.55))
_SMALLEST_SHARE = 0.002  # of the pixels of a photo, for a class to get its number on the map
_SEARCH_SIDE = 96  # pixels to which a mask is reduced to find where it is widest
_LINES = 500  # widths of a line between areas along the longer side of an image


class Number(NamedTuple):
    """Hold the number of a class, and the pixel at which its middle is to stand."""

    text: str
    x: int
    y: int


class Entry(NamedTuple):
    """Hold a line of a legend: the place of its class among the labels, and its texts.

    The background has no number.
    """

    place: int
    number: str
    label: str
    share: str


def color_of(index: int) -> Color:
    """Return the color (red, green, blue) of a class by its number; after 21 they come again."""
    white, share = _SHADES[index // len(COLORS) % len(_SHADES)]
    red, green, blue = (round(255 * white + share * level) for level in COLORS[index % len(COLORS)])
    return red, green, blue


def number_text(index: int) -> str:
    """Return the number that stands for a class, counted from 1."""
    return str(index + 1)


def shares_of(indices: Tensor, classes: int) -> list[float]:
    """Return the share of pixels that each class has, from 0 to 1.

    Args:
        indices: the class of each pixel, of any shape, integers from 0.
        classes: how many there are.

    Raises:
        ConfigError: if there is a class of another number, or numbers are no integers.
    """
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ConfigError(
            f"classes must be integers, not {indices.dtype}: scores (C, H, W) become such by "
            "scores.argmax(dim=0)"
        )
    indices = indices.long()
    if indices.numel() and (lowest := int(indices.min())) < 0:
        raise ConfigError(f"class {lowest} has no label: classes are numbered from 0")
    counts = torch.bincount(indices.flatten(), minlength=classes)
    if len(counts) > classes:
        raise ConfigError(f"class {len(counts) - 1} has no label: there are {classes}")
    return cast("list[float]", (counts.double() / indices.numel()).tolist())


def share_text(share: float) -> str:
    """Return a share for people. What is there at all is never said to be 0 %.

    Example:
        >>> share_text(0.1234), share_text(0.0001)
        ('12.3%', '<0.1%')
    """
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def entries_of(
    labels: Sequence[str], shares: Sequence[float], background: int | None
) -> list[Entry]:
    """Return the lines of a legend in the order of the numbers, the background last.

    Classes that are nowhere have none.
    """
    shown = [index for index, share in enumerate(shares) if share and index != background]
    entries = [
        Entry(index, number_text(index), labels[index], share_text(shares[index]))
        for index in shown
    ]
    if background is not None and shares[background]:
        entries.append(Entry(background, "", labels[background], share_text(shares[background])))
    return entries


def check_options(classes: int, background: object, opacity: object) -> None:
    """Raise `ConfigError` unless the background is a class or None, and the opacity a share."""
    if background is not None and not (
        (is_count(background) or background == 0) and cast("int", background) < classes
    ):
        raise ConfigError(
            f"background must be the number of a class, 0 to {classes - 1}, or None, not "
            f"{background!r:.60}"
        )
    if not is_number(opacity) or not 0 <= cast("float", opacity) <= 1:
        raise ConfigError(f"opacity must be a number from 0 to 1, not {opacity!r:.60}")


def paint(
    pixels: NDArray[np.uint8],
    indices: NDArray[np.int64],
    colors: Sequence[Color],
    *,
    background: int | None,
    opacity: float,
) -> NDArray[np.uint8]:
    """Return an image (h, w, 3) with colors over its areas and white lines between them.

    Args:
        pixels: (h, w, 3).
        indices: the class of each pixel, (h, w).
        colors: C of them.
        background: the class that gets no color, if any.
        opacity: of the colors, from 0 to 1.
    """
    strength = np.full(len(colors), opacity, dtype=np.float32)
    if background is not None:
        strength[background] = 0
    share = strength[indices][:, :, None]  # (h, w, 1)
    levels = np.array(colors, dtype=np.float32)  # (C, 3)
    painted = np.asarray((1 - share) * pixels + share * levels[indices], dtype=np.float32)
    painted[_edges_of(indices, max(1, round(max(indices.shape) / _LINES)))] = 255
    return np.asarray(painted.round(), dtype=np.uint8)


def _edges_of(indices: NDArray[np.int64], width: int) -> NDArray[np.bool_]:
    """Return where lines of a width between the areas of classes (h, w) lie, (h, w) bool."""
    edges = np.zeros(indices.shape, dtype=np.bool_)
    edges[:, 1:] |= indices[:, 1:] != indices[:, :-1]
    edges[1:] |= indices[1:] != indices[:-1]
    for step in range(1, width):
        wider = np.array(edges)
        if step % 2:  # to both sides in turns
            wider[:, :-1] |= edges[:, 1:]
            wider[:-1] |= edges[1:]
        else:
            wider[:, 1:] |= edges[:, :-1]
            wider[1:] |= edges[:-1]
        edges = wider
    return edges


def place_numbers(
    indices: NDArray[np.int64], shares: Sequence[float], background: int | None
) -> list[Number]:
    """Return the number of each class that covers enough, where its area is widest.

    Args:
        indices: the class of each pixel, (h, w).
        shares: of each class, as from `shares_of`.
        background: the class that gets no number, if any.
    """
    numbers: list[Number] = []
    for index, share in enumerate(shares):
        if index == background or share < _SMALLEST_SHARE:
            continue
        y, x = widest_place(indices == index)
        numbers.append(Number(number_text(index), x, y))
    return numbers


def widest_place(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Return a pixel (row, column) of a mask that is as far from its edge as any, or nearly."""
    height, width = mask.shape
    scale = min(1.0, _SEARCH_SIDE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    left = F.interpolate(torch.from_numpy(mask)[None, None].float(), size, mode="area")[0, 0]
    while True:
        outside = F.pad(left[None], (1, 1, 1, 1))
        smaller = -F.max_pool2d(-outside, 3, stride=1)[0]  # the edge moves inwards
        if not (smaller > 0.5).any():
            break
        left = smaller
    candidates = (left >= min(0.5, float(left.max()))).nonzero().double()  # (n, 2)
    # Of a long area they are a line, of which the middle is taken.
    to_middle = (candidates - candidates.mean(dim=0)).square().sum(dim=1)
    row, column = cast("list[int]", candidates[int(to_middle.argmin())].long().tolist())
    return _inside(mask, _span(row, height, size[0]), _span(column, width, size[1]))


def _span(place: int, length: int, count: int) -> slice:
    """Return the pixels along a side of which one place of a reduced mask is the mean."""
    return slice(place * length // count, -(-(place + 1) * length // count))


def _inside(mask: NDArray[np.bool_], rows: slice, columns: slice) -> tuple[int, int]:
    """Return the pixel of a mask that is nearest to the middle of a part of it."""
    ys, xs = mask[rows, columns].nonzero()
    middle = (rows.stop - rows.start - 1) / 2, (columns.stop - columns.start - 1) / 2
    nearest = int(((ys - middle[0]) ** 2 + (xs - middle[1]) ** 2).argmin())
    return rows.start + int(ys[nearest]), columns.start + int(xs[nearest])
