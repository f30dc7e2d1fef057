"""Cut large images into windows that overlap, and lay what is computed of them together again.

Windows stand on the grid of the tower's patches. The map of a window therefore fits onto the map of
the whole image place by place, and nothing is resampled before all of it is known.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.errors import ConfigError, ImageError
from clipkit.inspect.towers import Grid

MAX_PIXELS = 1 << 26  # of an image that is cut into windows: 800 megabytes of float32
STRIP_NUMBERS = 1 << 22  # numbers of a map that are enlarged at a time


@dataclass(frozen=True)
class Windows:
    """Hold where the windows of an image lie on its grid of patches.

    Attributes:
        cell: side of a patch in pixels.
        grid: rows and columns of the whole image.
        window: rows and columns of each window.
        places: row and column of the first patch of each window. Together they cover the grid.
    """

    cell: int
    grid: Grid
    window: Grid
    places: tuple[Grid, ...]


def lay_windows(size: tuple[int, int], cell: int, window: int, stride: int) -> Windows:
    """Lay windows over an image, the last of each row and column at its edge.

    Args:
        size: (height, width) of the image in pixels, multiples of `cell`.
        cell: side of a patch in pixels.
        window: side of a window in pixels. It is rounded to patches, and where an image is smaller,
            the window is as large as the image.
        stride: pixels from one window to the next, rounded down to patches, at least one.
    """
    grid = size[0] // cell, size[1] // cell
    side, step = max(1, round(window / cell)), max(1, stride // cell)
    extent = min(side, grid[0]), min(side, grid[1])
    rows, columns = (
        sorted({*range(0, whole - part + 1, step), whole - part})
        for whole, part in zip(grid, extent, strict=True)
    )
    places = tuple((row, column) for row in rows for column in columns)
    return Windows(cell, grid, extent, places)


def working_size(size: tuple[int, int], short_side: int, cell: int) -> tuple[int, int]:
    """Return the (height, width) to which an image is resized before it is cut into windows.

    Args:
        size: (height, width) of the image in pixels.
        short_side: pixels of its shorter side afterwards.
        cell: each side becomes a multiple of it, the nearest one.

    Raises:
        ImageError: if the image is so thin that it would become too large.
    """
    scale = short_side / min(size)
    height, width = (max(1, round(side * scale / cell)) * cell for side in size)
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"an image of {size[0]} x {size[1]} pixels would grow to {height} x {width}, and "
            f"{MAX_PIXELS:,} pixels are the most: pass a smaller short_side, or crop the image"
        )
    return height, width


def average_windows(
    image: Tensor, windows: Windows, score: Callable[[Tensor], Tensor], batch_size: int
) -> Tensor:
    """Return the mean of what windows say of each patch of an image.

    In memory there are one batch of windows, and one map of the whole image.

    Args:
        image: (3, H, W), as the tower takes it.
        windows: where they lie.
        score: from a batch of windows (n, 3, h, w) to (n, C, rows, columns).
        batch_size: windows that are scored at once.

    Returns:
        (C, rows, columns) float32.

    Raises:
        ConfigError: if the scores are not of one place for each patch.
    """
    total: Tensor | None = None
    counts = torch.zeros(windows.grid, dtype=torch.float32, device=image.device)
    for start in range(0, len(windows.places), batch_size):
        places = windows.places[start : start + batch_size]
        scores = score(torch.stack([_cut(image, windows, place) for place in places]))
        if scores.shape[2:] != windows.window:
            raise ConfigError(
                f"a window of {windows.window[0]} x {windows.window[1]} patches gave a map of "
                f"{scores.shape[2]} x {scores.shape[3]}: set the stride of visual.conv1 to the "
                "size of a patch"
            )
        if total is None:
            shape = (scores.shape[1], *windows.grid)
            total = torch.zeros(shape, dtype=torch.float32, device=scores.device)
        for (top, left), own in zip(places, scores.float(), strict=True):
            bottom, right = top + windows.window[0], left + windows.window[1]
            total[:, top:bottom, left:right] += own
            counts[top:bottom, left:right] += 1
    assert total is not None  # there is a window at least
    return total / counts


def _cut(image: Tensor, windows: Windows, place: Grid) -> Tensor:
    """Return the pixels of a window, (3, h, w)."""
    top, left = (windows.cell * first for first in place)
    height, width = (windows.cell * side for side in windows.window)
    return image[:, top : top + height, left : left + width]


def enlarge(maps: Tensor, size: tuple[int, int]) -> Iterator[tuple[slice, Tensor]]:
    """Yield maps in another size, a strip of rows at a time.

    The values are those of bilinear interpolation of the whole, which would need all of it at once.

    Args:
        maps: (C, rows, columns), floating.
        size: (height, width) of the result in pixels.

    Yields:
        Which rows, and the maps there, (C, rows of the strip, width).
    """
    height, width = size
    rows = maps.shape[1]
    at_once = max(1, STRIP_NUMBERS // (maps.shape[0] * width))
    for start in range(0, height, at_once):
        strip = slice(start, min(start + at_once, height))
        numbers = torch.arange(strip.start, strip.stop, dtype=torch.float64, device="cpu")
        # Where the middle of each line lies among the rows of the maps.
        places = ((numbers + 0.5) * rows / height - 0.5).clamp(0, rows - 1)
        upper = places.floor().long()
        share = (places - upper).to(maps)[:, None]  # (rows of the strip, 1)
        upper = upper.to(maps.device)
        lower = (upper + 1).clamp(max=rows - 1)
        lines = torch.lerp(maps[:, upper], maps[:, lower], share)
        yield strip, F.interpolate(lines, width, mode="linear", align_corners=False)
