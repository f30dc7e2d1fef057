"""Draw which class each pixel of an image is of."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from clipkit.classify.metric_inputs import is_number
from clipkit.data.decode import Readable
from clipkit.errors import ConfigError
from clipkit.inspect.overlay import edges_of
from clipkit.inspect.plot_style import (
    INK,
    TEXT,
    Look,
    Map,
    add_axes,
    add_legend,
    area_color,
    as_map,
    check_rows,
    new_figure,
    panel_size,
    pixels_of,
    require_matplotlib,
    shorten,
    show_pixels,
    write_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LETTERS = 28  # of a name in the legend
_IN_A_COLUMN = 16  # entries of the legend
_SMALLEST = 0.0008  # share of the image below which an area has no number
_GRID = 160  # pixels of the longer side of the map in which places for numbers are sought
_SCALE = 1.5  # an image is this much larger here than in other figures


def segmentation(
    image: Readable,
    classes: Map,
    names: Sequence[str],
    *,
    background: int | None = None,
    colors: Sequence[str] | None = None,
    opacity: float = 0.55,
) -> "Figure":
    """Return an image with the class of each pixel as a color, and a legend with their shares.

    Each area has a line around it, and the number of its class in it, so that nobody needs to tell
    colors apart.

    Args:
        image: as in `heat_map`.
        classes: (h, w) integers, indices of `names`, which are stretched over the image.
        names: C names.
        background: a class that gets no color, and no place in the legend.
        colors: C colors as matplotlib takes them, by default those that the color-blind tell apart.
        opacity: of the colors, 0 to 1.

    Raises:
        ConfigError: for other shapes, or an index that has no name; or if matplotlib is missing.
        ImageError: if the image cannot be read.

    Example:
        plots.segmentation("street.jpg", scores.argmax(dim=0), ["road", "car", "sky"])
    """
    pixels = pixels_of(image)
    indices = _indices(classes, names, pixels)
    shares = np.bincount(indices.ravel(), minlength=len(names)) / indices.size
    order = cast("list[int]", np.argsort(-shares, kind="stable").tolist())
    shown = [place for place in order if shares[place] and place != background]
    palette = _palette(colors, len(names))
    if not is_number(opacity) or not 0 <= opacity <= 1:
        raise ConfigError(f"segmentation needs an opacity of 0 to 1, not {opacity!r:.60}")
    if background is not None and background not in range(len(names)):
        raise ConfigError(
            f"segmentation needs a background of 0 to {len(names) - 1}, or None, not "
            f"{background!r:.60}"
        )
    columns = -(-len(shown) // _IN_A_COLUMN)
    width, height = (_SCALE * length for length in panel_size(pixels))
    rows = min(len(shown), _IN_A_COLUMN)
    longest = max((len(shorten(names[place], _LETTERS)) for place in shown), default=0)
    legend = (0.95 + 0.078 * longest) * columns
    figure = new_figure(width + legend + 0.2, max(height, 0.21 * rows) + 0.2)
    axes = add_axes(figure)
    show_pixels(axes, _colored(pixels, indices, shown, palette, opacity))
    _write_numbers(axes, indices, shown)
    _add_legend(figure, shown, names, palette, shares)
    return figure


def _palette(colors: Sequence[str] | None, classes: int) -> Sequence[str]:
    """Return a color for each class, or raise `ConfigError`."""
    if colors is None:
        return [area_color(place) for place in range(classes)]
    if len(colors) != classes:
        raise ConfigError(f"{classes} classes need as many colors, not {len(colors)}")
    require_matplotlib()
    from matplotlib.colors import is_color_like

    if wrong := [color for color in colors if not is_color_like(color)]:
        raise ConfigError(
            "segmentation needs colors as matplotlib takes them, such as '#0072B2', not "
            f"{wrong[0]!r:.60}"
        )
    return colors


def _indices(classes: Map, names: Sequence[str], pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the class of each pixel of an image, or raise `ConfigError`."""
    check_rows("segmentation", names)
    found = as_map("segmentation", classes)
    if found.dtype.kind not in "iu":
        raise ConfigError(f"segmentation needs a map of integers, not of {found.dtype}")
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= len(names):
        raise ConfigError(
            f"segmentation needs indices of the {len(names)} names, 0 to {len(names) - 1}, not "
            f"{low} to {high}"
        )
    height, width = pixels.shape[:2]
    rows = [row * found.shape[0] // height for row in range(height)]
    columns = [column * found.shape[1] // width for column in range(width)]
    return found[np.ix_(rows, columns)].astype(np.int64)


def _colored(
    pixels: NDArray[np.uint8],
    indices: NDArray[np.int64],
    shown: Sequence[int],
    palette: Sequence[str],
    opacity: float,
) -> NDArray[np.float64]:
    """Return an image (h, w, 3), 0 to 1, with colors over the areas and white lines between."""
    from matplotlib.colors import to_rgb

    mixed = pixels / 255
    for place in shown:
        area = indices == place
        mixed[area] = (1 - opacity) * mixed[area] + opacity * np.array(to_rgb(palette[place]))
    mixed[edges_of(indices)] = 1.0
    return mixed


def _write_numbers(axes: "Axes", indices: NDArray[np.int64], shown: Sequence[int]) -> None:
    """Write the number of each class where its area is thickest."""
    from matplotlib.patheffects import withStroke

    step = max(1, max(indices.shape) // _GRID)
    coarse = indices[::step, ::step]
    for number, place in enumerate(shown, start=1):
        area = coarse == place
        if area.mean() < _SMALLEST:
            continue
        row, column = _thickest(area)
        text = write_text(
            axes,
            step * (column + 0.5) - 0.5,
            step * (row + 0.5) - 0.5,
            str(number),
            Look(TEXT, bold=True, horizontal="center", vertical="center"),
        )
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def _thickest(area: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the row and column of the place that is furthest from the end of an area (h, w)."""
    left = area
    while True:
        padded = np.pad(left, 1)
        smaller = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1]
        smaller &= padded[1:-1, :-2] & padded[1:-1, 2:]
        if not smaller.any():
            rows, columns = left.nonzero()
            middle = len(rows) // 2
            return int(rows[middle]), int(columns[middle])
        left = smaller


def _add_legend(
    figure: "Figure",
    shown: Sequence[int],
    names: Sequence[str],
    palette: Sequence[str],
    shares: NDArray[np.float64],
) -> None:
    """List the classes with number, color and share, the largest first."""
    from matplotlib.patches import Patch

    if not shown:
        return
    handles = [Patch(facecolor=palette[place], edgecolor=INK, linewidth=0.5) for place in shown]
    lines = [
        f"{number}  {shorten(names[place], _LETTERS)}  {shares[place]:.1%}"
        for number, place in enumerate(shown, start=1)
    ]
    columns = -(-len(shown) // _IN_A_COLUMN)
    add_legend(figure, handles, lines, columns=columns)
